"""Numbers at the edge: infinite logits, images of a few pixels, networks that fail, class maps to nowhere."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from das3.data.class_table import ClassTable, load_class_map, load_classes
from das3.data.open import open_labelled
from das3.data.samples import Augmentation
from das3.errors import DataError, ModelError, RecipeError
from das3.evaluation.predict import predict_labels
from das3.losses import diversity_loss, focal_entropy_loss, mean_prediction, normalized_entropy, pairwise_loss
from das3.recipe import Recipe, load_recipe, recipe_from
from das3.segmenter import Preprocess, Segmenter
from das3.selection.signals import VIEWS
from das3.stages import Align, StageOptions
from das3.training.loop import make_fabric, train
from worlds import network, pointwise_network

pytestmark = pytest.mark.usefixtures("seeded")


def test_a_class_of_probability_zero_leaves_losses_and_gradients_finite():
    logits = torch.randn(2, 3, 4, 5)
    logits[:, 0] = -torch.inf
    logits.requires_grad_()
    mean = mean_prediction(logits)
    loss = focal_entropy_loss(logits) + diversity_loss(mean, torch.tensor([0.2, 0.3, 0.5]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert mean[0] == 0


def test_the_entropy_of_the_other_classes_is_what_it_was():
    logits = torch.randn(2, 3, 4, 5)
    without = torch.cat([torch.full((2, 1, 4, 5), -torch.inf), logits], dim=1)
    expected = normalized_entropy(logits) * math.log(3) / math.log(4)
    assert torch.allclose(normalized_entropy(without), expected)


def test_an_underflowing_class_has_a_gradient_towards_life():
    mean = torch.tensor([0.0, 0.4, 0.6], requires_grad=True)
    diversity_loss(mean).backward()
    assert torch.isfinite(mean.grad).all()
    assert mean.grad[0] < mean.grad[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_pairs_of_too_few_pixels(size):
    logits = torch.randn(1, 3, *size, requires_grad=True)
    loss = pairwise_loss(logits, torch.rand(1, 3, *size))
    loss.backward()
    assert loss == 0 or min(size) > 1
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 5), (4, 4)])
def test_samples_and_views_of_a_few_pixels(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    sample = Augmentation(size, color=0.5, blur=1.0, scale=(0.5, 2.0))(image, {}, np.random.default_rng(1))
    assert sample["image"].shape == (3, *size)
    assert torch.isfinite(sample["image"]).all()
    assert min(VIEWS["smaller"](torch.rand(1, 3, *size)).shape[-2:]) >= 1


class Strided(nn.Module):
    """Sides of less than eight pixels leave nothing."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Conv2d(3, 4, 8, stride=4), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.last(self.body(x))


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 5), (31, 1)])
def test_small_images_are_padded_to_what_the_network_takes(size):
    segmenter = Segmenter(Strided(), divisor=1, square=False).eval()
    image = torch.rand(1, 3, *size)
    assert segmenter(image).shape == (1, 3, *size)
    height, width = (max(8, side) for side in size)
    padded = F.pad(image, (0, width - size[1], 0, height - size[0]), mode="replicate")
    assert torch.equal(segmenter(image), segmenter(padded)[..., : size[0], : size[1]])


def test_small_images_are_left_alone_where_the_network_takes_them():
    segmenter = pointwise_network().eval()
    assert segmenter.pad(torch.rand(1, 3, 1, 2)).shape == (1, 3, 1, 2)


def test_errors_of_the_network_name_it():
    segmenter = pointwise_network()

    def fail(*_):
        raise ValueError("of the network's own\nand more")

    segmenter.model.register_forward_pre_hook(fail)
    with pytest.raises(
        ModelError, match=r"network Sequential fails.*\(1, 3, 40, 40\).*ValueError: of the network's own\)"
    ):
        segmenter(torch.rand(1, 3, 40, 40))
    assert not segmenter.takes(40, 40)


def test_lack_of_memory_stays_what_it_is():
    segmenter = pointwise_network()

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    segmenter.model.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        segmenter(torch.rand(1, 3, 40, 40))


def test_logits_of_other_images_are_told():
    segmenter = pointwise_network()
    segmenter.model.register_forward_hook(lambda module, given, output: output[:1])
    with pytest.raises(ModelError, match="logits of 1 images for a batch of 2"):
        segmenter(torch.rand(2, 3, 40, 40))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_of_nan_is_no_class(value):
    segmenter = pointwise_network()
    segmenter.model.register_forward_hook(lambda module, given, output: output + value)
    with pytest.raises(ModelError, match="NaN or infinite"):
        predict_labels(segmenter, np.zeros((8, 9, 3), np.uint8))


def test_a_stage_with_nothing_to_train_says_so(tmp_path):
    segmenter = network(nn.Conv2d(3, 3, 1))
    stage = Align(Align.Options(steps=1))
    with pytest.raises(ModelError, match="stage align has nothing to train"):
        train(make_fabric("cpu", "32"), segmenter, stage, [], Recipe(), seed=(0, 0))


@pytest.mark.parametrize("size", [0, -1, (0, 5), (5, 0), (1, 2, 3), (), 1.5, 10**6, True])
def test_sizes_that_no_image_has(size):
    with pytest.raises(ModelError, match="size must be"):
        Preprocess(size=size)


@pytest.mark.parametrize(
    "bad",
    [
        {"mean": (math.nan, 0, 0)},
        {"std": (1, math.inf, 1)},
        {"input_max": math.nan},
        {"mean": (1e300, 0, 0)},
        {"rgb": (0, 1)},
    ],
)
def test_preprocessing_that_is_no_number(bad):
    with pytest.raises(ModelError):
        Preprocess(**bad)


@pytest.mark.parametrize("scale", [(1.0, math.inf), (0.0, 1.0), (1e-9, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0,)])
def test_scales_that_no_sample_has(scale):
    with pytest.raises(RecipeError, match="scale"):
        StageOptions(scale=scale)


@pytest.mark.parametrize("values", [{"align": 3}, {"selftrain": [1]}, {"align": "fast"}, {"shot_im": True}])
def test_options_of_a_stage_are_a_mapping(values):
    with pytest.raises(RecipeError, match=f"r: {next(iter(values))} is .*stage's options"):
        recipe_from(values, where="r")
    assert recipe_from({"align": None}) == Recipe()


@pytest.mark.parametrize(
    "text", ["clip: .nan", "align: {lr: .inf}", "mean: [.nan, 0, 0]", "nodata: .nan", "out: 2001-01-01"]
)
def test_recipes_hold_finite_and_plain_values(text, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("value", [-7, 256, 1000, 0.5, "1", True, [0]])
def test_class_maps_lead_to_classes(value, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"0": value, "1": 1}))
    with pytest.raises(DataError, match=r"map\.json"):
        load_class_map(str(path))
    path.write_text(json.dumps({"0": -1, "1": None, "2": 255, "3": 254}))
    assert load_class_map(str(path)) == {0: 255, 1: 255, 2: 255, 3: 254}


@pytest.mark.parametrize("key", [3, 99999, -3])
def test_class_maps_come_from_classes(key, tmp_path):
    from worlds import write_world

    world = write_world(tmp_path, "target", count=1)
    with pytest.raises(DataError, match=f"maps class {key}"):
        open_labelled(world / "images", world / "labels", class_map={0: 0, key: 1}, num_classes=3)
    open_labelled(world / "images", world / "labels", class_map={0: 0, 255: 255, -1: 255}, num_classes=3)


@pytest.mark.parametrize(
    "entry",
    [{"id": 1.5}, {"id": None}, {"id": True}, {"id": "1"}, {"id": 2**70}, {"id": 0}, {"name": ""}, {"name": "a"}],
)
def test_class_tables_name_each_class_and_id_once(entry, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": [{"name": "a", "id": 0}, {"name": "b", "id": 1, **entry}]}))
    with pytest.raises(DataError, match=r"classes\.json"):
        load_classes(path)
    path.write_text(json.dumps({"classes": [{"name": "a", "ids": [0, 7]}, {"name": "b", "id": 1}]}))
    assert load_classes(path) == ClassTable(("a", "b"), ids={0: 0, 7: 0, 1: 1})
