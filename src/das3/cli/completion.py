"""`das3 completion`: a script by which a shell completes commands, options, choices and paths."""

from __future__ import annotations

import re

import shtab
from jsonargparse import ArgumentParser, Namespace

from das3.cli.command import command_parser
from das3.cli.help import PATHS
from das3.cli.overview import COMMANDS

__all__ = ["HELP", "add", "completion_script", "run"]

HELP = """
source <(das3 completion bash)
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(given: Namespace) -> None:
    """Print the script."""
    print(completion_script(given.shell))


def completion_script(shell: str) -> str:
    """The script for bash, zsh or tcsh."""
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
