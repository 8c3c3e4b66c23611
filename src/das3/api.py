"""What Python code calls: `adapt`, `predict` and `evaluate`, on any model and any images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from das3.data.bad_images import SkippedImage, sound_images
from das3.data.class_table import ClassTable
from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled
from das3.dataclass_options import describe_options, options_from
from das3.errors import RecipeError
from das3.evaluation.evaluate import Evaluation
from das3.evaluation.evaluate import evaluate as measure
from das3.evaluation.predictions import Predictions
from das3.models.image_reading import fit_images
from das3.models.trust import refuse_code
from das3.recipe import ImageOptions, ModelOptions, Recipe, load_recipe, recipe_from
from das3.registry import find_stage
from das3.segmenter import Segmenter
from das3.training.launch import Result, check_classes, launch_run, open_evaluation, open_model
from das3.training.loop import make_fabric
from das3.training.phases import phases_of
from das3.training.processes import is_started_by_das3
from das3.training.run_folder import check_run_folder, saved_recipe
from das3.training.supervised import train_source

__all__ = ["Predictions", "Result", "adapt", "evaluate", "predict", "train_source"]


def adapt(
    model: str | Path | nn.Module | None = None,
    images: Any = None,
    *,
    out: str | Path | None = None,
    recipe: Recipe | str | Path | Mapping[str, Any] | None = None,
    evaluation: Labelled | None = None,
    resume: bool = False,
    quiet: bool = False,
    state_dict: bool = False,
    measure_candidates: bool = False,
    trust: bool = False,
    **options: Any,
) -> Result:
    """Adapt a trained segmentation model to unlabelled images, without the data it was trained on.

    Args:
        model: a network, or what `--model` takes; the network is copied, not changed.
        images: folder, list file, paths, arrays, dataset object or DataLoader of target images.
        out: run folder; a temporary one when None.
        recipe: a `Recipe`, a mapping of its fields, a YAML file or the name of a recipe that comes with das3.
        evaluation: labelled images to measure mIoU on after each stage; they are used for nothing else.
        resume: continue the run in `out` where it stopped, with its own options; those given too must be the same.
        quiet: show no progress.
        state_dict: also save the weights as a plain state dict, model.pt.
        measure_candidates: with `evaluation`, also measure every candidate that the guard had, for benchmarks.
        trust: run the code that a model folder, a hub repository or a recipe file names for its network.
        **options: fields of the recipe, e.g. `seed=1`, `align={"steps": 100}`, which override `recipe`;
            `help(das3.adapt)` lists all of them.

    Returns:
        The adapted model and the results of the run.

    Raises:
        RecipeError, ModelError, DataError: if an option, the model or the images can't be used; before any training.
        TrainingError: if a loss is not finite.
    """
    begun = saved_recipe(Path(out), Recipe) if resume and out is not None and not isinstance(recipe, Recipe) else None
    settings = _settle(recipe, options, model, images, out, begun or {})
    check_run_folder(settings.out, resume=resume)
    if begun and model is None:
        refuse_code(settings.model, f"{out}/recipe.yaml", trust=trust, instead="the argument `model`")
    if isinstance(recipe, str | Path) and model is None:
        refuse_code(settings.model, str(recipe), trust=trust, instead="the argument `model`")
    target = open_images(images if images is not None else _required(settings.images, "images"))
    skipped: list[SkippedImage] = []
    if settings.on_bad_image == "skip":
        target, _, skipped = sound_images(target)
    segmenter = open_model(settings, copy.deepcopy(model) if isinstance(model, nn.Module) else model, trust=trust)
    target = fit_images(target, segmenter, settings)
    if not is_started_by_das3():  # else process 0 has done so
        target.verify()
    labelled = check_classes(evaluation, segmenter) if evaluation else open_evaluation(settings, segmenter)
    return launch_run(
        segmenter,
        target,
        phases_of(settings),
        settings,
        evaluation=labelled,
        resume=resume,
        quiet=quiet,
        state_dict=state_dict,
        measure_every=settings.measure_every,
        report=settings.report,
        guard=settings.guard,
        measure_candidates=measure_candidates,
        skipped=skipped,
    )


@dataclass(frozen=True)
class OpenOptions(ImageOptions, ModelOptions):
    """How a model is opened, and how the images are read for it."""


def predict(
    model: str | Path | nn.Module,
    images: Any,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    tile: int | None = None,
    device: str | None = None,
    precision: str = "auto",
    trust: bool = False,
    **options: Any,
) -> Predictions:
    """Label images with a model.

    Args:
        model: a network or `Segmenter`, or what `--model` takes, e.g. a run folder; nothing of it is changed.
        images: folder, list file, paths, arrays, dataset object or DataLoader.
        flip: average with the prediction of the mirrored image.
        scales: average over these scales of the image.
        tile: predict in overlapping tiles of this side in pixels; large images are tiled by themselves.
        device: "auto", "cpu", "cuda" or "mps". None leaves a network where it is; what is opened here goes to a GPU if
            there is one.
        precision: "auto" (bf16 on a GPU that has it, else 32), "32", "bf16" or "16".
        trust: as of `adapt`.
        **options: how to open the model and read the images, as of `adapt`: `weights`, `mean`, `std`, `bands`, ….

    Returns:
        A sequence of H×W uint8 arrays of class ids at the images' own sizes, predicted when they are asked for.

    Raises:
        ModelError, DataError, RecipeError: if the model, the images or an option can't be used.
    """
    segmenter, given = _opened(model, options, trust=trust)
    fitted = fit_images(open_images(images), segmenter, given)
    autocast = _placed(segmenter, model, device, precision)
    return Predictions(segmenter, fitted, autocast, flip=flip, scales=scales, tile=tile)


def evaluate(
    model: str | Path | nn.Module,
    images: Any,
    labels: str | Path | None = None,
    *,
    classes: ClassTable | str | Path | None = None,
    class_map: str | Mapping[int, int] | None = None,
    boundary: bool = False,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    tile: int | None = None,
    device: str | None = None,
    precision: str = "32",
    trust: bool = False,
    **options: Any,
) -> Evaluation:
    """Measure a model on labelled images.

    Args:
        model: as of `predict`.
        images: likewise, or a published data set, or what `das3.open_labelled` returns.
        labels: folder of their labels, with the same file names; None for a published data set.
        classes: class table of the labels, a JSON or YAML file; one beside the labels is found.
        class_map: mapping, or `FILE.json[:key]`, from the labels' ids to the model's classes.
        boundary: also measure the boundary IoU.
        flip: as of `predict`, as are scales, tile and device.
        scales: as above.
        tile: as above.
        device: as above.
        precision: "32", as every run measures its models, or "auto", "bf16" or "16".
        trust: as of `adapt`.
        **options: as of `predict`.

    Returns:
        mIoU, IoU per class in [0, 1], and the confusion matrix.

    Raises:
        ModelError, DataError, RecipeError: if the model, the images, their labels or an option can't be used.
    """
    segmenter, given = _opened(model, options, trust=trust)
    labelled = images
    if not isinstance(labelled, Labelled):
        labelled = open_labelled(images, labels, classes, class_map=class_map, num_classes=segmenter.num_classes)
    fitted = fit_images(labelled.images, segmenter, given)
    labelled = check_classes(labelled.read_as(fitted), segmenter)
    with _placed(segmenter, model, device, precision)():
        return measure(segmenter, labelled, flip=flip, scales=scales, tile=tile, boundary=boundary)


def _opened(model: str | Path | nn.Module, options: Mapping[str, Any], *, trust: bool) -> tuple[Segmenter, OpenOptions]:
    """A segmenter of its own; of a `Segmenter` the weights are shared, since das3 changes nothing of them here."""
    given = options_from(OpenOptions, options)
    if isinstance(model, Segmenter):
        return copy.copy(open_model(given, model, trust=trust)), given
    return open_model(given, copy.deepcopy(model) if isinstance(model, nn.Module) else model, trust=trust), given


def _placed(
    segmenter: Segmenter, model: str | Path | nn.Module, device: str | None, precision: str
) -> Callable[[], AbstractContextManager[Any]]:
    """Move the segmenter to the device that was asked for; returns the maker of the context that it runs in."""
    stays = device is None and isinstance(model, nn.Module)
    here = next(segmenter.parameters()).device
    fabric = make_fabric(here.type if stays else device or "auto", precision)
    if not stays:
        segmenter.to(fabric.device)
    return fabric.autocast  # type: ignore[no-any-return]


def _settle(
    recipe: Recipe | str | Path | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    model: Any,
    images: Any,
    out: str | Path | None,
    begun: Mapping[str, Any],
) -> Recipe:
    """The recipe with the given options on top, all of it on the options `begun` of the run that is resumed."""
    named = {"model": model, "images": images, "out": out}
    paths: dict[str, Any] = {name: str(value) for name, value in named.items() if isinstance(value, str | Path)}
    if isinstance(recipe, Recipe) and not options:
        return replace(recipe, **paths)
    if isinstance(recipe, Recipe):
        values: dict[str, Any] = recipe.to_dict()
    elif isinstance(recipe, str | Path):
        values = load_recipe(recipe)
    else:
        values = dict(recipe or {})
    return recipe_from({**_merged(_merged(begun, values), options), **paths})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Options on top of others; those of a stage one by one."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name) or {}
        merged[name] = {**under, **value} if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return merged


def _required(value: str | None, option: str) -> str:
    if value is None:
        raise RecipeError(f"no {option} given; name them with --{option}")
    return value


def _options_in_words() -> str:
    """Every option of `adapt`, for `help(das3.adapt)`: the recipe's fields, then those of the stages it runs."""
    indent = " " * 8
    parts = [
        "    Options (with their defaults):",
        describe_options(Recipe, indent, skip=("model", "images", "out", "options")),
    ]
    for stage in Recipe().stages:
        parts += [
            "",
            f"    Options of the stage {stage}, as {stage}={{…}}:",
            describe_options(find_stage(stage).Options, indent),
        ]
    return "\n".join([*parts, "", "    `das3 adapt --help-stage NAME` lists those of other stages.", "    "])


adapt.__doc__ = f"{adapt.__doc__}\n{_options_in_words()}"
