"""What is changed for a while is put back, also where an error or Ctrl-C comes in between."""

import signal
import sys

import pytest
import torch
from torch import nn

import worlds
from das3.baselines.bn_statistics import recorded_batch_statistics
from das3.baselines.features import features_and_logits
from das3.baselines.shot import NearestCentroid
from das3.cli.main import main
from das3.data.label_store import LabelStore
from das3.input_transforms import InputTransform
from das3.norms import batch_norms, held_running_statistics
from das3.recipe import Recipe
from das3.stages.align import Align
from das3.training.cost_estimate import _fixed_bytes
from das3.training.loop import make_fabric, train
from das3.training.phases import _Clock


@pytest.fixture
def segmenter():
    """Partly frozen, its layers in different modes."""
    torch.manual_seed(0)
    found = worlds.pointwise_network().eval()
    found(torch.zeros(1, 3, 8, 8))  # the first small image makes it try sizes
    found.model[0].bias.requires_grad_(False)
    found.model[2].train()
    return found


def state(segmenter):
    modules = list(segmenter.modules())
    return {
        "flags": [p.requires_grad for p in segmenter.parameters()],
        "gradients": [p.grad is None for p in segmenter.parameters()],
        "modes": [m.training for m in modules],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules],
        "momenta": [n.momentum for n in batch_norms(segmenter)],
        "own": [sorted(vars(m)) for m in modules],
        "buffers": [b.tolist() for b in segmenter.buffers()],
    }


class Interrupted(nn.Module):
    """Put into the network, interrupts its second call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, values):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return values


@pytest.fixture
def interrupted(segmenter):
    segmenter.model[2] = Interrupted().train()
    return segmenter


def test_training(segmenter, tmp_path):
    context = worlds.stage_context(segmenter, tmp_path)
    stage = Align(Align.Options(steps=3, color_transforms=False, prior="uniform"))
    samples, real = stage.prepare(context), stage.loss
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == 2:
            (model(batch["image"]).sum()).backward()
            raise KeyboardInterrupt
        return real(model, batch)

    stage.loss = loss
    before = state(segmenter)
    with pytest.raises(KeyboardInterrupt):
        train(context.fabric, segmenter, stage, samples, Recipe(batch_size=2, device="cpu"), seed=(0, 0))
    after = state(segmenter)
    for what in ("flags", "gradients", "hooks", "momenta", "own"):
        assert after[what] == before[what], what
    assert not any(after["modes"])  # a trained network is left ready for prediction


@pytest.mark.parametrize("transform", [None, InputTransform(color_transforms=("grayscale",))])
def test_labelling(segmenter, tmp_path, transform):
    context = worlds.stage_context(segmenter, tmp_path)
    context.transform = transform
    before = state(segmenter)

    def label(probs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context.label_all("labels", label)
    assert state(segmenter) == before


def test_re_estimation(interrupted, tmp_path):
    before = state(interrupted)
    with pytest.raises(KeyboardInterrupt):
        worlds.stage_context(interrupted, tmp_path).reestimate_bn()
    assert state(interrupted) == before


def test_centroids(interrupted, tmp_path):
    before = state(interrupted)
    with pytest.raises(KeyboardInterrupt):
        NearestCentroid(interrupted).fit(worlds.stage_context(interrupted, tmp_path), hard=False)
    assert state(interrupted) == before


def test_hooks_and_momenta(interrupted):
    interrupted.eval()
    before = state(interrupted)
    images = torch.rand(1, 3, 8, 8)
    features_and_logits(interrupted, images)
    with pytest.raises(KeyboardInterrupt), recorded_batch_statistics(interrupted), held_running_statistics(interrupted):
        features_and_logits(interrupted, images)
    assert state(interrupted) == before


def test_what_a_dry_run_asks_of_a_stage(segmenter):
    class Refusing(Align):
        def parameters(self, recurse=True):
            raise KeyboardInterrupt

    before = state(segmenter)
    with pytest.raises(KeyboardInterrupt):
        _fixed_bytes(segmenter, Refusing(Align.Options()), Recipe())
    assert state(segmenter) == before


def test_a_clock_goes_on_after_an_error_while_it_was_paused():
    clock = _Clock(0.0)
    began = clock.began
    with pytest.raises(KeyboardInterrupt), clock.paused():
        raise KeyboardInterrupt
    assert clock.began > began


def test_label_files(tmp_path):
    store = LabelStore(tmp_path, ["a"])

    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.writing() as packs:
        packs.add(0, {"labels": Broken()})
    assert not list(tmp_path.iterdir())


def test_the_command_line_puts_signal_handlers_back(capsys):
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    assert main(["evaluate"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert sys.unraisablehook is hook
    assert make_fabric("cpu", "32").world_size == 1
