"""The stages and every other method that runs in their place, by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from das3.errors import RecipeError
from das3.stages.align import Align
from das3.stages.base import Stage
from das3.stages.bn import BatchNorm
from das3.stages.match import Match
from das3.stages.options import StageOptions
from das3.stages.propagate import Propagate
from das3.stages.selftrain import SelfTrain

__all__ = [
    "DAS3_STAGES",
    "Align",
    "BatchNorm",
    "Match",
    "Propagate",
    "SelfTrain",
    "Stage",
    "StageOptions",
    "find_stage",
    "stage_types",
]

DAS3_STAGES: tuple[type[Stage[Any]], ...] = (Align, SelfTrain, Propagate, BatchNorm, Match)
"""Those that are neither baselines nor other packages'."""


def stage_types() -> dict[str, type[Stage[Any]]]:
    """Stages by name: ours, the baselines, then those that packages offer under the entry point group `das3.stages`."""
    from das3.registry import BASELINES  # they are stages themselves and import from here

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
