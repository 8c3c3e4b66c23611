"""Supervised training: the source model, and the oracle, which is the same on the target's labels.

Besides evaluation, only this module and `advent.py` read labels; no adaptation code imports either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from das3.data.bad_images import SkippedImage, sound_labelled
from das3.data.images import resize_label
from das3.data.labels import Labelled
from das3.data.open import open_labelled
from das3.data.samples import Sample, Samples
from das3.dataclass_options import options_from
from das3.errors import RecipeError
from das3.losses import positive_loss
from das3.models.image_reading import fit_images
from das3.norms import BatchNormMode
from das3.recipe import RunOptions
from das3.segmenter import Segmenter
from das3.stages import Stage, StageOptions
from das3.stages.context import StageContext
from das3.stages.options import option
from das3.training.launch import Result, label_files, launch_run, open_evaluation, open_model
from das3.training.phases import Phase

__all__ = ["SourceRecipe", "Supervised", "SupervisedLabels", "part_of", "train_source", "train_supervised"]

T = TypeVar("T")


@dataclass(frozen=True)
class SourceRecipe(RunOptions, StageOptions):
    """Options of a supervised training.

    Attributes:
        labels: labels of the images, a folder with the same file names; not needed for a published data set.
        steps: number of optimiser steps.
        color: strength of random changes of brightness, contrast, saturation and hue; 0 for none.
        bn_mode: as of `StageOptions`, without "auto": labels say what the statistics should fit.
    """

    labels: str | None = None
    steps: int = 1000
    lr: float = 2e-3
    scale: tuple[float, float] = (0.75, 1.5)
    color: float = 0.2
    bn_mode: BatchNormMode = option("batch", choices=("batch", "target", "frozen"), old="norm")

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        StageOptions.__post_init__(self)


def part_of(recipe: Any, kind: type[T]) -> T:
    """The part of a recipe that belongs to `kind`, one of its base classes."""
    return kind(**{f.name: getattr(recipe, f.name) for f in fields(kind)})  # type: ignore[arg-type]


class SupervisedLabels:
    """Label maps at the images' training size; small sets stay in memory."""

    def __init__(self, labelled: Labelled, sizes: Sequence[tuple[int, int]]) -> None:
        self.labelled, self.sizes = labelled, sizes
        self.kept: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, i: int) -> Mapping[str, NDArray[np.uint8]]:
        """Label map of image i, under "labels"."""
        if i not in self.kept:
            label = resize_label(self.labelled.label(i), self.sizes[i])
            if len(self.labelled) > 5000:
                return {"labels": label}
            self.kept[i] = label
        return {"labels": self.kept[i]}


class Supervised(Stage[StageOptions]):
    """Cross-entropy on labels."""

    name = "supervised"

    def __init__(self, options: StageOptions, labelled: Labelled) -> None:
        super().__init__(options)
        self.labelled = labelled

    def prepare(self, context: StageContext) -> Samples:
        """Samples with labels."""
        return context.samples(self.options, maps=SupervisedLabels(self.labelled, context.images.sizes()))

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Plain cross-entropy, as the source model is trained in the paper."""
        return {"cross_entropy": positive_loss(segmenter(batch["image"]), batch["labels"])}


def train_supervised(
    segmenter: Segmenter,
    labelled: Labelled,
    recipe: SourceRecipe,
    *,
    evaluation: Labelled | None = None,
    resume: bool = False,
    quiet: bool = False,
    name: str = "supervised",
    skipped: Sequence[SkippedImage] = (),
) -> Result:
    """Train a segmenter in place on labelled images, into the run folder `recipe.out`.

    Args:
        segmenter: with random weights for a source model, with the source's for an oracle.
        labelled: images and labels.
        recipe: the options.
        evaluation: labelled images to measure on, before and after.
        resume: continue the run where it stopped.
        quiet: show no progress.
        name: of the row in summary.json.
        skipped: images that were left out.

    Raises:
        RecipeError, DataError, ModelError: before training, if something does not fit.
    """
    labelled.check(sample=32)
    phase = Phase(name, lambda: Supervised(part_of(recipe, StageOptions), labelled))
    return launch_run(
        segmenter,
        labelled.images,
        [phase],
        recipe,
        evaluation=evaluation,
        resume=resume,
        quiet=quiet,
        skipped=skipped,
        inputs={"labels": label_files(labelled)},
    )


def train_source(
    recipe: SourceRecipe | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    trust: bool = False,
    **options: Any,
) -> Result:
    """Train a source model on labelled images, to have something to adapt; what `das3 train-source` does.

    Args:
        recipe: all options in one.
        resume: as of `das3.adapt`.
        quiet: likewise.
        trust: likewise.
        **options: in place of `recipe` or on top of it, fields of `SourceRecipe`: `images`, `labels`, `out`, `steps`, …

    Returns:
        The trained model and the results of the run.

    Raises:
        RecipeError, DataError, ModelError: before training, if something does not fit.
    """
    if options:
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        recipe = options_from(SourceRecipe, {**(recipe.to_dict() if recipe else {}), **options})
    if recipe is None or recipe.images is None:
        raise RecipeError("no images given; name them with --images, see `das3 train-source --help`")
    labelled = open_labelled(
        recipe.images, recipe.labels, recipe.classes, class_map=recipe.class_map, num_classes=recipe.num_classes
    )
    recipe = replace(recipe, num_classes=labelled.num_classes, class_names=list(labelled.class_names))
    torch.manual_seed(recipe.seed)
    segmenter = open_model(recipe, recipe.model or "das3:small", trust=trust)
    segmenter.origin = replace(segmenter.origin, preprocess="as trained")
    skipped: list[SkippedImage] = []
    if recipe.on_bad_image == "skip":
        labelled, skipped = sound_labelled(labelled)
    labelled = labelled.read_as(fit_images(labelled.images, segmenter, recipe))
    evaluation = open_evaluation(recipe, segmenter)
    return train_supervised(
        segmenter, labelled, recipe, evaluation=evaluation, resume=resume, quiet=quiet, skipped=skipped
    )
