"""Copies in other tones or larger: what they show, what a model tells of them, and which of them is best."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from das3.bench import Bench, Insight
from das3.data.images import open_images
from das3.engine import make_fabric
from das3.looks import LOOKS, PLAIN, TONES, ZOOMS, information, larger
from das3.norms import reestimate
from das3.segmenter import Preprocess, Segmenter
from das3.stages import find_stage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("tone", TONES)
def test_a_tone_stays_in_range_and_keeps_black_grey_and_the_order_of_greys(tone):
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    toned = TONES[tone](images)
    assert toned.shape == images.shape
    assert toned.min() >= 0
    assert toned.max() <= 1
    assert torch.equal(images, before)
    greys = torch.linspace(0, 1, 9).expand(1, 3, 1, 9)
    toned = TONES[tone](greys)
    assert torch.equal(toned[:, 0], toned[:, 1])
    assert toned[..., 0].abs().max() == 0
    assert (toned.diff(dim=-1) >= 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 5))
def test_information_is_that_of_image_and_class(seed, classes, count):
    """Against I = Σ p(x, c) log p(c | x) / p(c), in bits of log C."""
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).clip(1e-12)
    marginal = p.mean(axis=0)
    expected = (p * np.log(p / marginal)).sum(axis=1).mean() / np.log(classes)
    entropies = -(p * np.log(p)).sum(axis=1) / np.log(classes)
    assert information(torch.tensor(p), torch.tensor(entropies)) == pytest.approx(expected, abs=1e-9)


class Skies:
    """Bright above and dark below, the bright half tinted."""

    def __init__(self, tint, count=12):
        self.tint, self.count = np.asarray(tint), count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        image = np.full((16, 16, 3), 40.0)
        image[:8] = self.tint
        noise = np.random.default_rng(i).normal(0, 3, image.shape)
        return (image + noise).clip(0, 255).astype(np.uint8), None


def told_by(weights, bias):
    """Two classes told by a linear function of the pixel's colour."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        layers[0].weight[0, :, 0, 0] = torch.tensor(weights)
        layers[0].bias[0] = bias
        layers[1].weight[:, 0, 0, 0] = torch.tensor([20.0, -20.0])
    as_it_is = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Segmenter(layers, preprocess=as_it_is, example_size=(16, 16)).eval()


def bench_of(folder, segmenter, tint):
    return Bench(make_fabric("cpu", "32"), segmenter, open_images(Skies(tint)), folder, (0, 0), (16, 16), 4)


WHITE, BLUE = (220, 220, 220), (60, 130, 230)
# Sky is what is red: white is, and in grey blue is, too.
RED = ([1.0, 0.0, 0.0], -0.3)
# Above is what is bluer than it is red, below what is not: grey tells nothing.
HUE = ([-1.0, 0.0, 1.0], -0.3)


def test_grey_is_best_where_colour_misleads_the_model(tmp_path):
    assert bench_of(tmp_path / "blue", told_by(*RED), BLUE).best_look(zooms=False) == "grey"
    assert bench_of(tmp_path / "white", told_by(*RED), WHITE).best_look(zooms=False) != "grey"


def test_grey_is_not_best_where_the_model_needs_colour(tmp_path):
    assert bench_of(tmp_path, told_by(*HUE), BLUE).best_look(zooms=False) not in ("grey", "faded")


def test_a_tone_that_shows_more_and_leaves_the_model_in_doubt_is_not_best(tmp_path, monkeypatch):
    """It turns half of the ground, surely one thing, into a bit more than doubt."""
    bench = bench_of(tmp_path, told_by(*RED), WHITE)
    sure, unsure = torch.zeros(2, 2, 16, 16), torch.zeros(2, 2, 16, 16)
    sure[:, 0], sure[:, 1] = 0.99, 0.01
    unsure[:, 0, :4], unsure[:, 0, 4:12], unsure[:, 0, 12:] = 1.0, 0.5, 0.0
    unsure[:, 1] = 1 - unsure[:, 0]
    monkeypatch.setattr(
        bench,
        "predict",
        lambda batch, tone: (unsure if tone == "darker" else sure)[:1].expand(len(batch), 2, 16, 16),
    )
    assert bench.best_look(zooms=False) is None
    unsure[:, 0, :8], unsure[:, 0, 8:] = 1.0, 0.0
    unsure[:, 1] = 1 - unsure[:, 0]
    bench.folder = tmp_path / "again"
    assert bench.best_look(zooms=False) == "darker"


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
@pytest.mark.parametrize("tones", [True, False])
def test_labels_follow_the_best_tone(stage, tones, tmp_path):
    more = {"share": 1.0} if stage == "selftrain" else {}
    options = find_stage(stage).Options(tones=tones, zooms=False, balance=0.0, layout=0.0, **more)
    made = find_stage(stage)(options)
    made.prepare(bench_of(tmp_path, told_by(*RED), BLUE))
    labels = made.pseudo_labels[0]["labels"]
    assert (labels[8:] == 1).all()
    assert (labels[:8] == (0 if tones else 1)).mean() > 0.9
    assert (tmp_path / "looks").exists() == tones


@pytest.mark.parametrize("look", [None, PLAIN, "brighter", "grey x1.5"])
def test_labels_are_made_on_the_looks_own_statistics_which_are_then_forgotten(look, tmp_path):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    as_it_is = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    bench = bench_of(tmp_path, Segmenter(layers, preprocess=as_it_is, example_size=(16, 16)).eval(), BLUE)
    before = {k: v.clone() for k, v in layers.state_dict().items()}
    seen = []
    bench.label_all("seen", lambda probs: seen.append(probs) or {}, look=look)
    assert all(torch.equal(before[k], v) for k, v in layers.state_dict().items())
    # Batches of 4 images; 1.5 times larger, one by one, so that they take no more memory.
    shown = [
        part for batch in bench.batches() for part in LOOKS[look or PLAIN](batch).split(1 if look == "grey x1.5" else 4)
    ]
    if look:
        reestimate(layers, shown)
    with torch.no_grad():
        logits = torch.cat([layers.eval()(part) for part in shown])
    expected = nn.functional.interpolate(logits, size=(16, 16), mode="bilinear").softmax(1)
    torch.testing.assert_close(torch.stack(seen), expected)


@pytest.mark.parametrize("zoom", ZOOMS)
def test_a_larger_copy_shows_the_same(zoom):
    """A ramp stays a ramp."""
    ramp = torch.linspace(0, 1, 20).expand(1, 3, 10, 20)
    shown = LOOKS[larger(PLAIN, zoom)](ramp)
    assert shown.shape == (1, 3, round(10 * zoom), round(20 * zoom))
    steps = shown[0, 0, 0].diff()[2:-2]
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 19 / zoom), atol=1e-5, rtol=0)
    assert torch.equal(LOOKS[larger("darker", zoom)](ramp), LOOKS[larger(PLAIN, zoom)](ramp**1.6))


LINES = [2, 3, 7, 8, 12, 13]


class Lines(Skies):
    """Dark, with bright lines two pixels wide."""

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        image = np.full((16, 16, 3), 20, np.uint8)
        image[:, LINES] = 220
        noise = np.random.default_rng(i).normal(0, 3, image.shape)
        return (image + noise).clip(0, 255).astype(np.uint8), None


class Coarse(nn.Module):
    """Bright and dark told apart after a blur of 3 × 3 pixels, so that a line has to be that wide."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.told = told_by([1.0, 0.0, 0.0], -0.6).model

    def forward(self, images):
        return self.told(self.pool(images))


def tell(bench, monkeypatch, found):
    """Let the model tell of each look (information, doubt) as `found` says; the looks it was asked for."""
    tried = []
    monkeypatch.setattr(bench, "insight", lambda name, look: tried.append(look) or Insight(*found[look]))
    return tried


@pytest.mark.parametrize(
    ("found", "best", "tried"),
    [
        ({"plain": (0.5, 0.2), "plain x1.25": (0.5, 0.15), "plain x1.5": (0.5, 0.14)}, "plain x1.5", 3),
        ({"plain": (0.5, 0.2), "plain x1.25": (0.5, 0.15), "plain x1.5": (0.5, 0.16)}, "plain x1.25", 3),
        ({"plain": (0.5, 0.2), "plain x1.25": (0.5, 0.19)}, None, 2),  # hardly surer
        ({"plain": (0.5, 0.2), "plain x1.25": (0.48, 0.1)}, None, 2),  # surer of fewer classes
        ({"plain": (0.5, 0.2), "plain x1.25": (0.495, 0.1), "plain x1.5": (0.48, 0.05)}, "plain x1.25", 3),
    ],
)
def test_images_are_enlarged_as_long_as_the_model_is_much_surer_of_them(found, best, tried, tmp_path, monkeypatch):
    bench = bench_of(tmp_path, told_by(*RED), WHITE)
    looks = tell(bench, monkeypatch, found)
    assert bench.best_look(tones=False) == best
    assert looks == list(found)[:tried]
    assert bench.best_look(tones=False, zooms=False) is None


def test_zooms_are_tried_in_the_best_tone(tmp_path, monkeypatch):
    bench = bench_of(tmp_path, told_by(*RED), WHITE)
    found = dict.fromkeys(TONES, (0.5, 0.2)) | {"grey": (0.6, 0.15)}
    found |= {"grey x1.25": (0.6, 0.1), "grey x1.5": (0.6, 0.2)}
    tell(bench, monkeypatch, found)
    assert bench.best_look() == "grey x1.25"
    assert bench.best_look(zooms=False) == "grey"


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
@pytest.mark.parametrize("zooms", [True, False])
def test_labels_are_made_of_larger_images_where_the_model_is_too_coarse(stage, zooms, tmp_path):
    """Lines that a blurring network can't tell from the ground it tells once they are wider."""
    as_it_is = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    segmenter = Segmenter(Coarse(), preprocess=as_it_is, example_size=(16, 16)).eval()
    bench = Bench(make_fabric("cpu", "32"), segmenter, open_images(Lines(WHITE)), tmp_path, (0, 0), (16, 16), 4)
    more = {"share": 1.0} if stage == "selftrain" else {}
    made = find_stage(stage)(find_stage(stage).Options(tones=False, zooms=zooms, balance=0.0, layout=0.0, **more))
    made.prepare(bench)
    truth = np.ones((16, 16), np.uint8)
    truth[:, LINES] = 0
    right = (made.pseudo_labels[0]["labels"] == truth).mean()
    assert right > 0.9 if zooms else right < 0.8
