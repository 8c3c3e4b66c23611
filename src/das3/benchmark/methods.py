"""The benchmark's methods: names for fields of a recipe. Baselines, presets and ablations are all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from das3.errors import RecipeError
from das3.recipe import Recipe, RunOptions, load_recipe, recipe_from, recipe_names
from das3.registry import DAS3_STAGES, stage_types
from das3.stages.options import LoopOptions
from das3.training.run_folder import NON_RESULT_OPTIONS

__all__ = ["ABLATION", "METHODS", "all_methods", "find_methods", "method_recipe", "variants"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "atp": {
        "stages": ["atp-align", "atp-selftrain", "propagate"],
        "propagate": {
            "steps": 200,
            "class_balance": 0.0,
            "spatial_prior_weight": 0.0,
            "color_transforms": False,
            "upscale": False,
            "source_weight": 0.0,
        },
    },
    "das3": {},
}
"""Fields of the recipe of methods that are more than one stage with its defaults."""

PRESETS = ("das3-paper", "das3-plus")
"""Recipes that come with das3 and are methods as well."""

ABLATION: Mapping[str, Sequence[str]] = {
    "stages": (
        "align",
        "selftrain",
        "propagate",
        "align+selftrain",
        "align+propagate",
        "selftrain+propagate",
    ),
    "align": (
        "align.gamma=0",  # plain entropy
        "align.gamma=2",
        "align.alpha=0",
        "align.alpha=0.3",
        "align.alpha=3",
        "align.diversity_weight=0",
        "align.diversity_weight=2",
        "align.steps=150",
        "align.prior=uniform",
        "align.class_balance=0",
        "align.color_transforms=false",
        "align.detach_focus=false",
    ),
    "selftrain": (
        "selftrain.negative_weight=0",  # positive labels alone
        "selftrain.positive_weight=0",  # negative labels alone
        "selftrain.top_fraction=0.1",
        "selftrain.top_fraction=0.5",
        "selftrain.top_fraction=1",
        "selftrain.thresholds=data",
        "selftrain.negative_threshold=0.01",
        "selftrain.negative_threshold=0.1",
        "selftrain.class_balance=0",
        "selftrain.spatial_prior_weight=0",
        "selftrain.color_transforms=false",
        "selftrain.source_weight=0",
        "selftrain.pairwise_weight=100",
        "selftrain.rare_temperature=0.1",
        "selftrain.steps=500",
        "selftrain.color=0.5",
        "selftrain.scale=[0.67, 1.33]",
    ),
    "propagate": (
        "propagate.mix=false",
        "propagate.easy_share=0",
        "propagate.easy_share=0.5",
        "propagate.easy_share=1",
        "propagate.class_balance=0",
        "propagate.spatial_prior_weight=0",
        "propagate.color_transforms=false",
        "propagate.source_weight=0",
        "propagate.pairwise_weight=100",
        "propagate.rare_temperature=0.1",
        "propagate.steps=480",
        "propagate.color=0.1",
    ),
    "all": ("ema_decay=0",),
}
"""Variants of das3 by the part that they change; see `find_methods` for the names."""


def all_methods() -> list[str]:
    """Every method: the stages that are methods of their own, then `METHODS` and `PRESETS`."""
    parts = {*Recipe().stages, *(stage for given in METHODS.values() for stage in given.get("stages", ()))}
    return [*(stage for stage in stage_types() if stage not in parts), *METHODS, *PRESETS]


def variants() -> list[str]:
    """das3 and everything in `ABLATION`."""
    return ["das3", *(name for names in ABLATION.values() for name in names)]


def find_methods(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Fields of the recipe of each method.

    Args:
        names: each a key of `METHODS`; a stage, or several joined by + (align+selftrain); das3 with a field changed
            (selftrain.top_fraction=0.5); a recipe that comes with das3; or a recipe file, whose stem names the method.
            "all" stands for `all_methods`.

    Raises:
        RecipeError: if a name is none of these, or two methods have the same.
    """
    wanted = [name for given in names for name in (all_methods() if given == "all" else [given])]
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(wanted):
        key = Path(name).stem if name.endswith((".yaml", ".yml")) else name
        if key in found or key in ("source", "oracle", "advent"):
            raise RecipeError(f"two methods are called {key!r}; rename the file of one of them")
        found[key] = _fields(name)
    return found


def _fields(name: str) -> dict[str, Any]:
    if name in METHODS:
        return dict(METHODS[name])
    stages = name.split("+")
    if all(stage in stage_types() for stage in stages):
        return {"stages": stages}
    if "=" in name:
        path, _, value = name.partition("=")
        stage, dot, field = path.rpartition(".")
        setting = {field: yaml.safe_load(value)}
        return {stage.replace("-", "_"): setting} if dot else setting
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        return _without_run(load_recipe(name))
    known = ", ".join(dict.fromkeys([*all_methods(), *Recipe().stages, "advent"]))
    raise RecipeError(
        f"no method is called {name!r}; there are: {known}; stages joined by +, a field of das3's recipe such as "
        "selftrain.top_fraction=0.5, and recipe files"
    )


def _without_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that describes the method; model, images and device are the suite's."""
    kept = {f.name for f in fields(LoopOptions)} - NON_RESULT_OPTIONS | {"crop"}
    dropped = {f.name for f in fields(RunOptions)} - kept
    return {name: value for name, value in values.items() if name not in dropped}


def method_recipe(fields_: Mapping[str, Any], shared: Mapping[str, Any], steps: int | None = None) -> Recipe:
    """The recipe of a method on a suite.

    Every method takes as many optimiser steps in total, over all stages and rounds, as das3 does by default, unless it
    sets its own; das3's own stages keep theirs, whichever stages are left out or added.

    Args:
        fields_: see `find_methods`.
        shared: fields for all methods; they override the method's.
        steps: das3's steps on this suite, by which the others' are scaled along; those of the defaults when None.

    Raises:
        RecipeError: if a field is unknown or a value does not fit.
    """
    recipe = recipe_from(merged(fields_, shared))
    usual = total_steps(Recipe())
    factor = steps / usual if steps else 1.0
    says = any("steps" in value for value in fields_.values() if isinstance(value, Mapping))
    own = set(recipe.stages) <= {stage.name for stage in DAS3_STAGES}
    if not says and not own and total_steps(recipe):
        factor *= usual / total_steps(recipe)
    if factor == 1:
        return recipe
    options = {stage: recipe.options_of(stage) for stage in recipe.stages}
    scaled = {stage: replace(given, steps=round(factor * given.steps)) for stage, given in options.items()}
    return replace(recipe, options=scaled)


def total_steps(recipe: Recipe) -> int:
    """Optimiser steps of all stages and rounds."""
    options = [recipe.options_of(stage) for stage in recipe.stages]
    return sum(given.steps * getattr(given, "rounds", 1) for given in options)


def merged(*several: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings on top of each other, the last one winning; mappings within them are merged as well."""
    result: dict[str, Any] = {}
    for mapping in several:
        for name, value in mapping.items():
            old = result.get(name)
            result[name] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
