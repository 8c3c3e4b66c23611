"""A dry run: open and check everything, take a step or two of each stage, estimate time and memory, keep nothing.

The steps are those of the training loop itself, on the two largest images. If the device is too slow for
that, images and crops are made smaller, and the numbers are scaled by the number of pixels.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from das3.data.bad_images import sound_images
from das3.data.images import Images, resize_image, resized_shape
from das3.data.labels import Labelled
from das3.data.open import open_images
from das3.data.pixels import Pixel
from das3.data.samples import auto_crop
from das3.errors import ModelError, RecipeError
from das3.evaluation.evaluate import evaluate
from das3.models.image_reading import fit_images
from das3.recipe import Recipe
from das3.registry import find_stage
from das3.report.numbers import duration
from das3.segmenter import Segmenter, evaluating
from das3.stages import Stage
from das3.stages.base import parameter_groups
from das3.stages.context import StageContext
from das3.training.launch import open_evaluation, open_model
from das3.training.loop import Record, make_fabric, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["DryRun", "StageCost", "affordable", "dry_run", "stage_cost"]

_BUDGET = 12.0  # seconds that the stages' steps may take together
_PASSES = 68  # over the images, that preparing a stage takes at most, larger ones counted as so many more
_TINY_LR = 1e-12  # so that a step without its warm-up can't spoil the next


@dataclass(frozen=True)
class StageCost:
    """Cost of a stage.

    Attributes:
        name: of the stage.
        times: number of times that the recipe runs it.
        steps: optimiser steps each time.
        step_seconds: seconds per step.
        prepare_seconds: upper bound of the seconds before the first step: statistics and labels of all images; passes
            over a part of the images are counted as if they took all.
        memory: bytes on a device, at the peak.
        measured: whether the device counted them; otherwise they are computed from weights, gradients, optimiser,
            average of the weights, and what autograd saves.
    """

    name: str
    times: int
    steps: int
    step_seconds: float
    prepare_seconds: float
    memory: int
    measured: bool

    @property
    def seconds(self) -> float:
        """Seconds of the stage in total."""
        return self.times * (self.prepare_seconds + self.steps * self.step_seconds)


@dataclass(frozen=True)
class DryRun:
    """Cost of a run.

    Attributes:
        model: description in one line.
        images: number of target images.
        size: (height, width) of the largest at its training size.
        labelled: number of images for evaluation.
        device: where the run would take place.
        crop, batch_size: of a step on one device.
        shrink: factor on the sides of images and crops that the numbers were scaled up from; 1 if they were not.
        stages: the stages' costs.
        evaluation_seconds: of one evaluation; there is one before the stages and one after each.
    """

    model: str
    images: int
    size: tuple[int, int]
    labelled: int
    device: str
    crop: tuple[int, int]
    batch_size: int
    shrink: float
    stages: tuple[StageCost, ...]
    evaluation_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        evaluations = 1 + sum(stage.times for stage in self.stages)
        return sum(stage.seconds for stage in self.stages) + evaluations * self.evaluation_seconds

    @property
    def memory(self) -> int:
        """Bytes on a device at the peak of the run."""
        return max(stage.memory for stage in self.stages)

    def text(self) -> str:
        """For a person."""
        kind = "measured" if self.stages[0].measured else "computed"
        lines = [
            self.model,
            f"{self.images} target images of up to {self.size[1]}×{self.size[0]} (width×height), {self.labelled} to "
            "evaluate on",
            f"on {self.device}, {self.batch_size} crops of {self.crop[1]}×{self.crop[0]} at a time",
            "",
            f"{'stage':<16}{'steps':>9}{'s/step':>9}{'prepare':>10}{'in all':>10}   memory ({kind})",
        ]
        for stage in self.stages:
            steps = str(stage.steps) if stage.times == 1 else f"{stage.times}×{stage.steps}"
            prepare, whole = duration(stage.prepare_seconds), duration(stage.seconds)
            lines.append(
                f"{stage.name:<16}{steps:>9}{stage.step_seconds:>9.3g}{prepare:>10}{whole:>10}   {_size(stage.memory)}"
            )
        if self.labelled:
            lines.append(f"{'each evaluation':<16}{duration(self.evaluation_seconds):>38}")
        lines += ["", f"total: about {duration(self.seconds)}, {_size(self.memory)} ({kind})"]
        if kind == "computed":
            lines.append("workspaces of convolutions and the device's runtime come on top")
        if self.shrink < 1:
            lines.append(
                f"slow device: measured at {self.shrink:.2f} of the image sides, and scaled up by the number of pixels"
            )
        return "\n".join([*lines, "nothing was written"])


def _size(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.0f} MiB"


def dry_run(recipe: Recipe, *, trust: bool = False) -> DryRun:
    """Open and check what the recipe names, and see what its run would take.

    Args:
        recipe: with `model` and `images`; `out` is not looked at.
        trust: as of `das3.adapt`.

    Raises:
        RecipeError, ModelError, DataError: as the run itself would, and if a stage does not fit into memory.
        TrainingError: if a loss is not finite.
    """
    source = open_images(recipe.images)
    if recipe.on_bad_image == "skip":
        source, _, _ = sound_images(source)
    segmenter = open_model(recipe, trust=trust)
    source = fit_images(source, segmenter, recipe)
    source.verify()
    labelled = open_evaluation(recipe, segmenter)
    if recipe.batch_size % recipe.devices:
        raise RecipeError(f"batch_size {recipe.batch_size} can't be divided among {recipe.devices} processes")
    fabric = make_fabric(recipe.device, recipe.precision)
    segmenter.to(fabric.device)
    images = source.resized(segmenter.preprocess.size)
    recipe = replace(recipe, crop=recipe.crop or auto_crop(images.sizes()))
    assert recipe.crop is not None
    shrink = affordable(recipe, segmenter, images, fabric)
    stages = [stage_cost(recipe, name, segmenter, images, fabric, shrink) for name in dict.fromkeys(recipe.stages)]
    return DryRun(
        model=segmenter.describe(),
        images=len(images),
        size=images.size(_largest(images, 1)[0]),
        labelled=len(labelled) if labelled else 0,
        device=f"{fabric.device.type}, precision {fabric.strategy.precision.precision}",
        crop=recipe.crop,
        batch_size=recipe.batch_size // recipe.devices,
        shrink=shrink,
        stages=tuple(stages),
        evaluation_seconds=_evaluation(segmenter, labelled, shrink) if labelled else 0.0,
    )


def affordable(recipe: Recipe, segmenter: Segmenter, images: Images, fabric: Fabric) -> float:
    """Factor in (0, 1] on the sides of images and crops at which all stages' steps take seconds; 1 on a GPU."""
    assert recipe.crop is not None
    if fabric.device.type == "cuda":
        return 1.0
    example = torch.rand(1, segmenter.in_channels, *(min(side, 96) for side in recipe.crop), device=fabric.device)
    try:
        with evaluating(segmenter), torch.no_grad():
            segmenter(example)  # the first one is slower
            began = time.perf_counter()
            segmenter(example)
            forward = (time.perf_counter() - began) / example[0, 0].numel()
    except (ModelError, RuntimeError, ValueError, AssertionError):  # a network that takes one size only
        return 1.0
    trained = _steps(fabric) * recipe.batch_size * math.prod(recipe.crop) * 4  # backward takes twice as long as forward
    prepared = _PASSES * sum(math.prod(images.size(i)) for i in _largest(images, 2))
    seconds = forward * (trained + prepared) * len(set(recipe.stages))
    return min(1.0, math.sqrt(_BUDGET / seconds))


def _steps(fabric: Fabric) -> int:
    """Number of steps to take; the first one is not timed."""
    return 6 if fabric.device.type == "cuda" else 2


def stage_cost(
    recipe: Recipe, name: str, segmenter: Segmenter, images: Images, fabric: Fabric, shrink: float = 1.0
) -> StageCost:
    """Prepare a stage and take a few steps on the largest images.

    Args:
        recipe: with `crop`.
        name: of the stage.
        segmenter: on the device; its norm statistics change, its weights by no more than rounding.
        images: at their training size.
        fabric: device and precision, of one process.
        shrink: see `affordable`.

    Raises:
        RecipeError: if it does not fit into the device's memory.
    """
    assert recipe.crop is not None
    options = recipe.options_of(name)
    batch_size = recipe.batch_size // recipe.devices
    shown, crop = _Chosen(images, _largest(images, 2), shrink), _shrunk(recipe.crop, shrink)
    stage = find_stage(name)(replace(options, steps=min(options.steps, _steps(fabric)), lr=_TINY_LR))
    loop = replace(recipe, batch_size=batch_size, devices=1, accumulate=1, log_every=1, checkpoint_every=2**31)
    measured = fabric.device.type == "cuda"
    saved = _Saved()
    seconds: list[float] = []

    def report(record: Record) -> None:
        seconds.append(batch_size / record.images_per_second)
        saved.next_step()

    if measured:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="das3-dry-run-") as folder:
        seed = (recipe.seed, 0)
        context = StageContext(fabric, segmenter, shown, Path(folder), seed, crop, batch_size)
        try:
            began = time.perf_counter()
            if stage.options.bn_mode != "frozen":
                context.reestimate_bn()
            samples = stage.prepare(context)
            prepared = time.perf_counter() - began
            with nullcontext() if measured else saved.watching(segmenter, stage):
                train(fabric, segmenter, stage, samples, loop, seed=seed, report=report)
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"stage {name} does not fit into memory with {batch_size} crops of {crop[1]}×{crop[0]} at a time; "
                "lower --batch-size (and raise --accumulate) or --crop"
            ) from error
    more_pixels = math.prod(recipe.crop) / math.prod(crop)
    all_pixels = sum(map(math.prod, images.sizes())) / sum(map(math.prod, shown.sizes()))
    computed = _fixed_bytes(segmenter, stage, recipe) + round(saved.peak * more_pixels)
    return StageCost(
        name,
        times=recipe.stages.count(name) * getattr(options, "rounds", 1),
        steps=options.steps,
        step_seconds=recipe.accumulate * more_pixels * statistics.median(seconds[1:] or seconds or [0.0]),
        prepare_seconds=prepared * all_pixels / recipe.devices,
        memory=torch.cuda.max_memory_allocated() if measured else computed,
        measured=measured,
    )


def _shrunk(shape: tuple[int, int], shrink: float) -> tuple[int, int]:
    """Sides made smaller, in multiples of 32 but not below 64, so that no network pads them."""
    if shrink == 1:
        return shape
    height, width = (min(side, max(64, round(side * shrink / 32) * 32)) for side in shape)
    return height, width


def _largest(images: Images, count: int) -> list[int]:
    """Indices of the images with the most pixels."""
    order = np.argsort([-math.prod(size) for size in images.sizes()], kind="stable")
    return [int(i) for i in order[:count]]


class _Chosen(Images):
    """Some of the images, made smaller."""

    def __init__(self, images: Images, chosen: Sequence[int], shrink: float = 1.0) -> None:
        super().__init__([images.names[i] for i in chosen])
        self.images, self.chosen, self.shrink = images, list(chosen), shrink

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return resize_image(self.images[self.chosen[i]], self.size(i))

    def size(self, i: int) -> tuple[int, int]:
        return _shrunk(self.images.size(self.chosen[i]), self.shrink)


class _Saved:
    """Bytes that autograd keeps for the backward pass of a step, the most of all steps; weights are not among them."""

    def __init__(self) -> None:
        self.weights: set[int] = set()
        self.shapes: set[torch.Size] = set()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def next_step(self) -> None:
        """Start counting for another step."""
        self.peak, self.sizes = max(self.peak, sum(self.sizes.values())), {}

    def watching(self, *modules: nn.Module) -> saved_tensors_hooks:
        """Context that counts the saved tensors; `modules` hold the weights, which are not counted."""
        tensors = [t for module in modules for t in module.state_dict().values()]
        self.weights = {t.untyped_storage().data_ptr() for t in tensors}
        self.shapes = {t.shape for t in tensors}
        return saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        # Two tensors that live at the same time share an address only if they share memory. Under mixed precision,
        # weights are seen as copies.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights and tensor.shape not in self.shapes:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def _fixed_bytes(segmenter: Segmenter, stage: Stage[Any], recipe: Recipe) -> int:
    """Weights, gradients, the optimiser's state and the average of the weights."""
    flags = [(p, p.requires_grad) for p in segmenter.parameters()]
    try:
        groups = parameter_groups(segmenter, stage, recipe.weight_decay)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    trained = _bytes(p for group in groups for p in group["params"])
    weights = _bytes(segmenter.state_dict().values())
    states = {"sgd": 1, "adamw": 2}[recipe.optimizer]
    averages = 1 if recipe.ema_decay else 0
    return weights * (1 + averages) + _bytes(stage.state_dict().values()) + trained * (1 + states)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _evaluation(segmenter: Segmenter, labelled: Labelled, shrink: float) -> float:
    """Seconds of an evaluation, from that of the largest image."""
    (largest,) = _largest(labelled.images, 1)
    shape = labelled.images.size(largest)
    seen = resized_shape(shape, segmenter.preprocess.size)
    small = _shrunk(seen, shrink)
    one = Labelled(_Chosen(labelled.images, [largest]), [labelled.paths[largest]], labelled.table, labelled.decode)
    began = time.perf_counter()
    evaluate(segmenter, one, size=None if small == seen else small)
    seconds = (time.perf_counter() - began) * math.prod(seen) / math.prod(small)
    return seconds * sum(map(math.prod, labelled.images.sizes())) / math.prod(shape)
