"""`das3 completion`: a script by which a shell completes commands, options, choices, names and paths."""

from __future__ import annotations

import re
from argparse import HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

import shtab
from jsonargparse import ArgumentParser, Namespace

from das3.benchmark.methods import METHODS
from das3.benchmark.suites import SUITES
from das3.cli.command import command_parser
from das3.cli.help import PATHS
from das3.cli.overview import COMMANDS
from das3.data.published import DATASETS
from das3.recipe import recipe_names
from das3.registry import stage_types

__all__ = ["HELP", "add", "completion_script", "run"]

HELP = """
source <(das3 completion bash)

das3 completion fish > ~/.config/fish/completions/das3.fish
"""

_NAMES: Mapping[tuple[str, str], Callable[[], Sequence[str]]] = {
    ("adapt", "recipe"): recipe_names,
    ("recipes", "name"): recipe_names,
    ("benchmark", "suite"): lambda: list(SUITES),
    ("benchmark", "methods"): lambda: list(dict.fromkeys([*METHODS, *stage_types()])),
    ("adapt", "stages"): lambda: list(stage_types()),
    ("data", "name"): lambda: list(DATASETS),
}
"""(command, option) → the names that its value may have."""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"), help="the shell")


def run(given: Namespace) -> None:
    """Print the script."""
    print(completion_script(given.shell))


def completion_script(shell: str) -> str:
    """The script for bash, zsh, tcsh or fish."""
    whole = ArgumentParser(prog="das3", exit_on_error=False)
    commands = whole.add_subcommands(dest="command")
    for name, summary in COMMANDS.items():
        parser, _ = command_parser(name)
        parser.description = summary
        parser._get_formatter = partial(HelpFormatter, parser.prog)  # without notes on types and defaults
        for action in parser._actions:
            if action.choices is None:
                _declare(name, action)
        commands.add_subcommand(name, parser, help=summary)
    return _with_files(shtab.complete(whole, shell=shell), shell)


def _declare(command: str, action: Any) -> None:
    """Tell shtab what an option's value may be: names, the values of its type, files."""
    option = action.dest.replace("_", "-")
    names = list(_NAMES.get((command, option), list)()) or _values(getattr(action, "_typehint", None))
    is_path = option in PATHS and (command, option) not in (("data", "name"), ("recipes", "name"))
    if names:
        action.choices = [*names, shtab.Choice("file")] if is_path else names
    elif is_path:
        action.complete = shtab.FILE


def _with_files(script: str, shell: str) -> str:
    """Files beside names, which shtab does for bash alone; elsewhere it writes the mark of a file as one more name."""
    if shell == "bash":  # where nothing else fits, it completes file names itself
        return re.sub("^complete ", "complete -o default ", script, flags=re.MULTILINE)
    if shell == "fish":
        return re.sub("""-xka "([^"]*) 'file\\?'\"""", r'-rka "\1"', script)
    return re.sub(r"\(([^()]*) file\?\)", r"{compadd -- \1; _files}" if shell == "zsh" else r"(\1)", script)


def _values(hint: Any) -> list[str]:
    """All values of a type, where they are few."""
    if hint is bool:
        return ["true", "false"]
    kinds = [hint, *get_args(hint)] if get_origin(hint) is not Literal else [hint]
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
