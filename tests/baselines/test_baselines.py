"""What the baselines do with networks, teachers, views and recipes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from das3.baselines.features import features_and_logits, to_grid
from das3.baselines.urma import Decoders
from das3.baselines.weak_strong_views import WeakStrongViews
from das3.data.samples import Augmentation, Samples
from das3.ema import ema_update, frozen_copy
from das3.errors import ModelError
from das3.recipe import Recipe, add_recipe_options, recipe_from, recipe_of
from das3.registry import find_stage, stage_types
from das3.segmenter import Segmenter
from das3.stages.base import parameter_groups
from reference import close
from worlds import network, pointwise_network, stage_context

pytestmark = pytest.mark.usefixtures("seeded")


def test_features_enter_the_classifier_and_maps_are_brought_to_their_grid():
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)
    segmenter = Segmenter(nn.Sequential(*layers), example_size=(16, 16), divisor=8, square=False)
    images = torch.rand(2, 3, 12, 20)
    features, logits = features_and_logits(segmenter, images)
    assert features.shape == (2, 4, 8, 12)
    torch.testing.assert_close(segmenter.upsample(layers[2](features), images), logits)
    grid = to_grid(segmenter, images, features)
    assert grid.shape == (2, 3, 8, 12)
    torch.testing.assert_close(grid[..., :6, :10], nn.functional.avg_pool2d(images, 2))


def test_a_teacher_follows_and_is_never_trained():
    student = pointwise_network()
    teacher = frozen_copy(student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    before = teacher.model[0].weight.clone()
    with torch.no_grad():
        student.model[0].weight += 1
        student.model[1].running_mean += 2
    ema_update(teacher, student, decay=0.75)
    torch.testing.assert_close(teacher.model[0].weight, before + 0.25)
    assert torch.equal(teacher.model[1].running_mean, student.model[1].running_mean)


def test_the_weak_and_the_strong_view_are_cut_alike():
    images = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(3)]
    view = Augmentation((16, 16), scale=(0.5, 2.0), color=0.5, blur=1.0)
    strong = Samples(images, view, seed=(1,))
    weak = Samples(images, dataclasses.replace(view, color=0.0, blur=0.0), seed=(1,))
    for n in range(5):
        sample = WeakStrongViews(strong)[n]
        assert torch.equal(sample["image"], strong[n]["image"])
        assert torch.equal(sample["weak"], weak[n]["image"])
        assert not torch.equal(sample["image"], sample["weak"])


def test_tent_trains_norm_layers_alone():
    stage = find_stage("tent")(find_stage("tent").Options())

    def names(segmenter):
        chosen = {id(p) for p in stage.trainable(segmenter)}
        return [n for n, p in segmenter.model.named_parameters() if id(p) in chosen]

    assert names(pointwise_network()) == ["1.weight", "1.bias"]
    assert names(network(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1))) == ["1.weight", "1.bias"]
    both = network(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    assert names(both) == ["2.weight", "2.bias"]
    with pytest.raises(ModelError, match="norm"):
        stage.trainable(network(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)))


def test_blended_statistics_lie_half_way(tmp_path):
    original, means = pointwise_network(), []
    before = original.model[1].running_mean.clone()
    for name in ("bn", "bn-blend"):
        segmenter = copy.deepcopy(original)
        find_stage(name)(find_stage(name).Options()).prepare(stage_context(segmenter, tmp_path))
        means.append(segmenter.model[1].running_mean)
    torch.testing.assert_close(means[1], (before + means[0]) / 2)


def test_auxiliary_decoders_are_drawn_anew_and_trained_at_ten_times_the_rate(tmp_path):
    segmenter = pointwise_network()
    stage = find_stage("urma")(find_stage("urma").Options(lr=1e-3))
    context = stage_context(segmenter, tmp_path)
    stage.prepare(context)
    weights = [segmenter.model[3].weight, *(d.weight for d in stage.decoders.copies)]
    assert len(weights) == 5
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    rates = {id(p): g["lr"] for g in parameter_groups(segmenter, stage, 0.01) for p in g["params"]}
    assert rates[id(weights[0])] == close(1e-3)
    assert all(rates[id(w)] == close(1e-2) for w in weights[1:])
    again = Decoders(segmenter, 4, 0.5, seed=context.random_seed())
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(again.copies, stage.decoders.copies, strict=True))


def test_urma_needs_one_classifier():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.a(x) + self.b(x)

    with pytest.raises(ModelError, match="a, b"):
        Decoders(Segmenter(Two(), example_size=(8, 8)), 4, 0.5, seed=0)


def test_the_optimizer_has_no_parameters_of_the_teacher(tmp_path):
    segmenter = pointwise_network()
    stage = find_stage("mean-teacher")(find_stage("mean-teacher").Options())
    stage.prepare(stage_context(segmenter, tmp_path))
    chosen = [p for group in parameter_groups(segmenter, stage, 0.01) for p in group["params"]]
    assert {id(p) for p in chosen} == {id(p) for p in segmenter.parameters()}


def test_every_method_can_be_named_and_set_in_a_recipe():
    steps = {name: 7 if kind.Options().steps else 0 for name, kind in stage_types().items()}
    values = {name.replace("-", "_"): {"steps": n} for name, n in steps.items()}
    recipe = recipe_from({"stages": list(steps), **values})
    assert {name: recipe.options_of(name).steps for name in steps} == steps
    assert recipe_from(recipe.to_dict()) == recipe


def test_options_of_a_method_with_a_hyphen_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_options(parser)
    recipe = recipe_of(parser.parse_args(["--stages=[shot-im]", "--shot-im.steps=9", "--shot-im.head-lr-factor=2"]))
    assert isinstance(recipe, Recipe)
    assert (recipe.options_of("shot-im").steps, recipe.options_of("shot-im").head_lr_factor) == (9, 2)
