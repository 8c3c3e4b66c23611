import math
import multiprocessing
import threading
import time
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from das3.data.samples import Augmentation, Samples
from das3.errors import RecipeError, TrainingError
from das3.losses import positive_loss
from das3.segmenter import Segmenter
from das3.stages import Stage, StageOptions
from das3.stages.base import parameter_groups
from das3.stages.options import LoopOptions
from das3.training.batches import Batches, _packed
from das3.training.checkpoints import BackgroundWriter, load_checkpoint, save_checkpoint, snapshot_of
from das3.training.loop import _clip_gradients, _optimizer, learning_rate, make_fabric, step_seed, train


class Supervised(Stage[StageOptions]):
    name = "supervised"

    def loss(self, segmenter, batch):
        return {"cross_entropy": positive_loss(segmenter(batch["image"]), batch["labels"])}


class Counting(Stage[StageOptions]):
    """Two losses, of which one is there at every second step only."""

    name = "counting"

    def loss(self, segmenter, batch):
        self.step = getattr(self, "step", 0) + 1
        losses = {"always": segmenter(batch["image"]).mean() * 0 + self.step}
        return losses | ({"even": losses["always"] * 10} if self.step % 2 == 0 else {})


class Diverging(Supervised):
    def loss(self, segmenter, batch):
        return {"diverging": segmenter(batch["image"]).sum() * float("nan")}


class Labels:
    def __call__(self, i):
        return {"labels": np.tile(np.arange(16, dtype=np.uint8) % 3, (16, 1))}


def tiny(norm=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(0.1)]
    return Segmenter(nn.Sequential(*layers, nn.Conv2d(8, 3, 1)), example_size=(16, 16))


def samples(seed=0):
    images = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(6)]
    return Samples(images, Augmentation((16, 16), color=0.2), seed=(seed,), maps=Labels())


def fit(segmenter, options, stage_options, stage=Supervised, **kwargs):
    fabric = make_fabric("cpu", "32")
    train(fabric, segmenter, stage(stage_options), samples(), options, seed=(0, 0), **kwargs)
    return segmenter.state_dict()


def test_a_record_is_of_the_steps_since_the_last(monkeypatch):
    now = iter(range(0, 10_000, 4))  # every look at the clock is four seconds after the one before
    monkeypatch.setattr("das3.training.loop.time.perf_counter", lambda: float(next(now)))
    records = []
    options = LoopOptions(batch_size=2, accumulate=2, log_every=2)
    fit(tiny(), options, StageOptions(steps=4), Counting, report=records.append)
    assert [r.losses["always"] for r in records] == [2.5, 6.5]
    assert [r.losses["even"] for r in records] == [30.0, 70.0]
    assert [r.images_per_second for r in records] == [2.0, 2.0]


def test_it_learns():
    records = []
    options = StageOptions(steps=60, lr=1e-2)
    fit(tiny(), LoopOptions(batch_size=4, log_every=10), options, report=records.append)
    assert [r.step for r in records] == [10, 20, 30, 40, 50, 60]
    assert records[-1].losses["cross_entropy"] < records[0].losses["cross_entropy"]
    assert all(r.images_per_second > 0 for r in records)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("device", "scaler", "fused"), [("cuda", None, True), ("cuda", object(), None), ("cpu", None, None)]
)
def test_optimizers_are_fused_on_a_gpu_unless_losses_are_scaled(optimizer, device, scaler, fused):
    fabric = SimpleNamespace(device=torch.device(device), _precision=SimpleNamespace(scaler=scaler))
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1}]
    (group,) = _optimizer(groups, LoopOptions(optimizer=optimizer), fabric).param_groups
    assert group["fused"] is fused


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["8 bits", "floats", "some floats"])
def test_images_arrive_as_they_were_sent(kind, workers):
    """From process to process as bytes where nothing is lost by it."""
    images = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(4)]
    if kind != "8 bits":
        images[1:] = [(image / 255 + 1e-4).clip(0, 1).astype(np.float32) for image in images[1:]]
    made = Samples(images[kind == "floats" :], Augmentation((16, 16), color=0.2), seed=(0,))
    with Batches(make_fabric("cpu", "32"), made, LoopOptions(batch_size=2, workers=workers), print) as batches:
        for first, batch in zip(range(0, 8, 2), batches._from(0), strict=False):
            assert batch["image"].dtype == torch.float32
            assert torch.equal(batch["image"], torch.stack([made[n]["image"] for n in (first, first + 1)]))
    sent = dict(field[:2] for field in _packed([made[0], made[1]]).fields)
    assert sent["image"] == (torch.uint8 if kind == "8 bits" else torch.float32)


@pytest.mark.parametrize("ending", ["done", "error"])
def test_processes_that_load_images_end_with_the_training(ending):
    """At once: left to the garbage collector, each of them would be waited for for 5 s."""

    def report(record):
        began.append(time.perf_counter())
        if ending == "error":
            raise KeyboardInterrupt

    began = []
    with pytest.raises(KeyboardInterrupt) if ending == "error" else nullcontext():
        fit(tiny(), LoopOptions(batch_size=2, workers=2), StageOptions(steps=3), report=report)
    assert began
    assert not multiprocessing.active_children()
    assert time.perf_counter() - began[-1] < 8


def test_accumulated_batches_equal_one_large_batch():
    """Without batch norm and dropout, two batches of 4 are one of 8."""
    results = []
    for sizes in ({"batch_size": 8}, {"batch_size": 4, "accumulate": 2}):
        segmenter = tiny(norm=False)
        segmenter.model[3].p = 0.0
        # Adam would blow rounding up where a gradient is almost 0.
        results.append(fit(segmenter, LoopOptions(optimizer="sgd", **sizes), StageOptions(steps=5, lr=1e-2)))
    for key in results[0]:
        torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["frozen", "target"])
def test_held_norm_layers_keep_their_statistics(mode):
    segmenter = tiny()
    before = segmenter.model[1].running_mean.clone()
    fit(segmenter, LoopOptions(batch_size=2), StageOptions(steps=3, bn_mode=mode))
    assert torch.equal(segmenter.model[1].running_mean, before)
    fit(segmenter, LoopOptions(batch_size=2), StageOptions(steps=3, bn_mode="batch"))
    assert not torch.equal(segmenter.model[1].running_mean, before)


def test_parameters_that_came_frozen_stay_so():
    segmenter = tiny()
    segmenter.model[1].requires_grad_(False)
    before = segmenter.model[1].weight.clone()
    fit(segmenter, LoopOptions(batch_size=2), StageOptions(steps=3, lr=0.1))
    assert torch.equal(segmenter.model[1].weight, before)
    assert not segmenter.model[1].weight.requires_grad
    assert segmenter.model[0].weight.requires_grad


def test_a_network_put_away_for_inference_is_trained_all_the_same():
    segmenter = tiny().requires_grad_(False)
    before = segmenter.model[0].weight.clone()
    fit(segmenter, LoopOptions(batch_size=2), StageOptions(steps=3, lr=0.1))
    assert not torch.equal(segmenter.model[0].weight, before)
    assert not any(p.requires_grad for p in segmenter.parameters())


def test_the_classifiers_rate():
    segmenter = tiny()
    before = segmenter.model[4].weight.clone()
    fit(segmenter, LoopOptions(batch_size=2, weight_decay=0.0), StageOptions(steps=3, lr=0.1, head_lr_factor=0.0))
    assert torch.equal(segmenter.model[4].weight, before)


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(TrainingError, match=r"diverging.*supervised\.lr"):
        fit(tiny(), LoopOptions(batch_size=2, log_every=2), StageOptions(steps=4), Diverging)


def test_compiled_code_is_refused_on_several_devices():
    fabric = SimpleNamespace(world_size=2, setup=lambda *given: pytest.fail("it was not refused"))
    segmenter = tiny()
    with pytest.raises(RecipeError, match="compile=on is for one device; leave it out with several"):
        train(fabric, segmenter, Supervised(StageOptions(steps=1)), samples(), LoopOptions(compile="on"), seed=(0, 0))
    assert not segmenter.training


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(s, 100, warmup=0.1, power=0.9) for s in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == rates[9]
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[100] == 0
    assert rates[50] == pytest.approx(0.5**0.9)


def test_seeds_of_steps_differ_and_repeat():
    seeds = [step_seed((s, p), n) for s in range(3) for p in range(3) for n in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert step_seed((1, 2), 3) == step_seed((1, 2), 3)
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("norm", [1e-3, 5.0, 1e6])
@pytest.mark.parametrize("scaler", [None, object()])
def test_gradients_are_clipped_as_pytorch_does(norm, scaler):
    def gradients():
        network = tiny()
        for n, parameter in enumerate(network.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n))
        next(network.parameters()).grad = None
        return network

    ours, theirs = gradients(), gradients()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), norm)
    fabric, optimizer = make_fabric("cpu", "32"), torch.optim.SGD(ours.parameters())
    if scaler is not None:
        fabric._precision.scaler = scaler
        ours, optimizer = fabric.setup(ours, optimizer)
    _clip_gradients(fabric, ours, optimizer, LoopOptions(clip=norm))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(("sharded", "scaler", "by_fabric"), [(True, None, 1), (False, object(), 1), (False, None, 0)])
def test_lightning_clips_what_is_in_parts_or_scaled(sharded, scaler, by_fabric):
    calls, weight = [], nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 100.0)
    fabric = SimpleNamespace(
        _precision=SimpleNamespace(scaler=scaler), clip_gradients=lambda *given, **how: calls.append(how)
    )
    optimizer = torch.optim.SGD([weight])
    _clip_gradients(fabric, None, optimizer, SimpleNamespace(clip=1.0, shard_weights=sharded))
    assert calls == [{"max_norm": 1.0, "error_if_nonfinite": False}] * by_fabric
    assert (weight.grad.norm() < 2) == (not by_fabric)


def test_sgd_and_clipping():
    segmenter = tiny()
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    fit(
        segmenter,
        LoopOptions(batch_size=2, optimizer="sgd", clip=1e-9, weight_decay=0.0),
        StageOptions(steps=2, lr=0.1),
    )
    for name, parameter in segmenter.named_parameters():
        assert (parameter - before[name]).abs().max() < 1e-8


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"accumulate": 0}, {"warmup": 2.0}, {"optimizer": "lbfgs"}, {"clip": -1.0}, {"workers": -1}],
)
def test_loop_options_are_checked(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        LoopOptions(**wrong)


def test_devices_are_checked():
    with pytest.raises(RecipeError, match="quantum"):
        make_fabric("quantum")
    with pytest.raises(RecipeError, match="precision"):
        make_fabric("cpu", "8")


def test_mixed_precision_on_the_cpu():
    records = []
    fabric = make_fabric("cpu", "bf16")
    segmenter = tiny()
    stage = Supervised(StageOptions(steps=2))
    train(fabric, segmenter, stage, samples(), LoopOptions(batch_size=2), seed=(0,), report=records.append)
    assert math.isfinite(records[-1].losses["cross_entropy"])
    assert all(p.dtype == torch.float32 for p in segmenter.parameters())


@pytest.mark.parametrize(("snapshots", "expected"), [(0, []), (1, [4]), (2, [3, 6]), (3, [2, 4, 6])])
def test_snapshots_are_evenly_spread(snapshots, expected):
    seen = []
    steps = StageOptions(steps=9 if snapshots < 3 else 8)
    fit(tiny(), LoopOptions(batch_size=2), steps, snapshot=lambda step, _: seen.append(step), snapshots=snapshots)
    assert seen == expected


def test_weight_decay_is_of_weights_alone():
    """Biases, and scales and shifts of norm layers, have none."""
    segmenter = tiny()
    groups = parameter_groups(segmenter, Supervised(StageOptions(lr=0.5, head_lr_factor=3.0)), 0.25)
    found = {id(p): (group["weight_decay"], group["lr"], group["base_lr"]) for group in groups for p in group["params"]}
    assert len(found) == len(list(segmenter.parameters()))
    for name, parameter in segmenter.model.named_parameters():
        rate = 1.5 if name.startswith("4.") else 0.5
        assert found[id(parameter)] == (0.25 if parameter.ndim > 1 else 0.0, rate, rate)


def test_a_background_writer_tells_what_failed_and_writes_the_moment(tmp_path):
    state = {"weights": [torch.zeros(3)], "step": 1}
    path, begin = tmp_path / "last.pt", threading.Event()
    with BackgroundWriter() as writer:
        kept = snapshot_of(state)
        writer.start(lambda: (begin.wait(10), save_checkpoint(path, kept)))
        state["weights"][0] += 1
        begin.set()
    assert load_checkpoint(path)["weights"][0].sum() == 0

    def fail():
        raise TrainingError("full")

    with pytest.raises(TrainingError, match="full"), BackgroundWriter() as writer:
        writer.start(fail)
    writer.start(fail)
    with pytest.raises(TrainingError, match="full"):
        writer.start(lambda: path.unlink())
    assert path.exists()
    with pytest.raises(TypeError), writer:
        writer.start(lambda: path.unlink(), "more")  # the block's own error is told
    with pytest.raises(KeyError), writer:
        {writer.start(lambda: path.unlink()): 0}["gone"]  # … when all is written
    assert not path.exists()
