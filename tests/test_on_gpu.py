"""What holds on a GPU as on a CPU, and that nothing waits for a GPU between steps."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import das3
from das3.data.open import open_images
from das3.data.streets import Streets
from das3.recipe import Recipe
from das3.registry import find_stage
from das3.segmenter import Segmenter
from das3.selection.signals import view_predictions
from das3.stages import StageContext
from das3.stages.labelling import ToHost
from das3.training.loop import StepState, make_fabric, train

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
STAGES = ("align", "selftrain", "propagate")
SIZE = (64, 96)
CLASSES = 5


@pytest.fixture(scope="module")
def images():
    streets = Streets("target", 10, size=SIZE)
    return open_images([streets.image(i) for i in range(10)])


def segmenter(device):
    """With dropout, which draws on the device."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(16, CLASSES, 1)]
    with torch.no_grad():
        layers[-1].weight *= 10  # some pixels are sure
    return Segmenter(nn.Sequential(*layers), example_size=SIZE).to(device)


def prepared(name, device, images, folder, *, precision="32", **options):
    kind = find_stage(name)
    search = {"color_transforms": False} | ({} if name == "align" else {"upscale": False})
    stage = kind(kind.Options(**{"steps": 8, **search, **options}))
    context = StageContext(make_fabric(device, precision), segmenter(device), images, folder, (0, 0), SIZE, 4)
    return stage, stage.prepare(context), context


@pytest.mark.parametrize("name", ["selftrain", "propagate"])
@pytest.mark.parametrize("device", DEVICES)
def test_labels_are_those_of_a_cpu(name, device, images, tmp_path):
    """On a GPU those of many images at once, on a CPU of one after the other."""
    probs = (3 * torch.randn(6, CLASSES, *SIZE, generator=torch.Generator().manual_seed(0))).softmax(dim=1)
    stage, _, _ = prepared(name, device, images, tmp_path / device)
    host, _, _ = prepared(name, "cpu", images, tmp_path / "host")
    host.priors = [prior.cpu() for prior in stage.priors]
    if hasattr(stage, "thresholds"):
        host.thresholds = stage.thresholds.cpu()
    found = ToHost([stage._label(probs.to(device))], [len(probs)]).arrays()
    for one, image in zip(found, probs, strict=True):
        expected = host._label(image[None])
        assert one.keys() == expected.keys()
        for key, value in expected.items():
            if value.dtype == torch.uint8:
                assert (one[key] == value[0].numpy()).mean() > 0.999
            else:
                np.testing.assert_allclose(one[key], value[0], rtol=1e-4)


@NEEDS_GPU
@pytest.mark.parametrize("name", ["selftrain", "propagate"])
def test_nothing_waits_for_labels(name, images, tmp_path):
    stage, _, context = prepared(name, "cuda", images, tmp_path)
    batch = torch.rand(4, 3, *SIZE, device="cuda")

    @torch.no_grad()
    def label():
        return ToHost([stage._label(context.logits(batch).softmax(dim=1))], [4])

    label().arrays()
    torch.cuda.set_sync_debug_mode("error")
    try:
        later = label()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(later.arrays()) == 4


@NEEDS_GPU
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", STAGES)
def test_no_step_waits_for_the_gpu(name, workers, images, tmp_path):
    stage, samples, context = prepared(name, "cuda", images, tmp_path, precision="bf16")
    done = 0

    def stop():
        nonlocal done
        done += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= done < stage.options.steps - 1 else "default")
        return False

    recipe = Recipe(batch_size=4, workers=workers, log_every=100)
    try:
        train(context.fabric, context.segmenter, stage, samples, recipe, seed=(0, 0), stop=stop)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert done == stage.options.steps


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("device", DEVICES)
def test_what_goes_on_ends_with_the_same_weights(name, device, images, tmp_path, monkeypatch):
    """Optimiser, average, learning rate and random numbers of the device; kernels add in a fixed order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recipe = Recipe(batch_size=4, workers=0, checkpoint_every=3)
    stage, samples, context = prepared(name, device, images, tmp_path, lr=1e-3)
    incoming = {key: value.clone() for key, value in context.segmenter.state_dict().items()}
    saved = []

    def save(state):
        weights = {key: value.clone() for key, value in context.segmenter.state_dict().items()}
        saved.append((state.step, weights, torch.save(vars(state), tmp_path / f"{state.step}.pt")))

    def trained(**how):
        train(context.fabric, context.segmenter, stage, samples, recipe, seed=(0, 0), **how)
        return {key: value.clone() for key, value in context.segmenter.state_dict().items()}

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = trained(save=save)
            step, weights, _ = saved[-1]
            context.segmenter.load_state_dict(weights)
            state = torch.load(tmp_path / f"{step}.pt", map_location="cpu", weights_only=True)
            resumed = trained(start=StepState(**state))
    finally:
        torch.use_deterministic_algorithms(False)
    assert step == 6
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    assert any(not torch.equal(incoming[key], value) for key, value in whole.items())


@NEEDS_GPU
def test_a_batch_that_does_not_fit_is_gone_through_in_parts(images, tmp_path):
    stage, samples, context = prepared("selftrain", "cuda", images, tmp_path, steps=3)
    said = []
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    recipe = Recipe(batch_size=64, workers=0)
    train(context.fabric, context.segmenter, stage, samples, recipe, seed=(0, 0), say=said.append)
    peak = torch.cuda.max_memory_reserved()
    assert not said
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
    try:
        train(context.fabric, context.segmenter, stage, samples, recipe, seed=(0, 0), say=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("images of its 64 are gone through at a time" in line for line in said)


@NEEDS_GPU
@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_run_of_every_precision_ends(precision, images, tmp_path):
    short = {name: {"steps": 4} for name in STAGES}
    result = das3.adapt(
        *(segmenter("cpu"), images),
        out=tmp_path / "run",
        precision=precision,
        device="cuda",
        batch_size=4,
        quiet=True,
        **short,
    )
    weights = result.model.state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    found = das3.predict(result.model, images, device="cuda")
    assert len(found) == 10
    assert found[0].shape == SIZE


@NEEDS_GPU
def test_a_prediction_is_that_of_a_cpu(images):
    ours, theirs = (das3.predict(segmenter("cpu"), images, device=d, precision="32") for d in ("cuda", "cpu"))
    assert np.mean([np.mean(a == b) for a, b in zip(ours, theirs, strict=True)]) > 0.999


@NEEDS_GPU
def test_what_the_guard_sees_is_what_it_sees_on_a_cpu(images):
    """Predictions are made smaller in another way there."""
    small = torch.stack([torch.from_numpy(images[i]).movedim(-1, 0) / 255 for i in range(10)])
    batches = [nn.functional.interpolate(small, scale_factor=3)]
    model = segmenter("cpu")
    expected = view_predictions(model, batches)
    found = view_predictions(model.cuda(), [batch.cuda() for batch in batches])
    torch.testing.assert_close(found.probs, expected.probs, rtol=1e-3, atol=1e-3)
    for view, maps in expected.labels.items():
        assert (found.labels[view][0] == maps[0]).float().mean() > 0.999
