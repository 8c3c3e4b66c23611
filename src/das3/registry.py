"""Every stage and baseline by name, for recipes, the command line and the benchmark."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from das3.baselines import BASELINES
from das3.errors import RecipeError
from das3.stages import DAS3_STAGES, Stage

__all__ = ["BASELINES", "DAS3_STAGES", "find_stage", "stage_types"]


@cache
def stage_types() -> dict[str, type[Stage[Any]]]:
    """Stages by name: ours, the baselines, then those that packages offer under the entry point group `das3.stages`."""
    found = {stage.name: stage for stage in (*DAS3_STAGES, *BASELINES)}
    for entry in entry_points(group="das3.stages"):
        found.setdefault(entry.name, entry.load())
    return found


def find_stage(name: str) -> type[Stage[Any]]:
    """The stage of that name.

    Raises:
        RecipeError: if there is none.
    """
    types = stage_types()
    if name not in types:
        raise RecipeError(f"no stage is called {name!r}; there are: {', '.join(types)}")
    return types[name]
