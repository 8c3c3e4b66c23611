"""What every stage must do, of das3 and of the baselines: one suite for all of them."""

import dataclasses
import io
import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from das3.data.images import Images
from das3.data.open import open_images
from das3.data.rare_classes import RareClasses
from das3.errors import DataError
from das3.losses import pairwise_loss
from das3.norms import batch_norms, reestimate
from das3.pseudo_labels import unpack_negatives
from das3.registry import find_stage, stage_types
from das3.segmenter import Segmenter
from das3.stages.base import StageTags
from das3.stages.context import StageContext
from das3.stages.options import LoopOptions, StageOptions
from das3.stages.priors import ClassPriors, class_priors
from das3.training.loop import StepState, make_fabric, train

NAMES = list(stage_types())
TRAINED = [n for n in NAMES if stage_types()[n].Options().steps]
CLASSIFIER_IS_FROZEN = {"align", "atp-align", "shot-im", "shot", "tent"}
UNADJUSTED = {"class_balance": 0.0, "spatial_prior_weight": 0.0}
SEED = (0, 0)
LOOP = LoopOptions(batch_size=4, checkpoint_every=2, log_every=1, ema_decay=0.5)


class Item(tuple):
    """An image and a label that no one may look at."""

    def __getitem__(self, i):
        assert i == 0, "a label was read"
        return super().__getitem__(i)


class ImagesWithSealedLabels:
    """Stripes of three colours, each with some noise."""

    def __init__(self, size=(32, 40)):
        self.size = size

    def __len__(self):
        return 4

    def __getitem__(self, i):
        if not 0 <= i < 4:
            raise IndexError(i)
        rng = np.random.default_rng(i)
        stripes = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])[(np.arange(self.size[1]) // 8 + i) % 3]
        noise = rng.normal(0, 20, (*self.size, 3))
        return Item(((stripes + noise).clip(0, 255).astype(np.uint8), "label"))


def network(channels=3, pointwise=False):
    torch.manual_seed(0)
    step, kernel = (1, 1) if pointwise else (2, 3)
    first = [nn.Conv2d(3, 8, kernel, step, kernel // 2), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 8, kernel, step, kernel // 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)]
    last = nn.Conv2d(8, channels, 1)
    with torch.no_grad():
        last.weight *= 10  # some pixels are sure
    return Segmenter(nn.Sequential(*first, *second, last), example_size=(16, 16))


def context_of(folder, segmenter, size=(32, 40)):
    images, fabric = open_images(ImagesWithSealedLabels(size)), make_fabric("cpu", "32")
    return StageContext(fabric, segmenter, images, folder, SEED, (32, 32), LOOP.batch_size)


def prepared(name, folder, segmenter, steps=4, size=(32, 40), **given):
    """The stage, as it is after `prepare`, and its samples."""
    options = find_stage(name).Options(**given)
    options = dataclasses.replace(options, lr=1e-2, steps=steps if options.steps else 0)
    context = context_of(folder, segmenter, size)
    stage = find_stage(name)(options)
    if options.bn_mode != "frozen":
        reestimate(segmenter, context.batches())
    return stage, stage.prepare(context)


def run(name, folder, channels=3, steps=4, start=None):
    """Train a fresh network; returns it, what was reported and the state after half of the steps."""
    segmenter, records, states = network(channels), [], []
    stage, samples = prepared(name, folder, segmenter, steps)
    if start:
        segmenter.load_state_dict(start["segmenter"])
        start = StepState(start["step"], start["optimizer"], start["stage"], start["ema"])

    def save(state):
        buffer = io.BytesIO()
        torch.save({"segmenter": segmenter.state_dict(), **dataclasses.asdict(state)}, buffer)
        states.append(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))

    fabric = make_fabric("cpu", "32")
    train(fabric, segmenter, stage, samples, LOOP, seed=SEED, start=start, report=records.append, save=save)
    return segmenter, records, states


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name, each made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, *run(name, folder)
        return made[name]

    return get


def test_every_pair_of_seed_and_phase_has_its_own_random_seed(tmp_path):
    context = context_of(tmp_path, network())
    pairs = [(seed, phase) for seed in range(4) for phase in range(4)]
    assert len({dataclasses.replace(context, seed=pair).random_seed() for pair in pairs}) == 16


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_has_a_name_a_docstring_and_defaults(name):
    kind = find_stage(name)
    assert kind.name == name
    assert kind.__doc__
    assert isinstance(kind.Options(), StageOptions)


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_finite_and_only_trainable_parameters_change(name, runs):
    _, segmenter, records, _ = runs(name)
    assert [r.step for r in records] == [1, 2, 3, 4]
    assert all(math.isfinite(v) for r in records for v in r.losses.values())
    before = dict(network().named_parameters())
    trained = {id(p) for p in find_stage(name)(find_stage(name).Options()).trainable(segmenter)}
    moved = {n for n, p in segmenter.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= {n for n, p in segmenter.named_parameters() if id(p) in trained}
    classifier = {n for n in before if n.startswith("model.7.")}
    assert not moved & classifier if name in CLASSIFIER_IS_FROZEN else classifier <= moved


@pytest.mark.parametrize("name", [n for n in NAMES if n not in TRAINED])
def test_without_steps_only_statistics_change(name, runs):
    _, segmenter, _, _ = runs(name)
    before = network()
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), segmenter.parameters(), strict=True))
    assert not equal(before, segmenter)


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_ends_bit_equal(name, runs):
    folder, whole, _, states = runs(name)
    assert [s["step"] for s in states] == [2]
    assert equal(run(name, folder, start=states[0])[0], whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights(name, runs, tmp_path):
    assert equal(run(name, tmp_path)[0], runs(name)[1])


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_from_one_sigmoid_logit(name, tmp_path):
    segmenter, records, _ = run(name, tmp_path, channels=1, steps=1)
    assert all(math.isfinite(v) for r in records for v in r.losses.values())
    assert all(torch.isfinite(p).all() for p in segmenter.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_pixels_of_the_padding_change_no_loss(name, tmp_path):
    """Images smaller than the crop; each pixel is predicted on its own, so that the padding is seen there alone."""
    segmenter = network(pointwise=True)
    stage, samples = prepared(name, tmp_path, segmenter, size=(20, 24))
    batch = torch.utils.data.default_collate([samples[n] for n in range(4)])
    padding = ~batch["valid"].unsqueeze(1)
    assert padding.any()
    segmenter.eval()
    found = []
    for value in (0.0, 0.9):
        images = {k: v.masked_fill(padding, value) if v.is_floating_point() else v for k, v in batch.items()}
        torch.manual_seed(0)
        found.append({k: v.item() for k, v in stage.loss(segmenter, images).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def labeller(tmp_path_factory):
    """Stage 2 of a network that predicts the first of three classes nearly everywhere, the others too rarely."""
    made = prepared("selftrain", tmp_path_factory.mktemp("labeller"), network())[0]
    made.priors = ClassPriors(
        torch.tensor([0.9, 0.07, 0.03]).view(3, 1, 1).expand(3, 8, 8), torch.tensor([0.95, 50.0, 60.0])
    )
    return made


def as_on_a_gpu(context, logits, masks, parts=StageContext._parts_to_label):
    there = SimpleNamespace(fabric=SimpleNamespace(device=torch.device("cuda")))
    return parts(there, logits, masks)


LABELLERS = ("selftrain", "propagate", "cbst", "ld", "pseudo-label", "shot")


@pytest.mark.parametrize("name", LABELLERS)
def test_labels_of_a_batch_made_at_once_are_those_of_its_images(name, tmp_path, monkeypatch):
    """As on a GPU, where each image by itself would be more launches than its prediction."""
    found = []
    for way in ("one by one", "at once, 4", "at once, 3"):
        if way != "one by one":
            monkeypatch.setattr("das3.stages.context.LABELLED_AT_ONCE", 3 * 32 * 40 * int(way[-1]))
            monkeypatch.setattr(StageContext, "_parts_to_label", as_on_a_gpu)
        stage = find_stage(name)(find_stage(name).Options())
        stage.prepare(context_of(tmp_path / way, network()))
        found.append([stage.pseudo_labels[i] for i in range(4)])
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert one.keys() == other.keys()
            for key, value in one.items():
                np.testing.assert_allclose(value, other[key], rtol=1e-5)
    assert len({tuple(one["labels"].flatten()) for one in found[0]}) > 1


class Calls(TorchDispatchMode):
    """Names of the functions that PyTorch calls within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["selftrain", "propagate"])
def test_labelling_waits_for_nothing_and_takes_as_many_launches_for_many_images_as_for_one(name, tmp_path):
    stage = find_stage(name)(find_stage(name).Options())
    stage.prepare(context_of(tmp_path, network()))
    counts = []
    for images in (2, 8):
        probs = torch.rand(images, 3, 32, 40).softmax(1)
        with Calls() as calls:
            stage._label(probs)
        counts.append(len(calls.names))
        # Each of them has the value of a tensor, or a shape that depends on values, brought from the device.
        waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::bincount", "aten::masked_select", "aten::equal"}
        assert not waits & {*calls.names}
    assert counts[0] == counts[1] < 80


def test_images_are_read_in_threads_in_their_order(tmp_path, monkeypatch):
    """Also those of which a thread reads the first ones last; an error in one of them is raised."""

    class Slow(Images):
        is_thread_safe = True

        def __getitem__(self, i):
            time.sleep(0.002 * (10 - i))
            threads.add(threading.get_ident())
            if i == bad:
                raise DataError("can't read 7")
            return np.full((8, 8, 3), i, np.uint8)

        def sizes(self):
            return [(8, 8)] * 10

    monkeypatch.setattr("das3.stages.read_ahead.spare_cores", lambda device: 3)
    threads, bad = set(), None
    images = Slow([str(i) for i in range(10)])
    context = dataclasses.replace(context_of(tmp_path, network()), images=images, batch_size=2)
    shown = [round(255 * image.mean().item()) for batch in context.batches() for image in batch]
    assert shown == list(range(10))
    assert len(threads) > 1
    bad = 7
    with pytest.raises(DataError, match="can't read 7"):
        list(context.batches())
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("ThreadPoolExecutor") for name in names)


def labels_of(stage, probs, **options):
    """Positive labels and, C×H×W, negative ones."""
    stage.options = dataclasses.replace(stage.options, **options)
    arrays = stage._label(probs[None])
    return arrays["labels"][0], unpack_negatives(arrays["negatives"][0], len(probs))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 1.0]), st.floats(0.01, 1))
def test_a_pixels_own_label_is_never_ruled_out(labeller, seed, class_balance, top_fraction):
    logits = np.random.default_rng(seed).normal(0, 3, (3, 4, 5))
    probs = torch.from_numpy(logits).float().softmax(0)
    labels, negatives = labels_of(labeller, probs, class_balance=class_balance, top_fraction=top_fraction)
    for c in range(3):
        assert not (negatives[c] & (labels == c)).any()


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
def test_labels_are_made_from_adjusted_posteriors(stage, tmp_path):
    """Class 0 is usual above, class 1 below, class 2 is predicted too rarely; class 0 is slightly the likeliest."""
    made = prepared(stage, tmp_path, network())[0]
    spatial_prior = torch.tensor([[0.66, 0.32], [0.32, 0.66], [0.02, 0.02]]).view(3, 2, 1)
    made.priors = ClassPriors(spatial_prior, torch.tensor([0.98, 1.0, 2.0]))
    probs = torch.tensor([0.4, 0.35, 0.25]).view(3, 1, 1).expand(3, 4, 2)
    found = {}
    for balance, weight in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        more = {"top_fraction": 1.0} if stage == "selftrain" else {}
        made.options = dataclasses.replace(made.options, class_balance=balance, spatial_prior_weight=weight, **more)
        found[balance, weight] = made._label(probs[None])["labels"][0, :, 0].tolist()
    assert found == {(0.0, 0.0): [0, 0, 0, 0], (0.0, 1.0): [0, 0, 1, 1], (1.0, 0.0): [2, 2, 2, 2]}


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
def test_the_pairwise_loss_is_added_to_the_others(stage, tmp_path):
    segmenter = network().eval()
    made, samples = prepared(stage, tmp_path, segmenter)
    batch = torch.utils.data.default_collate([samples[n] for n in range(4)])
    batch["valid"][0, :, :8] = False
    plain = made.loss(segmenter, batch)
    made.options = dataclasses.replace(made.options, pairwise_weight=100.0)
    with_pairs = made.loss(segmenter, batch)
    pairwise = with_pairs.pop("pairwise")
    expected = pairwise_loss(segmenter(batch["image"]), batch["image"], valid=batch["valid"])
    assert pairwise.item() == pytest.approx(100 * expected.item())
    assert pairwise > 0
    assert with_pairs.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(with_pairs[name], value)


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
def test_images_are_drawn_by_their_rare_classes_where_there_is_a_temperature(stage, tmp_path):
    made, samples = prepared(stage, tmp_path / "rare", network(), rare_temperature=0.1)
    expected = RareClasses([one["labels"] for one in made.pseudo_labels], 0.1)
    for drawn in (samples,) if stage == "selftrain" else (samples.easy, samples.hard):
        assert drawn.rare.chances.tolist() == expected.chances.tolist()
        assert drawn.rare.shown.tolist() == expected.shown.tolist()
    _, samples = prepared(stage, tmp_path / "even", network())
    for drawn in (samples,) if stage == "selftrain" else (samples.easy, samples.hard):
        assert drawn.rare is None


def test_thresholds_over_all_images_label_by_the_class_that_exceeds_its_own_most(tmp_path):
    stage, _ = prepared("selftrain", tmp_path, network(), thresholds="data", top_fraction=0.5, **UNADJUSTED)
    assert stage.thresholds.shape == (3,)
    factors = torch.tensor([[1.1, 0.9], [1.2, 0.8], [0.1, 0.7]])
    probs = stage.thresholds[:, None] * factors
    assert stage._label(probs[None, :, :, None])["labels"].flatten().tolist() == [1, 255]
    # Half of the pixels that the data set shows of a class reach its threshold, though not half of every image's.
    store = stage.pseudo_labels
    labels = np.stack([store[i]["labels"] for i in range(len(store))])
    assert (labels != 255).mean() >= 0.5
    shares = [(one != 255).mean() for one in labels]
    assert max(shares) > min(shares)


def test_the_spatial_prior_is_the_mean_prediction_by_place(tmp_path):
    """The first class is predicted above, the second below; a uniform prior weighs as much as eight images."""
    context = context_of(tmp_path, network())
    upper = torch.zeros(3, 16, 16)
    upper[0, :8], upper[1, 8:] = 1.0, 1.0
    context.logits = lambda batch: upper.log().expand(len(batch), 3, 16, 16)
    spatial_prior, underprediction_ratio = class_priors(context)
    count = len(context.images)
    assert spatial_prior.shape == (3, 8, 8)
    torch.testing.assert_close(spatial_prior.sum(0), torch.ones(8, 8))
    torch.testing.assert_close(spatial_prior[0, 0, 0], torch.tensor((count + 8 * 0.5) / (count + 8)), atol=1e-4, rtol=0)
    torch.testing.assert_close(spatial_prior[0, 7, 7], torch.tensor(8 * 0.5 / (count + 8)), atol=1e-4, rtol=0)
    torch.testing.assert_close(underprediction_ratio, torch.ones(3))


def test_the_underprediction_ratio_is_mean_probability_over_share_of_pixels(tmp_path):
    """The second class has 0.4 of every pixel of one half and wins none; the third is predicted nowhere."""
    context = context_of(tmp_path, network())
    probs = torch.zeros(3, 16, 16)
    probs[0] = 1.0
    probs[0, :8], probs[1, :8] = 0.6, 0.4
    context.logits = lambda batch: probs.log().expand(len(batch), 3, 16, 16)
    expected = torch.tensor([(0.8 + 1e-3) / (1 + 1e-3), (0.2 + 1e-3) / 1e-3, 1.0])
    torch.testing.assert_close(class_priors(context).underprediction_ratio, expected)


def test_the_prior_of_stage_1_is_the_balanced_mean_prediction(tmp_path, monkeypatch):
    priors = ClassPriors(torch.tensor([0.7, 0.2, 0.1]).view(3, 1, 1).expand(3, 8, 8), torch.tensor([1.0, 1.0, 4.0]))
    monkeypatch.setattr("das3.stages.align.class_priors", lambda context: priors)
    stage, _ = prepared("align", tmp_path, network(), class_balance=0.5)
    torch.testing.assert_close(stage.prior, torch.tensor([0.7, 0.2, 0.2]) / 1.1)


def test_stage_1_hands_on_norm_statistics_of_whole_images(tmp_path):
    segmenter = network()
    stage, _ = prepared("align", tmp_path, segmenter)
    context = context_of(tmp_path, segmenter)
    for norm in batch_norms(segmenter):
        norm.running_mean.fill_(7.0)
    stage.finish(context)
    left = [norm.running_mean.clone() for norm in batch_norms(segmenter)]
    reestimate(segmenter, context.batches())
    for found, norm in zip(left, batch_norms(segmenter), strict=True):
        torch.testing.assert_close(found, norm.running_mean)
    stage.options = dataclasses.replace(stage.options, bn_mode="target")
    next(batch_norms(segmenter)).running_mean.fill_(7.0)
    stage.finish(context)
    assert (next(batch_norms(segmenter)).running_mean == 7.0).all()


@pytest.mark.parametrize("name", ["selftrain", "propagate"])
def test_incoming_and_trained_weights_are_interpolated(name, tmp_path):
    segmenter = network()
    stage, _ = prepared(name, tmp_path, segmenter, source_weight=0.25)
    before = segmenter.model[0].weight.detach().clone()
    with torch.no_grad():
        segmenter.model[0].weight.add_(4)
    stage.finish(context_of(tmp_path, segmenter))
    torch.testing.assert_close(segmenter.model[0].weight, before + 3)


def test_a_rare_class_that_is_labelled_below_the_negative_threshold_is_not_ruled_out(labeller):
    probs = torch.tensor([0.96, 0.03, 0.01]).view(3, 1, 1).expand(3, 2, 2)
    labels, negatives = labels_of(labeller, probs, class_balance=0.0, top_fraction=1.0)
    assert (labels == 0).all()
    assert negatives[:, 0, 0].tolist() == [False, True, True]
    labels, negatives = labels_of(labeller, probs, class_balance=1.0, top_fraction=1.0)
    rare = int(labels[0, 0])
    assert rare == 1
    assert probs[rare, 0, 0] < labeller.options.negative_threshold
    assert negatives[:, 0, 0].tolist() == [False, False, True]


def test_a_stage_promises_everything_unless_its_tags_say_otherwise():
    assert StageTags() == StageTags(ignores_padding=True, equal_over_processes=True)


def test_of_a_large_set_only_the_images_that_are_drawn_are_labelled(tmp_path):
    stage = find_stage("selftrain")(find_stage("selftrain").Options(steps=2, color_transforms=False, upscale=False))
    images = open_images([ImagesWithSealedLabels()[i % 4][0] for i in range(20)])
    context = StageContext(make_fabric("cpu", "32"), network(), images, tmp_path, SEED, (32, 32), 2, accumulate=2)
    samples = stage.prepare(context)
    drawn = {samples.pick(n) for n in range(8)}
    assert {i for i in range(20) if stage.pseudo_labels.has(i)} == drawn
    assert all("labels" in samples[n] for n in range(8))
    stage.options = dataclasses.replace(stage.options, steps=100)
    stage.prepare(dataclasses.replace(context, folder=tmp_path / "more"))
    assert all(stage.pseudo_labels.has(i) for i in range(20))


def test_of_many_images_the_teacher_labels_those_that_are_drawn(tmp_path, monkeypatch):
    """All are ranked, in one file; samples are those of a teacher that labels all."""
    options = find_stage("propagate").Options(steps=2, color_transforms=False, upscale=False, mix=False)

    def prepared(name):
        context = dataclasses.replace(context_of(tmp_path / name, network()), batch_size=1)
        stage = find_stage("propagate")(options)
        return stage, stage.prepare(context)

    stage, samples = prepared("drawn")
    assert len(list((tmp_path / "drawn/entropies").iterdir())) == 1
    assert sorted(samples.drawn(2)) == [i for i in range(4) if stage.pseudo_labels.has(i)]
    assert len(samples.drawn(2)) == 2
    monkeypatch.setattr(StageContext, "draws_all", lambda *_: True)
    stage, others = prepared("all")
    assert all(stage.pseudo_labels.has(i) for i in range(4))
    for n in range(2):
        assert all(torch.equal(value, others[n][key]) for key, value in samples[n].items())


def test_summaries_are_kept_of_many_images_in_one_file(tmp_path):
    """What an interrupted run has kept is not made again, and a damaged file is."""
    context, seen = dataclasses.replace(context_of(tmp_path, network()), batch_size=2), []

    def summary(probs):
        seen.append(probs)
        return {"mean": probs.mean(dim=(1, 2))}

    def summaries():
        return torch.stack([torch.from_numpy(one["mean"]) for one in context.summarize("means", summary, per_file=2)])

    first = summaries()
    assert torch.equal(first, torch.stack([probs.mean(dim=(1, 2)) for probs in seen]))
    files = sorted((tmp_path / "means").iterdir())
    assert [path.name for path in files] == ["0-1-2.npz", "2-3-2.npz"]
    files[0].write_bytes(files[0].read_bytes()[:-30])
    assert torch.equal(summaries(), first)
    assert len(seen) == 6
