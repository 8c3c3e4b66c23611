"""Run one command: build its parser, parse its arguments, call its module. And the completion of all of them."""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType

import shtab
from jsonargparse import ArgumentError, ArgumentParser

from das3.cli.arguments import prepare
from das3.cli.help import PATHS, Parser
from das3.cli.main import COMMANDS
from das3.errors import RecipeError
from das3.recipe import plain_message

__all__ = ["command_parser", "completion_script", "run_command"]


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command with its arguments; returns the exit status.

    Raises:
        Das3Error: for anything that the user can act on, wrong arguments included.
    """
    parser, module = command_parser(name)
    try:
        parsed = parser.parse_args(prepare(parser, arguments))
    except ArgumentError as error:
        raise RecipeError(plain_message(error)) from error
    if name == "completion":
        print(completion_script(parsed.shell))
        return 0
    status: int | None = module.run(parsed)
    return status or 0


def command_parser(name: str) -> tuple[Parser, ModuleType]:
    """The parser of a command, and the module that runs it."""
    summary = f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}."
    if name == "completion":
        parser = Parser(prog=f"das3 {name}", description=f"{summary}\n\nsource <(das3 completion bash)")
        parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
        return parser, import_module("das3.cli")
    module = import_module(f"das3.cli.{name.replace('-', '_')}")
    parser = Parser(prog=f"das3 {name}", description=f"{summary}\n\n{module.HELP.strip()}")
    module.add(parser)
    return parser, module


def completion_script(shell: str) -> str:
    """A script for bash, zsh or tcsh that completes commands, options, choices and paths."""
    whole = ArgumentParser(prog="das3", exit_on_error=False)
    commands = whole.add_subcommands(dest="command")
    for name, summary in COMMANDS.items():
        parser, _ = command_parser(name)
        for action in parser._actions:
            if action.choices is None and action.dest.replace("_", "-") in PATHS:
                action.complete = shtab.FILE
        commands.add_subcommand(name, parser, help=summary)
    script: str = shtab.complete(whole, shell=shell)
    # Where nothing else fits, bash completes file names itself.
    return re.sub("^complete ", "complete -o default ", script, flags=re.MULTILINE) if shell == "bash" else script
