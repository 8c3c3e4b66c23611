"""Run one command: build its parser, parse its arguments, call its module."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from jsonargparse import ArgumentError

from das3.cli.arguments import prepare
from das3.cli.help import Parser
from das3.cli.options import refuse_unnamed_code
from das3.cli.overview import COMMANDS
from das3.dataclass_options import plain_message
from das3.errors import RecipeError

__all__ = ["command_parser", "run_command"]


def run_command(name: str, arguments: list[str], ready: Callable[[], None] = lambda: None) -> int:
    """Run a command with its arguments; returns the exit status.

    Args:
        name: of the command.
        arguments: that follow it.
        ready: called when everything is imported and parsed, before the work begins.

    Raises:
        Das3Error: for anything that the user can act on, wrong arguments included.
    """
    parser, module = command_parser(name)
    if hasattr(module, "RECIPE"):
        from das3.cli.resuming import default_to_run

        default_to_run(parser, arguments, module.RECIPE)
    try:
        parsed = parser.parse_args(prepare(parser, arguments))
    except ArgumentError as error:
        raise RecipeError(plain_message(error)) from error
    refuse_unnamed_code(parsed, arguments)
    ready()
    status: int | None = module.run(parsed)
    return status or 0


def command_parser(name: str) -> tuple[Parser, ModuleType]:
    """The parser of a command, and the module that runs it."""
    module = import_module(f"das3.cli.{name.replace('-', '_')}")
    summary = f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}."
    parser = Parser(prog=f"das3 {name}", description=f"{summary}\n\n{module.HELP.strip()}")
    module.add(parser)
    return parser, module
