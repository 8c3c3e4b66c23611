"""Which input transform is chosen for a model: its confidence under each, and what follows for the stages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import worlds
from das3.data.open import open_images
from das3.input_transforms import COLOR_TRANSFORMS, InputTransform, estimate_illumination
from das3.losses import entropy_of_probs, mutual_information
from das3.norms import reestimate
from das3.registry import find_stage
from das3.segmenter import Preprocess, Segmenter
from das3.stages import choose_transform
from das3.stages.choose_transform import (
    IMAGES_FOR_FIRST_LOOK,
    PASSES_OF_A_STEP,
    SHARE_OF_STAGE,
    ConfidenceStatistics,
    choose_input_transform,
    confidence_of_images,
    confidence_statistics,
)
from das3.stages.context import StageContext
from das3.stages.image_views import Windows
from das3.training.loop import make_fabric

UNCHANGED = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


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


def color_classifier(weights, bias):
    """Two classes, separated by a linear function of the pixel's colour."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        layers[0].weight[0, :, 0, 0] = torch.tensor(weights)
        layers[0].bias[0] = bias
        layers[1].weight[:, 0, 0, 0] = torch.tensor([20.0, -20.0])
    return Segmenter(layers, preprocess=UNCHANGED, example_size=(16, 16)).eval()


def best_transform(context, *, color=True, upscale=False):
    """Name of the transform that is chosen."""
    best = choose_input_transform(context, 1000, color=color, upscale=upscale)
    assert (best is context) == (best.transform is None)
    return best.transform_name


def context_of(folder, segmenter, images):
    """A stage's context; its crop is the size of the images."""
    target = open_images(images)
    return StageContext(make_fabric("cpu", "32"), segmenter, target, folder, (0, 0), target.size(0), 4)


def context_of_skies(folder, segmenter, tint):
    return context_of(folder, segmenter, Skies(tint))


WHITE, BLUE = (220, 220, 220), (60, 130, 230)
UNADJUSTED = {"class_balance": 0.0, "spatial_prior_weight": 0.0}
# Sky is what is red: white is, and in grayscale blue is, too.
RED = ([1.0, 0.0, 0.0], -0.3)
# Above is what is bluer than it is red, below what is not: grayscale images show nothing of that.
HUE = ([-1.0, 0.0, 1.0], -0.3)


def test_grayscale_is_chosen_where_colour_misleads_the_model(tmp_path):
    assert best_transform(context_of_skies(tmp_path / "blue", color_classifier(*RED), BLUE)) == "grayscale"
    assert best_transform(context_of_skies(tmp_path / "white", color_classifier(*RED), WHITE)) != "grayscale"


def test_grayscale_is_not_chosen_where_the_model_needs_colour(tmp_path):
    assert "grayscale" not in best_transform(context_of_skies(tmp_path, color_classifier(*HUE), BLUE))


def fake_statistics(monkeypatch, found):
    """Let (mutual information, mean entropy) under each transform be as `found` says; the transforms that are tried."""
    tried = []

    def confidence(search, transform, looks=None):
        if transform.name not in tried:
            tried.append(transform.name)
        return ConfidenceStatistics(*found.get(transform.name, (0.1, 0.9)))

    monkeypatch.setattr("das3.stages.choose_transform._Search.confidence", confidence)
    return tried


def test_statistics_are_those_of_the_predictions_for_transformed_images(tmp_path):
    context = context_of_skies(tmp_path, color_classifier(*RED), BLUE)
    context = replace(context, transform=InputTransform(("grayscale",)))
    with torch.no_grad():
        shown = torch.cat([COLOR_TRANSFORMS["grayscale"](batch) for batch in context.batches()])
        probs = context.segmenter(shown).softmax(1)
    entropies = entropy_of_probs(probs).mean((1, 2))
    found = confidence_statistics(confidence_of_images(context, "statistics", context.groups()))
    assert found.mutual_information == pytest.approx(mutual_information(probs.mean((2, 3)), entropies), abs=1e-6)
    assert found.mean_entropy == pytest.approx(entropies.mean().item(), abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1))
def test_to_improve_the_information_must_grow_and_the_entropy_fall(information, entropy, other, other_entropy, by):
    improves_on = ConfidenceStatistics(information, entropy).improves_on(ConfidenceStatistics(other, other_entropy), by)
    assert improves_on == (information > other + by and entropy < other_entropy)


@pytest.mark.parametrize(
    ("grayscale", "best"),
    [
        ((0.52, 0.19), "grayscale"),
        ((0.52, 0.21), "none"),  # more classes, but a larger entropy: background turned into objects
        ((0.505, 0.1), "none"),  # hardly more information
    ],
)
def test_a_color_transform_must_raise_mutual_information_and_lower_entropy(grayscale, best, tmp_path, monkeypatch):
    tried = fake_statistics(monkeypatch, {"none": (0.5, 0.2), "grayscale": grayscale})
    assert best_transform(context_of_skies(tmp_path, color_classifier(*RED), WHITE)) == best
    assert tried[:7] == ["none", "even illumination", *COLOR_TRANSFORMS]
    assert len(tried) == (12 if best == "grayscale" else 7)


def test_color_transforms_are_added_as_long_as_mutual_information_grows(tmp_path, monkeypatch):
    found = {"none": (0.5, 0.3), "brighter": (0.55, 0.28), "smooth": (0.54, 0.2), "brighter brighter": (0.6, 0.25)}
    found |= {"brighter smooth": (0.58, 0.2), "brighter brighter smooth": (0.605, 0.1)}
    tried = fake_statistics(monkeypatch, found)
    assert best_transform(context_of_skies(tmp_path, color_classifier(*RED), WHITE)) == "brighter brighter"
    assert len(tried) == 17
    fake_statistics(
        monkeypatch, {" ".join(["darker"] * n) or "none": (0.5 + 0.05 * n, 0.3 - 0.05 * n) for n in range(6)}
    )
    assert best_transform(context_of_skies(tmp_path, color_classifier(*RED), WHITE)) == "darker darker darker"


@pytest.mark.parametrize(
    ("even", "best"),
    [
        ((0.4, 0.1), "even illumination"),  # a rare class: less information in all, the normalised one is no smaller
        ((0.37, 0.14), "even illumination"),  # or a little smaller
        ((0.4, 0.19), "none"),  # hardly more confident
        ((0.2, 0.1), "none"),  # more confident since it sees fewer classes
    ],
)
def test_illumination_is_evened_where_the_model_is_much_more_confident(even, best, tmp_path, monkeypatch):
    tried = fake_statistics(monkeypatch, {"none": (0.6, 0.2), "even illumination": even})
    context = context_of_skies(tmp_path, color_classifier(*RED), WHITE)
    assert best_transform(context) == best
    assert tried[:2] == ["none", "even illumination"]
    assert best_transform(context, color=False, upscale=True) == "none"


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
@pytest.mark.parametrize("color", [True, False])
def test_labels_are_made_under_the_chosen_color_transform(stage, color, tmp_path):
    more = {"top_fraction": 1.0} if stage == "selftrain" else {}
    options = find_stage(stage).Options(color_transforms=color, upscale=False, **UNADJUSTED, **more)
    made = find_stage(stage)(options)
    made.prepare(context_of_skies(tmp_path, color_classifier(*RED), BLUE))
    assert made.input_transform == ("grayscale" if color else "none")
    labels = made.pseudo_labels[0]["labels"]
    assert (labels[8:] == 1).all()
    assert (labels[:8] == (0 if color else 1)).mean() > 0.9
    assert (tmp_path / "input_transforms").exists() == color


@pytest.mark.parametrize(
    "transform",
    [
        None,
        InputTransform(),
        InputTransform(("brighter",)),
        InputTransform(("grayscale",), 2.0),
        InputTransform(illumination=torch.rand(1, 1, 8, 8)),
    ],
)
def test_labels_are_made_on_norm_statistics_of_transformed_images_which_are_then_undone(transform, tmp_path):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    context = context_of_skies(tmp_path, Segmenter(layers, preprocess=UNCHANGED, example_size=(16, 16)).eval(), BLUE)
    before = {k: v.clone() for k, v in layers.state_dict().items()}
    seen = []
    replace(context, transform=transform).label_all("seen", lambda probs: seen.append(probs) or {})
    assert all(torch.equal(before[k], v) for k, v in layers.state_dict().items())
    # Batches of 4 images; twice as large, one by one, so that they take no more memory.
    at_once = 1 if transform and transform.upscale > 1 else 4
    shown = [part for batch in context.batches() for part in (transform or InputTransform())(batch).split(at_once)]
    if transform:
        reestimate(layers, shown)
    with torch.no_grad():
        logits = torch.cat([layers.eval()(part) for part in shown])
    expected = nn.functional.interpolate(logits, size=(16, 16), mode="bilinear").softmax(1)
    torch.testing.assert_close(torch.stack(seen), expected)


def test_training_samples_are_transformed_but_not_enlarged(tmp_path):
    context = context_of_skies(tmp_path, color_classifier(*RED), BLUE)
    transform = InputTransform(("brighter",), 2.0, estimate_illumination(context.batches()))
    options = find_stage("align").Options()
    plain, shown = context.samples(options), replace(context, transform=transform).samples(options)
    for n in range(5):
        i = plain.pick(n)
        original = torch.from_numpy(context.images[i]).permute(2, 0, 1)[None] / 255
        wanted = replace(transform, upscale=1.0)(original)[0]
        sample = shown[n]["image"]
        assert min((sample - w).abs().max() for w in (wanted, wanted.flip(-1))) <= 0.5 / 255 + 1e-6
        assert any(torch.equal(plain[n]["image"], one) for one in (original[0], original[0].flip(-1)))


@pytest.mark.parametrize("color", [True, False])
def test_stage_1_trains_on_transformed_images_and_hands_on_statistics_of_the_original_ones(color, tmp_path):
    context = context_of_skies(tmp_path, color_classifier(*RED), BLUE)
    stage = find_stage("align")(find_stage("align").Options(color_transforms=color))
    image = stage.prepare(context)[0]["image"]
    assert torch.equal(image[0], image[1]) == color
    seen = []
    context.segmenter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    context.segmenter.model.append(nn.BatchNorm2d(2))
    stage.finish(context)
    assert not torch.equal(seen[0][:, 0], seen[0][:, 1])


def test_stage_1_with_held_statistics_trains_on_the_original_images(tmp_path):
    context = context_of_skies(tmp_path, color_classifier(*RED), BLUE)
    options = find_stage("align").Options(bn_mode="target")
    image = find_stage("align")(options).prepare(context)[0]["image"]
    assert not torch.equal(image[0], image[1])
    assert not (tmp_path / "input_transforms").exists()


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
    """Tells bright from dark after a blur of 3 × 3 pixels, so that a line has to be that wide."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.classifier = color_classifier([1.0, 0.0, 0.0], -0.6).model

    def forward(self, images):
        return self.classifier(self.pool(images))


@pytest.mark.parametrize(
    ("found", "best", "tried"),
    [
        ({"x1.33": (0.5, 0.15), "x1.67": (0.5, 0.12), "x2": (0.5, 0.1)}, "x2", 3),
        ({"x1.33": (0.5, 0.15), "x1.67": (0.5, 0.145)}, "x1.33", 2),  # hardly more confident than before
        (
            {"x1.33": (0.4, 0.1), "x1.67": (0.05, 0.05)},
            "x1.33",
            2,
        ),  # the normalised information falls too far
        ({"x1.33": (0.5, 0.19)}, "none", 1),  # hardly more confident
        ({"x1.33": (0.1, 0.1)}, "none", 1),  # more confident of fewer classes
    ],
)
def test_images_are_enlarged_as_long_as_the_model_is_much_more_confident(found, best, tried, tmp_path, monkeypatch):
    context = context_of_skies(tmp_path, color_classifier(*RED), WHITE)
    asked = fake_statistics(monkeypatch, {"none": (0.5, 0.2), **found})
    assert best_transform(context, color=False, upscale=True) == best
    assert asked == ["none", *found][: tried + 1]


def test_illumination_comes_first_then_colour_then_size(tmp_path, monkeypatch):
    context = context_of_skies(tmp_path, color_classifier(*RED), WHITE)
    found = {
        "none": (0.5, 0.3),
        "even illumination": (0.5, 0.2),
        "grayscale": (0.7, 0.1),
        "even illumination grayscale": (0.6, 0.15),
    }
    found |= {"even illumination grayscale x1.33": (0.6, 0.1), "even illumination grayscale x1.67": (0.6, 0.2)}
    fake_statistics(monkeypatch, found)
    assert best_transform(context, upscale=True) == "even illumination grayscale x1.33"
    assert best_transform(context) == "even illumination grayscale"


def test_the_illumination_of_the_images_is_estimated_once_for_all_stages(tmp_path, monkeypatch):
    estimated, estimate = [], choose_transform.estimate_illumination

    def watched(batches):
        found = estimate(batches)
        estimated.append(found)
        return found

    monkeypatch.setattr(choose_transform, "estimate_illumination", watched)
    contexts = [context_of_skies(tmp_path / str(n), color_classifier(*RED), WHITE) for n in range(2)]
    for context in (contexts[0], replace(contexts[0], folder=tmp_path / "next", seed=(0, 1)), contexts[1]):
        best_transform(context)
    assert len(estimated) == 2  # of other images anew
    best_transform(replace(contexts[0], folder=tmp_path / "fewer", batch_size=5))  # which are other batches
    assert len(estimated) == 3


class Spots(Skies):
    """A dark spot on a bright ground, under an illumination that leaves the corners as dark."""

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
@pytest.mark.parametrize("color", [True, False])
def test_dark_corners_are_no_spots_under_even_illumination(stage, color, tmp_path):
    spots = Spots(WHITE, 40)
    segmenter = color_classifier([-1.0, 0.0, 0.0], 0.52)
    with torch.no_grad():
        segmenter.model[1].weight *= 0.5
    context = context_of(tmp_path, segmenter, spots)
    more = {"top_fraction": 1.0} if stage == "selftrain" else {}
    more |= {} if stage == "align" else {"upscale": False, "spatial_prior_weight": 0.0}
    made = find_stage(stage)(find_stage(stage).Options(color_transforms=color, class_balance=0.0, **more))
    samples = made.prepare(context)
    if stage == "align":
        image = samples[0]["image"]
        assert (image[:, :2, :2].mean() > 0.6) == color
        return
    right = np.mean([(made.pseudo_labels[i]["labels"] == spots.truth(i)).mean() for i in range(40)])
    assert right > 0.97 if color else right < 0.93


@pytest.mark.parametrize("stage", ["selftrain", "propagate"])
@pytest.mark.parametrize("upscale", [True, False])
def test_labels_are_made_on_larger_images_where_the_model_is_too_coarse(stage, upscale, tmp_path):
    """A blurring network sees the lines only once they are wider."""
    segmenter = Segmenter(Coarse(), preprocess=UNCHANGED, example_size=(24, 24)).eval()
    context = context_of(tmp_path, segmenter, Lines(WHITE))
    more = {"top_fraction": 1.0} if stage == "selftrain" else {}
    made = find_stage(stage)(find_stage(stage).Options(color_transforms=False, upscale=upscale, **UNADJUSTED, **more))
    made.prepare(context)
    truth = np.ones((24, 24), np.uint8)
    truth[:, LINES] = 0
    right = (made.pseudo_labels[0]["labels"] == truth).mean()
    assert right > 0.9 if upscale else right < 0.8


def test_a_network_that_takes_one_size_only_is_shown_no_other(tmp_path):
    class OneSize(Coarse):
        def forward(self, images):
            return super().forward(images) + torch.zeros(1, 1, 24, 24)

    preprocess = replace(UNCHANGED, size=(24, 24))
    segmenter = Segmenter(OneSize(), preprocess=preprocess, example_size=(24, 24)).eval()
    assert segmenter.takes(24, 24)
    assert not segmenter.takes(25, 24)
    context = context_of(tmp_path, segmenter, Lines(WHITE))
    assert best_transform(context, color=False, upscale=True) == "none"


def context_of_gray(folder, count, *, size=(16, 16), **more):
    torch.manual_seed(0)
    images = open_images([np.full((*size, 3), n, np.uint8) for n in range(count)])
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    segmenter = Segmenter(layers, preprocess=UNCHANGED, example_size=(16, 16)).eval()
    return StageContext(make_fabric("cpu", "32"), segmenter, images, folder, (0, 0), (16, 16), **more)


def test_a_hopeless_transform_is_tried_on_a_few_images_only(tmp_path, monkeypatch):
    """And what helps is chosen all the same: most transforms help nothing, and all images under each cost much."""
    looked = {}

    def look(context, name, groups):
        looked[context.transform_name] = looked.get(context.transform_name, 0) + sum(map(len, groups))
        # The mean prediction is the same: the mutual information grows by what the entropy falls.
        one = {"mean": np.array([0.25, 0.75]), "entropy": 0.2 if context.transform_name == "grayscale" else 0.3}
        return [one for group in groups for _ in group]

    monkeypatch.setattr("das3.stages.choose_transform.confidence_of_images", look)
    context = context_of_gray(tmp_path, 30)
    assert choose_input_transform(context, 60, upscale=False).transform_name == "grayscale"
    # What was hopeless alone is not tried after another transform.
    names = ["even illumination", *COLOR_TRANSFORMS, "grayscale grayscale"]
    hopeless = dict.fromkeys(names, IMAGES_FOR_FIRST_LOOK)
    assert looked == hopeless | {"none": 16, "grayscale": 16}
    looked.clear()
    assert choose_input_transform(context, 1000, upscale=False).transform_name == "grayscale"
    assert looked == hopeless | {"none": 24, "grayscale": 24}  # whole batches


@pytest.mark.parametrize(("steps", "upscale", "found"), [(60, False, "smooth"), (250, True, "x1.67")])
def test_a_search_in_which_everything_helps_ends_when_its_share_of_the_stage_is_used_up(
    steps, upscale, found, tmp_path, monkeypatch
):
    shown = 0

    def look(context, name, groups):
        nonlocal shown
        passes = 1 if context.own_statistics else 2
        shown += sum(map(len, groups)) * context.transform.upscale**2 * passes
        order = ["none", *COLOR_TRANSFORMS, "smooth smooth", "smooth smooth smooth", "x1.33", "x1.67", "x2"]
        rank = order.index(context.transform_name) if context.transform_name in order else 0
        return [{"mean": np.array([0.25, 0.75]), "entropy": 0.7 * 0.9**rank} for group in groups for _ in group]

    monkeypatch.setattr("das3.stages.choose_transform.confidence_of_images", look)
    context = context_of_gray(tmp_path, 100)
    best = choose_input_transform(context, steps, color=not upscale, upscale=upscale).transform_name
    assert shown <= SHARE_OF_STAGE * PASSES_OF_A_STEP * 8 * steps
    assert best == found


@pytest.mark.parametrize(("size", "batch_size"), [((16, 16), 8), ((160, 200), 8), ((16, 16), 2)])
def test_the_search_shows_the_model_a_twentieth_of_what_a_stage_does(size, batch_size, tmp_path):
    context = context_of_gray(tmp_path, 50, size=size, batch_size=batch_size)
    context.logits(torch.zeros(1, 3, 16, 16))  # the first one is preceded by a look at what the network takes
    shown = []
    context.segmenter.model.register_forward_pre_hook(lambda _, given: shown.append(given[0].shape))
    with torch.no_grad():
        context.segmenter.model[2].weight.zero_()  # nothing helps a model that sees nothing
    choose_input_transform(context, 480 // batch_size, upscale=False)
    assert all(shape[2:] == (16, 16) for shape in shown)
    passes = sum(shape[0] for shape in shown)
    assert passes == 7 * IMAGES_FOR_FIRST_LOOK
    assert passes < SHARE_OF_STAGE * 3 * 480


def test_a_few_images_are_judged_under_norm_statistics_of_their_own(tmp_path):
    """As if the statistics had been re-estimated on them, but for the variance's n − 1."""
    context = context_of_gray(tmp_path, 8, batch_size=8)
    before = {key: value.clone() for key, value in context.segmenter.state_dict().items()}
    own, estimated = (
        confidence_statistics(confidence_of_images(replace(context, **how), name, context.groups()))
        for name, how in (("own", {"own_statistics": True}), ("estimated", {"transform": InputTransform()}))
    )
    assert own.mean_entropy == pytest.approx(estimated.mean_entropy, abs=1e-3)
    assert all(torch.equal(before[key], value) for key, value in context.segmenter.state_dict().items())
    plain = confidence_statistics(confidence_of_images(context, "plain", context.groups()))
    assert plain.mean_entropy != pytest.approx(own.mean_entropy, abs=1e-3)


def test_windows_lie_here_and_there_in_the_images():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    windows = Windows(open_images([image] * 12), (16, 80))
    assert windows.size(3) == (16, 60)
    tops = [next(t for t in range(25) if np.array_equal(image[t : t + 16], windows[n])) for n in range(12)]
    assert len(set(tops)) > 5
    assert min(tops) < 5
    assert max(tops) > 15
