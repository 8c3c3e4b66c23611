"""`--out RUN --resume` alone goes on with a run: its options are what the command line does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from das3.dataclass_options import plain_message
from das3.errors import RecipeError
from das3.recipe import RunOptions
from das3.training.run_folder import saved_recipe

__all__ = ["default_to_run"]


def default_to_run(parser: ArgumentParser, arguments: Sequence[str], kind: type[RunOptions]) -> None:
    """Make the options of the run that the arguments resume, if they do, the parser's defaults.

    Raises:
        RecipeError: if there is no such run and no model or images to begin one with, or its recipe can't be read.
    """
    out = _value(arguments, "--out")
    if "--resume" not in arguments or out is None:
        return
    values = saved_recipe(Path(out), kind)
    if values is None:
        if _value(arguments, "--images") is None and _value(arguments, "--recipe") is None:
            raise RecipeError(f"{out} holds no run to go on with; check --out, or name what to begin a run with")
        return
    try:
        parser.parse_object(values)
    except ArgumentError as error:
        raise RecipeError(f"{Path(out) / 'recipe.yaml'}: {plain_message(error)}") from error
    parser.set_defaults(_dotted(values))


def _value(arguments: Sequence[str], name: str) -> str | None:
    """The last value that an option is given."""
    found = [a.partition("=")[2] for a in arguments if a.startswith(f"{name}=")]
    found += [value for a, value in pairwise(arguments) if a == name]
    return found[-1] if found else None


def _dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {k: v for k, v in values.items() if isinstance(v, Mapping) and k != "model_args"}
    return {k: v for k, v in values.items() if k not in nested} | {
        f"{stage}.{name}": value for stage, options in nested.items() for name, value in options.items()
    }
