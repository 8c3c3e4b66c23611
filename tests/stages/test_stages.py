"""What every stage must do, ours and the baselines: one suite for all of them."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from das3.baselines.bn_statistics import running_statistics
from das3.data.open import open_images
from das3.data.rare_classes import RareClasses
from das3.errors import RecipeError
from das3.losses import pairwise_loss
from das3.norms import batch_norms, reestimate
from das3.pseudo_labels import unpack_negatives
from das3.registry import find_stage, stage_types
from das3.segmenter import Segmenter
from das3.stages.context import StageContext
from das3.stages.options import LoopOptions, StageOptions
from das3.stages.priors import ClassPriors
from das3.training.loop import StepState, make_fabric, train

NAMES = list(stage_types())
TRAINED = [n for n in NAMES if stage_types()[n].Options().steps]
CLASSIFIER_IS_FROZEN = {"align", "match", "atp-align", "shot-im", "shot", "tent"}
SEED = (0, 0)
LOOP = LoopOptions(batch_size=4, checkpoint_every=2, log_every=1, ema_decay=0.5)

# A value out of range for every option that has a range.
WRONG = {
    **{"steps": -1, "lr": 0.0, "head_lr_factor": -1.0, "bn_mode": "none", "scale": (0.0, 1.0), "color": -1.0, "blur": 2.0},
    **{"alpha": -1.0, "gamma": -1.0, "diversity": -1.0, "a": -1.0, "memory": 1.0, "prior": "none", "class_balance": 2.0},
    **{"top_fraction": 0.0, "negative_threshold": 0.0, "negative": -1.0, "negative_form": "none", "negative_where": "none"},
    **{"rounds": 0, "easy_share": 2.0, "blend": 2.0, "ratio": 2.0, "beta": -1.0, "threshold": 1.0, "weight": -1.0},
    **{"regularizer": "none", "source_weight": 2.0, "width": -1, "entropy": -1.0, "decoders": 0, "drop": 1.0, "patches": 0},
    **{"uncertainty": -1.0, "contrast": -1.0, "temperature": 0.0, "places": 0, "spatial_prior_weight": -1.0, "positive": -1.0},
    **{"smoothing": 1.0, "thresholds": "none", "gain": 2.0, "pairwise_weight": -1.0, "rare_temperature": -1.0},
}


pytestmark = pytest.mark.usefixtures("one_thread")


class Item(tuple):
    """An image and a label that no one may look at."""

    def __getitem__(self, i):
        assert i == 0, "a label was read"
        return super().__getitem__(i)


class Sealed:
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


def bench_of(folder, segmenter, size=(32, 40)):
    images, fabric = open_images(Sealed(size)), make_fabric("cpu", "32")
    remembered = running_statistics(segmenter)
    return StageContext(fabric, segmenter, images, folder, SEED, (32, 32), LOOP.batch_size, remembered)


def prepared(name, folder, segmenter, steps=4, size=(32, 40), **given):
    """The stage, as it is after `prepare`, and its samples."""
    options = find_stage(name).Options(**given)
    options = dataclasses.replace(options, lr=1e-2, steps=steps if options.steps else 0)
    context = bench_of(folder, segmenter, size)
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
        start = StepState(start["step"], start["optimizer"], start["stage"], start["average"])

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


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_options_have_defaults_and_ranges(name):
    kind = find_stage(name)
    assert kind.name == name
    assert kind.__doc__
    options = kind.Options()
    assert isinstance(options, StageOptions)
    for field in dataclasses.fields(options):
        if not isinstance(getattr(options, field.name), bool):
            with pytest.raises(RecipeError, match=field.name):
                dataclasses.replace(options, **{field.name: WRONG[field.name]})


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_finite_and_only_what_is_said_to_be_trained_changes(name, runs):
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


# What batch norm sees of the padding, match does too: it is about the same moments.
@pytest.mark.parametrize("name", [n for n in TRAINED if n != "match"])
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
    """Stage 2 of a network that sees the first of three classes nearly everywhere; the others win too little."""
    made = prepared("selftrain", tmp_path_factory.mktemp("labeller"), network())[0]
    made.habits = ClassPriors(
        torch.tensor([0.9, 0.07, 0.03]).view(3, 1, 1).expand(3, 8, 8), torch.tensor([0.95, 50.0, 60.0])
    )
    return made


def labels_of(stage, probs, **options):
    """Positive labels and, C×H×W, negative ones."""
    stage.options = dataclasses.replace(stage.options, **options)
    arrays = stage._label(probs)
    return arrays["labels"], unpack_negatives(arrays["negatives"], len(probs))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 1.0]), st.floats(0.01, 1))
def test_no_pixel_s_own_label_is_ruled_out(labeller, seed, balance, share):
    logits = np.random.default_rng(seed).normal(0, 3, (3, 4, 5))
    probs = torch.from_numpy(logits).float().softmax(0)
    labels, negatives = labels_of(labeller, probs, class_balance=balance, top_fraction=share)
    for c in range(3):
        assert not (negatives[c] & (labels == c)).any()


@pytest.mark.parametrize(("stage", "labels"), [("selftrain", "_label"), ("propagate", "_teach")])
def test_labels_follow_balance_and_layout(stage, labels, tmp_path):
    """Class 0 is usual above, class 1 below, class 2 wins too little; every pixel leans to class 0 a little."""
    made = prepared(stage, tmp_path, network())[0]
    layout = torch.tensor([[0.66, 0.32], [0.32, 0.66], [0.02, 0.02]]).view(3, 2, 1)
    made.habits = ClassPriors(layout, torch.tensor([0.98, 1.0, 2.0]))
    probs = torch.tensor([0.4, 0.35, 0.25]).view(3, 1, 1).expand(3, 4, 2)
    found = {}
    for balance, layout in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        more = {"top_fraction": 1.0} if stage == "selftrain" else {}
        made.options = dataclasses.replace(made.options, class_balance=balance, spatial_prior_weight=layout, **more)
        found[balance, layout] = getattr(made, labels)(probs)["labels"][:, 0].tolist()
    assert found == {(0.0, 0.0): [0, 0, 0, 0], (0.0, 1.0): [0, 0, 1, 1], (1.0, 0.0): [2, 2, 2, 2]}


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
def test_pairwise_is_one_more_loss_of_what_the_student_is_shown(stage, tmp_path):
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
def test_images_are_drawn_by_the_rare_classes_of_their_labels_if_asked_for(stage, tmp_path):
    made, samples = prepared(stage, tmp_path / "rare", network(), rare_temperature=0.1)
    expected = RareClasses([one["labels"] for one in made.pseudo_labels], 0.1)
    for drawn in (samples,) if stage == "selftrain" else (samples.easy, samples.hard):
        assert drawn.rare.chances.tolist() == expected.chances.tolist()
        assert drawn.rare.shown.tolist() == expected.shown.tolist()
    _, samples = prepared(stage, tmp_path / "even", network())
    for drawn in (samples,) if stage == "selftrain" else (samples.easy, samples.hard):
        assert drawn.rare is None


def test_thresholds_over_all_images_let_a_class_win_that_exceeds_its_own_most(tmp_path):
    stage, _ = prepared("selftrain", tmp_path, network(), thresholds="data", top_fraction=0.5, class_balance=0.0, spatial_prior_weight=0.0)
    assert stage.thresholds.shape == (3,)
    factors = torch.tensor([[1.1, 0.9], [1.2, 0.8], [0.1, 0.7]])
    probs = stage.thresholds[:, None] * factors
    assert stage._label(probs[:, :, None])["labels"].flatten().tolist() == [1, 255]
    # Half of the pixels that the data set shows of a class reach its threshold, though not half of every image's.
    store = stage.pseudo_labels
    labels = np.stack([store[i]["labels"] for i in range(len(store))])
    assert (labels != 255).mean() >= 0.5
    shares = [(one != 255).mean() for one in labels]
    assert max(shares) > min(shares)


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
def test_smoothing_draws_labelled_pixels_to_equal_shares(stage, tmp_path):
    segmenter = network().eval()
    made, samples = prepared(stage, tmp_path, segmenter)
    batch = torch.utils.data.default_collate([samples[n] for n in range(2)])
    found = []
    with torch.no_grad():
        for smoothing in (0.0, 0.5):
            made.options = dataclasses.replace(made.options, smoothing=smoothing)
            losses = made.loss(segmenter, batch)
            found.append(sum(loss.item() for name, loss in losses.items() if name != "negative"))
        spread = -segmenter(batch["image"]).log_softmax(1).mean(1)
    labelled = batch["labels"] != 255
    parts = [...] if stage == "selftrain" else [0, 1]  # stage 3 takes the mean of the easy and of the hard half
    expected = sum(spread[part][labelled[part]].mean().item() for part in parts)
    assert found[1] == pytest.approx(0.5 * found[0] + 0.5 * expected, rel=1e-5)


def test_the_layout_is_the_mean_prediction_by_place(tmp_path):
    """The first class is seen above, the second below; as many as eight images are alike everywhere."""
    context = bench_of(tmp_path, network())
    upper = torch.zeros(3, 16, 16)
    upper[0, :8], upper[1, 8:] = 1.0, 1.0
    context.predict = lambda batch: upper.expand(len(batch), 3, 16, 16)
    layout, underprediction_ratio = context.habits()
    count = len(context.images)
    assert layout.shape == (3, 8, 8)
    torch.testing.assert_close(layout.sum(0), torch.ones(8, 8))
    torch.testing.assert_close(layout[0, 0, 0], torch.tensor((count + 8 * 0.5) / (count + 8)), atol=1e-4, rtol=0)
    torch.testing.assert_close(layout[0, 7, 7], torch.tensor(8 * 0.5 / (count + 8)), atol=1e-4, rtol=0)
    torch.testing.assert_close(underprediction_ratio, torch.ones(3))


def test_the_shortfall_is_what_a_class_wins_too_little(tmp_path):
    """The second class has 0.4 of every pixel of one half and wins none; the third is seen nowhere."""
    context = bench_of(tmp_path, network())
    probs = torch.zeros(3, 16, 16)
    probs[0] = 1.0
    probs[0, :8], probs[1, :8] = 0.6, 0.4
    context.predict = lambda batch: probs.expand(len(batch), 3, 16, 16)
    expected = torch.tensor([(0.8 + 1e-3) / (1 + 1e-3), (0.2 + 1e-3) / 1e-3, 1.0])
    torch.testing.assert_close(context.habits().underprediction_ratio, expected)


def test_the_prior_of_stage_1_is_the_mean_prediction_and_more_of_what_wins_too_little(tmp_path, monkeypatch):
    habits = ClassPriors(torch.tensor([0.7, 0.2, 0.1]).view(3, 1, 1).expand(3, 8, 8), torch.tensor([1.0, 1.0, 4.0]))
    monkeypatch.setattr("das3.stages.align.class_priors", lambda self: habits)
    stage, _ = prepared("align", tmp_path, network(), class_balance=0.5)
    torch.testing.assert_close(stage.prior, torch.tensor([0.7, 0.2, 0.2]) / 1.1)


def test_stage_1_hands_on_norm_statistics_of_whole_images(tmp_path):
    segmenter = network()
    stage, _ = prepared("align", tmp_path, segmenter)
    context = bench_of(tmp_path, segmenter)
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
def test_a_share_of_the_weights_that_entered_stays(name, tmp_path):
    segmenter = network()
    stage, _ = prepared(name, tmp_path, segmenter, source_weight=0.25)
    before = segmenter.model[0].weight.detach().clone()
    with torch.no_grad():
        segmenter.model[0].weight.add_(4)
    stage.finish(bench_of(tmp_path, segmenter))
    torch.testing.assert_close(segmenter.model[0].weight, before + 3)


def test_a_rare_class_that_wins_below_the_threshold_is_not_ruled_out(labeller):
    probs = torch.tensor([0.96, 0.03, 0.01]).view(3, 1, 1).expand(3, 2, 2)
    labels, negatives = labels_of(labeller, probs, class_balance=0.0, top_fraction=1.0)
    assert (labels == 0).all()
    assert negatives[:, 0, 0].tolist() == [False, True, True]
    labels, negatives = labels_of(labeller, probs, class_balance=1.0, top_fraction=1.0)
    rare = int(labels[0, 0])
    assert rare == 1
    assert probs[rare, 0, 0] < labeller.options.negative_threshold
    assert negatives[:, 0, 0].tolist() == [False, False, True]
