"""Which look of its images a model is shown: what it tells of each, and what follows for the stages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import worlds
from das3.data.open import open_images
from das3.input_transforms import COLOR_TRANSFORMS, InputTransform, estimate_illumination
from das3.norms import reestimate
from das3.registry import find_stage
from das3.segmenter import Preprocess, Segmenter
from das3.stages.choose_transform import ConfidenceStatistics
from das3.stages.context import StageContext
from das3.training.loop import make_fabric

pytestmark = pytest.mark.usefixtures("one_thread")


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


def looks_best(context, *, color_transforms=True, upscale=False):
    """Name of the best look."""
    best = context._CHOOSE_(color_transforms=tones, upscale=zooms)
    assert (best is context) == (best.look is None)
    return best.look.name if best.look else "plain"


def bench_of(folder, segmenter, tint):
    return StageContext(make_fabric("cpu", "32"), segmenter, open_images(Skies(tint)), folder, (0, 0), (16, 16), 4)


WHITE, BLUE = (220, 220, 220), (60, 130, 230)
# Sky is what is red: white is, and in grey blue is, too.
RED = ([1.0, 0.0, 0.0], -0.3)
# Above is what is bluer than it is red, below what is not: grey tells nothing.
HUE = ([-1.0, 0.0, 1.0], -0.3)


def test_grey_is_best_where_colour_misleads_the_model(tmp_path):
    assert looks_best(bench_of(tmp_path / "blue", told_by(*RED), BLUE)) == "grey"
    assert looks_best(bench_of(tmp_path / "white", told_by(*RED), WHITE)) != "grey"


def test_grey_is_not_best_where_the_model_needs_colour(tmp_path):
    assert "grey" not in looks_best(bench_of(tmp_path, told_by(*HUE), BLUE))


def tell(monkeypatch, found):
    """Let the model tell of each look (information, doubt) as `found` says; the looks it was asked for."""
    tried = []

    def insight(context, name):
        tried.append(context.look.name)
        assert name == f"looks/{context.look.name}"
        return ConfidenceStatistics(*found.get(context.look.name, (0.1, 0.9)))

    monkeypatch.setattr(StageContext, "insight", insight)
    return tried


@pytest.mark.parametrize(
    ("grey", "best"),
    [
        ((0.52, 0.19), "grey"),
        ((0.52, 0.21), "plain"),  # it shows more and leaves the model in doubt: background turned into objects
        ((0.505, 0.1), "plain"),  # hardly more
    ],
)
def test_a_tone_has_to_tell_clearly_more_and_leave_less_doubt(grey, best, tmp_path, monkeypatch):
    tried = tell(monkeypatch, {"plain": (0.5, 0.2), "grey": grey})
    assert looks_best(bench_of(tmp_path, told_by(*RED), WHITE)) == best
    assert tried[:7] == ["plain", "evenly lit", *COLOR_TRANSFORMS]
    assert len(tried) == (12 if best == "grey" else 7)


def test_tones_are_tried_on_top_of_the_best_as_long_as_they_tell_more(tmp_path, monkeypatch):
    found = {"plain": (0.5, 0.3), "lifted": (0.55, 0.28), "smooth": (0.54, 0.2), "lifted lifted": (0.6, 0.25)}
    found |= {"lifted smooth": (0.58, 0.2), "lifted lifted smooth": (0.605, 0.1)}
    tried = tell(monkeypatch, found)
    assert looks_best(bench_of(tmp_path, told_by(*RED), WHITE)) == "lifted lifted"
    assert len(tried) == 17
    tell(monkeypatch, {" ".join(["darker"] * n) or "plain": (0.5 + 0.05 * n, 0.3 - 0.05 * n) for n in range(6)})
    assert looks_best(bench_of(tmp_path, told_by(*RED), WHITE)) == "darker darker darker"


@pytest.mark.parametrize(
    ("even", "best"),
    [
        ((0.4, 0.1), "evenly lit"),  # of a rare class there is less to tell, but no less of it is told
        ((0.37, 0.14), "evenly lit"),  # or little less
        ((0.4, 0.19), "plain"),  # hardly surer
        ((0.2, 0.1), "plain"),  # surer, since it sees less
    ],
)
def test_images_are_evenly_lit_where_the_model_is_much_surer_of_them(even, best, tmp_path, monkeypatch):
    tried = tell(monkeypatch, {"plain": (0.6, 0.2), "evenly lit": even})
    context = bench_of(tmp_path, told_by(*RED), WHITE)
    assert looks_best(context) == best
    assert tried[:2] == ["plain", "evenly lit"]
    assert looks_best(context, color_transforms=False, upscale=True) == "plain"


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
@pytest.mark.parametrize("tones", [True, False])
def test_labels_follow_the_best_tone(stage, tones, tmp_path):
    more = {"top_fraction": 1.0} if stage == "selftrain" else {}
    options = find_stage(stage).Options(color_transforms=tones, upscale=False, class_balance=0.0, spatial_prior_weight=0.0, **more)
    made = find_stage(stage)(options)
    made.prepare(bench_of(tmp_path, told_by(*RED), BLUE))
    assert made.input_transform == ("grey" if tones else "plain")
    labels = made.pseudo_labels[0]["labels"]
    assert (labels[8:] == 1).all()
    assert (labels[:8] == (0 if tones else 1)).mean() > 0.9
    assert (tmp_path / "looks").exists() == tones


@pytest.mark.parametrize(
    "look",
    [
        None,
        InputTransform(),
        InputTransform(("lifted",)),
        InputTransform(("grey",), 2.0),
        InputTransform(light=torch.rand(1, 1, 8, 8)),
    ],
)
def test_labels_are_made_on_the_looks_own_statistics_which_are_then_forgotten(look, tmp_path):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    as_it_is = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    context = bench_of(tmp_path, Segmenter(layers, preprocess=as_it_is, example_size=(16, 16)).eval(), BLUE)
    before = {k: v.clone() for k, v in layers.state_dict().items()}
    seen = []
    replace(context, look=look).label_all("seen", lambda probs: seen.append(probs) or {})
    assert all(torch.equal(before[k], v) for k, v in layers.state_dict().items())
    # Batches of 4 images; twice as large, one by one, so that they take no more memory.
    at_once = 1 if look and look.zoom > 1 else 4
    shown = [part for batch in context.batches() for part in (look or InputTransform())(batch).split(at_once)]
    if look:
        reestimate(layers, shown)
    with torch.no_grad():
        logits = torch.cat([layers.eval()(part) for part in shown])
    expected = nn.functional.interpolate(logits, size=(16, 16), mode="bilinear").softmax(1)
    torch.testing.assert_close(torch.stack(seen), expected)


def test_samples_are_shown_in_the_look_but_for_its_zoom(tmp_path):
    context = bench_of(tmp_path, told_by(*RED), BLUE)
    look = InputTransform(("lifted",), 2.0, estimate_illumination(context.batches()))
    options = find_stage("align").Options()
    plain, shown = context.samples(options), replace(context, look=look).samples(options)
    for n in range(5):
        i = plain.pick(n)
        as_it_is = torch.from_numpy(context.images[i]).permute(2, 0, 1)[None] / 255
        wanted = replace(look, zoom=1.0)(as_it_is)[0]
        sample = shown[n]["image"]
        assert min((sample - w).abs().max() for w in (wanted, wanted.flip(-1))) <= 0.5 / 255 + 1e-6
        assert torch.equal(plain[n]["image"][:, :, 0], as_it_is[0, :, :, 0]) or torch.equal(
            plain[n]["image"][:, :, 0], as_it_is[0, :, :, -1]
        )


@pytest.mark.parametrize("tones", [True, False])
def test_stage_1_trains_on_the_best_tone_and_hands_on_statistics_of_plain_images(tones, tmp_path):
    context = bench_of(tmp_path, told_by(*RED), BLUE)
    stage = find_stage("align")(find_stage("align").Options(color_transforms=tones))
    image = stage.prepare(context)[0]["image"]
    assert torch.equal(image[0], image[1]) == tones
    seen = []
    context.segmenter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    context.segmenter.model.append(nn.BatchNorm2d(2))
    stage.finish(context)
    assert not torch.equal(seen[0][:, 0], seen[0][:, 1])


def test_stage_1_with_held_statistics_trains_on_the_images_as_they_are(tmp_path):
    context = bench_of(tmp_path, told_by(*RED), BLUE)
    options = find_stage("align").Options(bn_mode="target")
    image = find_stage("align")(options).prepare(context)[0]["image"]
    assert not torch.equal(image[0], image[1])
    assert not (tmp_path / "looks").exists()


LINES = [2, 3, 7, 8, 12, 13, 17, 18]


class Lines(Skies):
    """Dark, with bright lines two pixels wide."""

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        image = np.full((24, 24, 3), 20, np.uint8)
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


@pytest.mark.parametrize(
    ("found", "best", "tried"),
    [
        ({"x1.33": (0.5, 0.15), "x1.67": (0.5, 0.12), "x2": (0.5, 0.1)}, "x2", 3),
        ({"x1.33": (0.5, 0.15), "x1.67": (0.5, 0.145)}, "x1.33", 2),  # hardly surer than before
        ({"x1.33": (0.4, 0.1), "x1.67": (0.05, 0.05)}, "x1.33", 2),  # surer of a thinner one, of none
        ({"x1.33": (0.5, 0.19)}, "plain", 1),  # hardly surer
        ({"x1.33": (0.1, 0.1)}, "plain", 1),  # surer of fewer classes
    ],
)
def test_images_are_zoomed_as_long_as_the_model_is_much_surer_of_them(found, best, tried, tmp_path, monkeypatch):
    context = bench_of(tmp_path, told_by(*RED), WHITE)
    looks = tell(monkeypatch, {"plain": (0.5, 0.2), **found})
    assert looks_best(context, color_transforms=False, upscale=True) == best
    assert looks == ["plain", *found][: tried + 1]


def test_light_then_tones_then_zooms(tmp_path, monkeypatch):
    context = bench_of(tmp_path, told_by(*RED), WHITE)
    found = {"plain": (0.5, 0.3), "evenly lit": (0.5, 0.2), "grey": (0.7, 0.1), "evenly lit grey": (0.6, 0.15)}
    found |= {"evenly lit grey x1.33": (0.6, 0.1), "evenly lit grey x1.67": (0.6, 0.2)}
    tell(monkeypatch, found)
    assert looks_best(context, upscale=True) == "evenly lit grey x1.33"
    assert looks_best(context) == "evenly lit grey"


class Spots(Skies):
    """A dark spot on a bright ground, under light that leaves the corners as dark."""

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        image = np.full((16, 16, 3), 190.0)
        y, x = np.random.default_rng(i).integers(2, 10, 2)
        image[y : y + 4, x : x + 4] = 90
        return (image * worlds.dark_corners(16)[..., None]).clip(0, 255).astype(np.uint8), None

    def truth(self, i):
        """0 on the spot, else 1."""
        y, x = np.random.default_rng(i).integers(2, 10, 2)
        label = np.ones((16, 16), np.uint8)
        label[y : y + 4, x : x + 4] = 0
        return label


@pytest.mark.parametrize("stage", ["align", "selftrain", "propagate"])
@pytest.mark.parametrize("light", [True, False])
def test_dark_corners_are_no_spots_where_the_light_is_evened(stage, light, tmp_path):
    spots = Spots(WHITE, 40)
    segmenter = told_by([-1.0, 0.0, 0.0], 0.52)
    with torch.no_grad():
        segmenter.model[1].weight *= 0.5
    context = StageContext(make_fabric("cpu", "32"), segmenter, open_images(spots), tmp_path, (0, 0), (16, 16), 4)
    more = {"top_fraction": 1.0} if stage == "selftrain" else {}
    more |= {} if stage == "align" else {"upscale": False, "spatial_prior_weight": 0.0}
    made = find_stage(stage)(find_stage(stage).Options(color_transforms=light, class_balance=0.0, **more))
    samples = made.prepare(context)
    if stage == "align":
        image = samples[0]["image"]
        assert (image[:, :2, :2].mean() > 0.6) == light
        return
    right = np.mean([(made.pseudo_labels[i]["labels"] == spots.truth(i)).mean() for i in range(40)])
    assert right > 0.97 if light else right < 0.93


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
@pytest.mark.parametrize("zooms", [True, False])
def test_labels_are_made_of_larger_images_where_the_model_is_too_coarse(stage, zooms, tmp_path):
    """Lines that a blurring network can't tell from the ground it tells once they are wider."""
    as_it_is = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    segmenter = Segmenter(Coarse(), preprocess=as_it_is, example_size=(24, 24)).eval()
    context = StageContext(
        make_fabric("cpu", "32"), segmenter, open_images(Lines(WHITE)), tmp_path, (0, 0), (24, 24), 4
    )
    more = {"top_fraction": 1.0} if stage == "selftrain" else {}
    made = find_stage(stage)(find_stage(stage).Options(color_transforms=False, upscale=zooms, class_balance=0.0, spatial_prior_weight=0.0, **more))
    made.prepare(context)
    truth = np.ones((24, 24), np.uint8)
    truth[:, LINES] = 0
    right = (made.pseudo_labels[0]["labels"] == truth).mean()
    assert right > 0.9 if zooms else right < 0.8


def test_a_network_that_takes_one_size_only_is_shown_no_other(tmp_path):
    class OneSize(Coarse):
        def forward(self, images):
            return super().forward(images) + torch.zeros(1, 1, 24, 24)

    as_it_is = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(24, 24))
    segmenter = Segmenter(OneSize(), preprocess=as_it_is, example_size=(24, 24)).eval()
    assert segmenter.takes(24, 24)
    assert not segmenter.takes(25, 24)
    context = StageContext(
        make_fabric("cpu", "32"), segmenter, open_images(Lines(WHITE)), tmp_path, (0, 0), (24, 24), 4
    )
    assert looks_best(context, color_transforms=False, upscale=True) == "plain"
