"""Names of options in recipes of format 1: files and run folders are brought up to date, elsewhere they are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from das3.errors import RecipeError
from das3.registry import stage_types
from das3.stages.options import LoopOptions, bounds_of

__all__ = ["FORMAT", "refuse_old_arguments", "refuse_old_names", "up_to_date"]

FORMAT = 2
"""Format of the recipes that are written; those without one are of format 1."""

_REMOVED: Mapping[str, tuple[Any, ...]] = {
    "memory": (0, 0.0),
    "smoothing": (0, 0.0),
    "negative_where": ("all",),
    "rounds": (1,),
}
"""Options that are gone, and the values with which they did nothing; see docs/decisions."""


@cache
def _renamed(kind: type) -> dict[str | None, dict[str, str]]:
    """Old → new name of the options of a recipe of that kind (under None) and of each stage's."""
    kinds: dict[str | None, type] = {None: kind}
    kinds |= {name.replace("-", "_"): stage.Options for name, stage in stage_types().items()}
    return {
        part: {str(old): f.name for f in fields(kind) if (old := bounds_of(kind, f.name).get("old"))}
        for part, kind in kinds.items()
    }


def _old_names(values: Mapping[str, Any], kind: type) -> Iterator[tuple[str | None, str, str]]:
    """(stage or None, old name, new name) of every option that has another name now."""
    for part, names in _renamed(kind).items():
        given = values if part is None else values.get(part)
        if isinstance(given, Mapping):
            yield from ((part, old, new) for old, new in names.items() if old in given)


def refuse_old_names(values: Mapping[str, Any], where: str, kind: type = LoopOptions) -> None:
    """Raise RecipeError that says the new name of the first option that has another one now."""
    for part, old, new in _old_names(values, kind):
        prefix = f"{part}." if part else ""
        raise RecipeError(f"{where}: the option {prefix}{old} is called {prefix}{new} now; use that name")


def refuse_old_arguments(arguments: list[str], kind: type = LoopOptions) -> None:
    """The same for the command line: options such as `--align.a` or `--average`."""
    renamed = _renamed(kind)
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--")
        part, dot, option = name.rpartition(".")
        stage, old = (part.replace("-", "_") if dot else None), option.replace("-", "_")
        if argument.startswith("--") and (new := renamed.get(stage, {}).get(old)):
            raise RecipeError(f"the option --{name} is called --{part}{dot}{new.replace('_', '-')} now; use that name")


def up_to_date(values: Mapping[str, Any], where: str, kind: type = LoopOptions) -> dict[str, Any]:
    """Values of a recipe file of any format, as a recipe of today has them.

    Args:
        values: what the file says.
        where: the file, for errors.
        kind: of the recipe, a dataclass: it has the renamed options of its own, besides those of stages.

    Raises:
        RecipeError: if the recipe asks for something that is gone, has an option twice, or is of a newer format.
    """
    version = values.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise RecipeError(f"{where}: recipes of format {version!r} need a newer das3; this one reads up to {FORMAT}")
    fresh = {k: dict(v) if isinstance(v, Mapping) and k in _renamed(kind) else v for k, v in values.items()}
    fresh.pop("format", None)
    if version == FORMAT:
        return fresh
    for part, old, new in list(_old_names(fresh, kind)):
        given = fresh if part is None else fresh[part]
        if new in given:
            raise RecipeError(f"{where}: {old} and {new} are two names of one option; keep {new}")
        given[new] = given.pop(old)
    _drop_removed(fresh, where)
    return fresh


def _drop_removed(values: dict[str, Any], where: str) -> None:
    if values.pop("match", None) is not None or "match" in (values.get("stages") or ()):
        raise RecipeError(f"{where}: the stage match is gone, it was no better than bn; take it out of stages")
    for part, given in values.items():
        stage = stage_types().get(part.replace("_", "-"))
        if stage is None or not isinstance(given, dict):
            continue
        known = {f.name for f in fields(stage.Options)}
        for name, off in _REMOVED.items():
            if name in given and name not in known and given.pop(name) not in off:
                raise RecipeError(f"{where}: the option {part}.{name} is gone, it gained nothing; take it out")
