"""What people type, as the parser wants it: lists without brackets, switches without a value, known options alone."""

from __future__ import annotations

import re
from difflib import get_close_matches

from jsonargparse import ArgumentParser

from das3.cli.options import recipe_first
from das3.errors import RecipeError
from das3.recipe import Recipe
from das3.recipes.old_names import refuse_old_arguments
from das3.training.supervised import SourceRecipe

__all__ = ["prepare"]

_LISTS = ("--stages", "--methods", "--rows", "--scales", "--class-names", "--bands", "--rgb-bands", "--mean", "--std")
"""Options whose value is a list even if only one is given."""


def prepare(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """Arguments of a command as its parser takes them.

    Raises:
        RecipeError: for an option that there is not, with the one that was probably meant.
    """
    # Training a source model is one stage, whose options stand beside those of the loop.
    refuse_old_arguments(arguments, SourceRecipe if parser.prog.endswith("train-source") else Recipe)
    _refuse_unknown(parser, arguments)
    return recipe_first(_bracketed(_switched_on(parser, arguments)))


def _refuse_unknown(parser: ArgumentParser, arguments: list[str]) -> None:
    known = [option for action in parser._actions for option in action.option_strings]
    for argument in arguments:
        name = argument.partition("=")[0]
        # `--model-args.width=32` sets an entry of the option `--model-args`.
        if not re.match("--[a-z]", name) or name in known or any(name.startswith(f"{option}.") for option in known):
            continue
        close = get_close_matches(name.replace("_", "-"), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"`{parser.prog} --help` lists the options"
        raise RecipeError(f"no option {name}; {hint}")


def _switched_on(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """`--flip` alone means `--flip=true`."""
    switches = {o for a in parser._actions if getattr(a, "_typehint", None) is bool for o in a.option_strings}
    after = [*arguments[1:], "--"]
    return [
        f"{argument}=true" if argument in switches and following.startswith("--") else argument
        for argument, following in zip(arguments, after, strict=False)
    ]


def _bracketed(arguments: list[str]) -> list[str]:
    """Let lists be written as `a,b`, or `a` alone, where the parser wants `[a,b]`."""
    written = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        letters = r"[^\s,\[\]]+" if option in _LISTS else r"[\w.:+-]+"
        plain = re.fullmatch(f"{letters}(,{letters})*", value) and not value.startswith("--")
        if plain and ("," in value or option in _LISTS):
            value = f"[{value}]"
        written.append(f"{option}={value}" if equals else value if not argument.startswith("--") else argument)
    return written
