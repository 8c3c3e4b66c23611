"""ADVENT: unsupervised adaptation with access to the source data; a bound, like the oracle.

Like `das3.training.supervised` it reads labels of source images, and no adaptation code imports it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from das3.benchmark.methods import method_recipe, total_steps
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.samples import Maps, Sample, Samples
from das3.data.shared_cache import Room
from das3.losses import positive_loss
from das3.norms import held_running_statistics
from das3.recipe import Recipe, RunOptions
from das3.segmenter import Segmenter
from das3.stages import Stage, StageOptions
from das3.stages.context import StageContext
from das3.stages.options import option
from das3.training.launch import Result, launch_run
from das3.training.phases import Phase
from das3.training.supervised import SupervisedLabels, part_of

__all__ = ["Advent", "AdventRecipe", "Discriminator", "advent_recipe", "self_information", "train_advent"]


@dataclass(frozen=True)
class AdventOptions(StageOptions):
    """Options of ADVENT.

    Attributes:
        adversarial_weight: λ_adv, weight of the adversarial loss.
    """

    adversarial_weight: float = option(0.001, low=0, old="adversarial")


@dataclass(frozen=True)
class AdventRecipe(RunOptions, AdventOptions):
    """Everything about a run of ADVENT."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        AdventOptions.__post_init__(self)


def advent_recipe(shared: Mapping[str, Any], steps: int | None = None) -> AdventRecipe:
    """Its recipe on a suite: the loop's options and the optimiser steps that every method has there.

    Args:
        shared, steps: as of `das3.benchmark.methods.method_recipe`.

    Raises:
        RecipeError: if a field is unknown or a value does not fit.
    """
    loop = part_of(method_recipe({}, shared), RunOptions)
    return AdventRecipe(**vars(loop), steps=steps or total_steps(Recipe()))


def self_information(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Weighted self-information I_c = −p_c log p_c / log C per pixel, whose sum over the classes is the entropy.

    Args:
        logits: B×C×H×W, any floating dtype; computed in float32 or better.
        valid: boolean B×H×W, or None for all; 0 where it is false.

    Returns:
        B×C×H×W in [0, 1 / (e log C)], float32 (float64 for float64 input).

    Source: Vu et al., ADVENT (CVPR 2019), section 3.2.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    log_probs = F.log_softmax(logits, dim=1)
    maps = -log_probs.exp() * log_probs / math.log(logits.shape[1])
    return maps if valid is None else torch.where(valid.unsqueeze(1), maps, 0)


class Discriminator(nn.Module):
    """Discriminator: does a map come from the target's images? A logit per patch, positive for the target.

    Args:
        classes: C.
        width: channels of the first layer.

    Source: DCGAN's layers, fully convolutional, as in AdaptSegNet (Tsai et al., CVPR 2018) and ADVENT.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        channels = [classes, width, 2 * width, 4 * width, 8 * width, 1]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, maps: Tensor) -> Tensor:
        """B×C×H×W to B×1×(H // 32)×(W // 32); maps below 32 pixels are padded with zeros."""
        bottom, right = (max(0, 32 - size) for size in maps.shape[-2:])
        logits: Tensor = self.layers(F.pad(maps, (0, right, 0, bottom)))
        return logits


class _Pairs(Samples):
    """Samples of the target; beside each one of the source: source_image, source_valid, source_labels."""

    def __init__(self, target: Samples, source: Samples) -> None:
        super().__init__(target.images, target.view, seed=target.seed)
        self.source = source

    def __getitem__(self, n: int) -> Sample:
        """Sample number n ≥ 0."""
        return {**super().__getitem__(n), **{f"source_{key}": value for key, value in self.source[n].items()}}


class Advent(Stage[AdventOptions]):
    """L = CE(source) + λ_adv BCE(D(I_target), source), while D learns to tell I_target from I_source.

    Source: Vu et al., ADVENT (CVPR 2019), AdvEnt. As in the authors' code D learns from the maps by which the segmenter
    learns in the same step, half of its loss from each domain. Differs: begins with the source model, not with
    ImageNet's weights; das3's optimiser, schedule, clipping and average for both networks, not SGD at 2.5e-4 for the
    segmenter and Adam with betas 0.9 and 0.99 for D (its rate is the authors', 1e-4); the output alone, not conv4 as
    well. Each domain runs on its own batch statistics, but target images alone reach the running ones: the authors'
    mixture would be worse than BN re-estimation.

    Args:
        options: its options.
        images: of the source, at their training size.
        labels: theirs, of the same sizes, under "labels".
    """

    name = "advent"
    Options = AdventOptions

    def __init__(self, options: AdventOptions, images: Images, labels: Maps) -> None:
        super().__init__(options)
        self.images, self.labels = images, labels

    def prepare(self, context: StageContext) -> Samples:
        """Pairs of samples, cut alike; the discriminator begins at random."""
        self.autocast = context.fabric.autocast
        with torch.random.fork_rng([]):
            torch.manual_seed(context.random_seed())
            self.discriminator = Discriminator(context.segmenter.num_classes)
        self.discriminator.to(context.fabric.device)
        source = Samples(self.images, context.augmentation(self.options), seed=(*context.seed, 1), maps=self.labels)
        return _Pairs(context.samples(self.options), source)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Losses of the segmenter on the source and against the discriminator, and the discriminator's loss."""
        with held_running_statistics(segmenter):
            logits = segmenter(batch["source_image"])
        source = self_information(logits, batch["source_valid"])
        target = self_information(segmenter(batch["image"]), batch["valid"])
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        with self.autocast():
            fooled = functional_call(self.discriminator, fixed, target)
            from_source, from_target = self.discriminator(torch.cat([source, target]).detach()).chunk(2)
        discriminator = F.softplus(from_source.float()).mean() + F.softplus(-from_target.float()).mean()
        return {
            "cross_entropy": positive_loss(logits, batch["source_labels"]),
            "adversarial": self.options.adversarial_weight * F.softplus(fooled.float()).mean(),
            "discriminator": discriminator / 2,
        }


def train_advent(
    segmenter: Segmenter,
    images: Images,
    source: Labelled,
    recipe: AdventRecipe,
    *,
    evaluation: Labelled | None = None,
    resume: bool = False,
    quiet: bool = False,
    measure_every: int = 0,
) -> Result:
    """Adapt a segmenter in place to unlabelled images, with the data it was trained on, into the folder `recipe.out`.

    Args:
        segmenter: the source model.
        images: of the target.
        source: images and labels of the source.
        recipe, evaluation, resume, quiet, measure_every: as of `das3.training.launch.launch_run`.

    Raises:
        RecipeError, DataError: before training, if something does not fit.
    """
    source.check(sample=32)
    source_images = source.images.resized(segmenter.preprocess.size, room=Room(int(recipe.cache_gib * 2**30)))
    labels = SupervisedLabels(source, source_images.sizes())
    phase = Phase(Advent.name, lambda: Advent(part_of(recipe, AdventOptions), source_images, labels))
    return launch_run(
        segmenter,
        images,
        [phase],
        recipe,
        evaluation=evaluation,
        resume=resume,
        quiet=quiet,
        measure_every=measure_every,
    )
