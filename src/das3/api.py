"""`adapt`, the few lines that everything else serves."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from das3.data.label_store import LabelStore
from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled
from das3.errors import ModelError, RecipeError
from das3.evaluation.evaluate import evaluate
from das3.models import load_segmenter, save_segmenter
from das3.recipe import ModelOptions, Recipe, RunOptions, load_recipe, recipe_from
from das3.segmenter import Segmenter
from das3.training.loop import make_fabric
from das3.training.progress import Display
from das3.training.run import Run, phases_of, run_phases

__all__ = ["Result", "adapt", "check_classes", "measure_on", "open_evaluation", "open_model", "percent"]


@dataclass(frozen=True)
class Result:
    """What an adaptation hands back.

    Attributes:
        model: the adapted network, of the type that came in, on the CPU and in evaluation mode.
        segmenter: the same, with its preprocessing and class names: RGB images in [0, 1] to logits.
        metrics: what summary.json says: a row per stage with its seconds, and mIoU in percent if labels were given.
        pseudo_labels: labels of the last self-training stage per image, or None if no stage made any.
        folder: of the run.
    """

    model: nn.Module
    segmenter: Segmenter
    metrics: dict[str, Any]
    pseudo_labels: LabelStore | None
    folder: Path


def open_model(recipe: ModelOptions, model: str | Path | nn.Module | None = None) -> Segmenter:
    """The segmenter that the recipe's model options describe; `model` stands in for the recipe's.

    Raises:
        RecipeError: if no model is named.
        ModelError: if it can't be used.
    """
    chosen = model if model is not None else recipe.model
    if chosen is None:
        raise RecipeError("no model given; name one with --model, e.g. a folder saved by Hugging Face, smp or das3")
    segmenter = load_segmenter(
        chosen,
        weights=Path(recipe.weights) if recipe.weights else None,
        classifier=recipe.classifier,
        num_classes=recipe.num_classes,
        class_names=recipe.class_names,
        mean=recipe.mean,
        std=recipe.std,
        value_range=recipe.value_range,
        channels=recipe.channels,
        size=recipe.size,
        output_key=recipe.output_key,
        model_args=recipe.model_args or None,
    )
    if segmenter.num_classes > 255:
        raise ModelError(f"the model has {segmenter.num_classes} classes; das3 takes 255 at most")
    return segmenter


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
    measure_every: int = 0,
    **options: Any,
) -> Result:
    """Adapt a trained segmentation model to unlabelled images, without the data it was trained on.

    Args:
        model: a network, or what `--model` takes; the network is copied, not changed.
        images: folder, list file, paths or dataset object of target images.
        out: run folder; a temporary one when None.
        recipe: a `Recipe`, a mapping of its fields, a YAML file or the name of a recipe that comes with das3.
        evaluation: labelled images to measure mIoU on after each stage; nothing else is done with them.
        resume: go on where the run in `out` stopped.
        quiet: show no progress.
        state_dict: also save the weights as a plain state dict, model.pt.
        measure_every: with `evaluation`, also measure about every so many steps, into metrics.jsonl.
        **options: fields of the recipe, e.g. `seed=1`, `align={"steps": 100}`; they win over `recipe`.

    Returns:
        The adapted model and what is known about it.

    Raises:
        RecipeError, ModelError, DataError: if an option, the model or the images can't be used; before any training.
        TrainingError: if a loss is not finite.
    """
    settings = _settle(recipe, options, model, images, out)
    source = open_images(images if images is not None else _needed(settings.images, "images"))
    source.verify()
    segmenter = open_model(settings, copy.deepcopy(model) if isinstance(model, nn.Module) else model)
    labelled = check_classes(evaluation, segmenter) if evaluation else open_evaluation(settings, segmenter)
    fabric = make_fabric(settings.device, settings.precision, settings.devices)
    fabric.launch()
    folder = Path(settings.out or tempfile.mkdtemp(prefix="das3-"))
    run = Run(folder, settings, resume=resume)
    with Display(quiet=quiet) as display:
        display.say(segmenter.describe())
        display.say(f"{len(source)} target images, on {fabric.device}, into {folder}")
        target = source.resized(segmenter.preprocess.size, cache_bytes=int(settings.cache_gib * 2**30))
        outcome = run_phases(
            run,
            fabric,
            segmenter,
            target,
            phases_of(settings),
            measure=measure_on(labelled, display),
            display=display,
            measure_every=measure_every,
        )
    segmenter.to("cpu").eval()
    if fabric.is_global_zero:
        save_segmenter(segmenter, folder / "model", state_dict=state_dict)
    summary = run.write_summary(outcome.rows)
    return Result(segmenter.model, segmenter, summary, outcome.pseudo_labels, folder)


def measure_on(labelled: Labelled | None, display: Display) -> Callable[[Segmenter], dict[str, Any]]:
    """How `run_phases` measures a model: mIoU and IoU per class in percent, None without labels."""

    def measure(segmenter: Segmenter) -> dict[str, Any]:
        if labelled is None:
            return {"miou": None, "per_class_iou": None}
        return percent(evaluate(segmenter, labelled))

    return measure


def percent(evaluation: Any) -> dict[str, Any]:
    """mIoU and IoU per class as summary.json and result files give them: in percent, absent classes None."""
    per_class = {
        name: None if iou != iou else round(100 * iou, 4)  # NaN is not JSON
        for name, iou in evaluation.per_class_iou.items()
    }
    return {"miou": round(100 * evaluation.miou, 4), "per_class_iou": per_class}


def _settle(
    recipe: Recipe | str | Path | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    model: Any,
    images: Any,
    out: str | Path | None,
) -> Recipe:
    if isinstance(recipe, Recipe):
        values: dict[str, Any] = recipe.to_dict()
    elif isinstance(recipe, str | Path):
        values = load_recipe(recipe)
    else:
        values = dict(recipe or {})
    for name, value in options.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, Mapping) else value
    for name, value in (("model", model), ("images", images), ("out", out)):
        if isinstance(value, str | Path):
            values[name] = str(value)
    return recipe_from(values)


def _needed(value: str | None, option: str) -> str:
    if value is None:
        raise RecipeError(f"no {option} given; name them with --{option}")
    return value


def open_evaluation(recipe: RunOptions, segmenter: Segmenter) -> Labelled | None:
    """The labelled images that the recipe names for evaluation, if it does; their classes are the segmenter's."""
    if recipe.eval_images is None:
        return None
    labelled = open_labelled(
        recipe.eval_images,
        recipe.eval_labels,
        recipe.classes,
        class_map=recipe.class_map,
        num_classes=segmenter.num_classes,
    )
    labelled.check(sample=32)
    return check_classes(labelled, segmenter)


def check_classes(labelled: Labelled, segmenter: Segmenter) -> Labelled:
    """The labelled images, if the model predicts their classes.

    Raises:
        ModelError: if the numbers differ.
    """
    if labelled.num_classes != segmenter.num_classes:
        raise ModelError(
            f"the model predicts {segmenter.num_classes} classes but the evaluation labels have "
            f"{labelled.num_classes}; give the matching --classes or --class-map"
        )
    return labelled
