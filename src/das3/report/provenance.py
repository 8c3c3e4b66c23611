"""Where a run's result comes from: options, versions, machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from das3 import __version__
from das3.errors import Das3Error
from das3.recipe import Recipe, recipe_from

__all__ = ["changed_options", "flat_options", "versions"]

_LIBRARIES = ("torch", "numpy", "pillow", "transformers", "segmentation-models-pytorch", "timm", "torchvision")


def flat_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their name on the command line: a stage's under `stage.option`."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping) and key != "model_args":
            flat.update({f"{key}.{name}": one for name, one in value.items()})
        else:
            flat[key] = value
    return flat


def changed_options(recipe: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(option, value, default) of the options that were given; nothing of a recipe that this version can't read."""
    try:
        stages = tuple(recipe.get("stages") or Recipe().stages)
        defaults = flat_options(recipe_from({"stages": list(stages)}).to_dict())
    except Das3Error:
        return []
    given = flat_options(recipe)
    return [(key, value, defaults.get(key)) for key, value in given.items() if value != defaults.get(key)]


def versions(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, version) of the run's das3, and of what the report was made with."""
    found = [("das3 (run)", str(summary.get("das3", "unknown"))), ("das3 (report)", __version__)]
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return [*found, ("Python", platform.python_version()), ("machine", f"{platform.system()} {platform.machine()}")]
