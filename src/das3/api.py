"""`adapt`, the main entry point."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from das3.data.labels import Labelled
from das3.data.open import open_images
from das3.errors import RecipeError
from das3.models.image_reading import fit_images
from das3.models.trust import refuse_code
from das3.recipe import Recipe, load_recipe, recipe_from
from das3.training.launch import Result, check_classes, launch_run, open_evaluation, open_model
from das3.training.phases import phases_of
from das3.training.processes import is_started_by_das3

__all__ = ["Result", "adapt"]


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
        images: folder, list file, paths or dataset object of target images.
        out: run folder; a temporary one when None.
        recipe: a `Recipe`, a mapping of its fields, a YAML file or the name of a recipe that comes with das3.
        evaluation: labelled images to measure mIoU on after each stage; they are used for nothing else.
        resume: continue the run in `out` where it stopped.
        quiet: show no progress.
        state_dict: also save the weights as a plain state dict, model.pt.
        measure_candidates: with `evaluation`, also measure every candidate that the guard had, for benchmarks.
        trust: run the code that a model folder, a hub repository or a recipe file names for its network.
        **options: fields of the recipe, e.g. `seed=1`, `align={"steps": 100}`; they override `recipe`.

    Returns:
        The adapted model and the results of the run.

    Raises:
        RecipeError, ModelError, DataError: if an option, the model or the images can't be used; before any training.
        TrainingError: if a loss is not finite.
    """
    settings = _settle(recipe, options, model, images, out)
    if isinstance(recipe, str | Path) and model is None:
        refuse_code(settings.model, str(recipe), trust=trust, instead="the argument `model`")
    target = open_images(images if images is not None else _required(settings.images, "images"))
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
    )


def _settle(
    recipe: Recipe | str | Path | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    model: Any,
    images: Any,
    out: str | Path | None,
) -> Recipe:
    """The recipe with the given options on top; an unchanged recipe is not parsed again."""
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
    for name, value in options.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, Mapping) else value
    return recipe_from({**values, **paths})


def _required(value: str | None, option: str) -> str:
    if value is None:
        raise RecipeError(f"no {option} given; name them with --{option}")
    return value
