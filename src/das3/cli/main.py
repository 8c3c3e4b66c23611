"""Command → function. Each command is a module of this folder with HELP, `add(parser)` and `run(arguments)`."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import shtab
from jsonargparse import ArgumentError, ArgumentParser

from das3 import __version__
from das3.cli.options import recipe_first, refuse_unnamed_code
from das3.errors import Das3Error
from das3.recipe import plain_message

__all__ = ["main"]

_COMMANDS = (
    *("demo", "train-source", "adapt", "report", "compare", "evaluate", "predict", "convert", "data", "recipes"),
    *("benchmark", "tables"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 done; 1 if what was checked is not whole; 2 for an error that the user can act on, said in one
        line; 130 after Ctrl-C.
    """
    parser, modules = _parser()
    handler, hook = signal.signal(signal.SIGTERM, signal.default_int_handler), sys.unraisablehook
    sys.unraisablehook = _heed_interrupts
    try:
        given = _brackets(sys.argv[1:] if arguments is None else list(arguments))
        parsed = parser.parse_args(recipe_first(given))
        command = parsed.command
        if command == "completion":
            print(shtab.complete(parser, shell=parsed.completion.shell))
            return 0
        refuse_unnamed_code(parsed[command], given)
        status: int | None = modules[command].run(parsed[command])
    except ArgumentError as error:
        return _fail(f"{plain_message(error)}")
    except Das3Error as error:
        return 2 if error.is_told else _fail(str(error))
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says so
            print(
                "\ndas3: interrupted; a run goes on with --resume, a benchmark or demo with the same command",
                file=sys.stderr,
            )
        return 130
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = hook
    return status or 0


def _heed_interrupts(ignored: sys.UnraisableHookArgs) -> None:
    """Ctrl-C while an object's destructor runs is ignored by Python; it is raised again a moment later."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def _parser() -> tuple[ArgumentParser, dict[str, ModuleType]]:
    parser = ArgumentParser(
        prog="das3",
        version=__version__,
        exit_on_error=False,
        description="Adapt a trained semantic segmentation model to new, unlabelled images, without its source data.",
    )
    commands = parser.add_subcommands(dest="command", title="commands", description="`das3 COMMAND --help` says more")
    modules = {}
    for name in _COMMANDS:
        modules[name] = module = import_module(f"das3.cli.{name.replace('-', '_')}")
        sub = ArgumentParser(description=module.HELP, exit_on_error=False)
        module.add(sub)
        commands.add_subcommand(name, sub, help=module.HELP.split("\n")[0])
    completion = ArgumentParser(description="Print the shell's completion script.", exit_on_error=False)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    commands.add_subcommand("completion", completion, help="print a script that completes das3's options in a shell")
    return parser, modules


_LISTS = ("--stages", "--methods", "--rows", "--scales", "--class-names")


def _brackets(arguments: list[str]) -> list[str]:
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


def _fail(message: str) -> int:
    print(f"das3: error: {message}", file=sys.stderr)
    return 2
