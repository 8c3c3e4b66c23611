"""Command → function. Each command is a module of this folder with HELP, `add(parser)` and `run(arguments)`.

Importing torch takes seconds, so this module imports nothing heavy: `das3 --version`, `das3 --help` and Ctrl-C answer
before it is loaded.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches

from das3 import __version__
from das3.cli.overview import COMMANDS, overview
from das3.errors import Das3Error, RecipeError, Terminated, printable

__all__ = ["main"]

_GOES_ON = "a run goes on with --resume, a benchmark or demo with the same command"
_SHOW_CURSOR = "\x1b[?25h"

_NO_MEMORY = "there is not enough memory; lower --batch-size, --crop or --size, or take smaller images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of the process when None.

    Returns:
        Exit status: 0 done; 1 if a check failed, or if nobody reads the output any more (`| head`); 2 for an error that
        the user can act on, reported in one line; 130 after Ctrl-C; 143 after SIGTERM.
    """
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    try:
        signal.signal(signal.SIGTERM, _terminate)
        if before[signal.SIGINT] is signal.default_int_handler:  # else a shell's job in the background, or a notebook's
            signal.signal(signal.SIGINT, _end_at_once)  # libraries that are being imported make other errors of it
        sys.unraisablehook = _heed_interrupts
        if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold what a terminal's encoding does not
            sys.stdout.reconfigure(errors="backslashreplace")
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        if sys.stdout:
            sys.stdout.flush()
    except Das3Error as error:
        if not error.is_told:  # of several processes one says so
            _say(f"das3: error: {printable(error.in_one_line())}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if (stopped := _stopped_in(error)) is not None:
            return _tell_stopped(stopped)
        if not _is_lack_of_memory(error):
            raise
        _say(f"das3: error: {_NO_MEMORY}")
        return 2
    except KeyboardInterrupt as stopped:
        return _tell_stopped(stopped)
    except (BrokenPipeError, SystemExit) as stopped:
        # argparse prints --help and exits, so a pipe that is closed may show only when the output is flushed.
        if _reader_has_left(stopped):
            return 1
        raise
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{str(error.filename)[:300]}: " if error.filename else ""
        print(
            f"das3: error: {printable(where + error.strerror)}; check that path, its rights and the disk",
            file=sys.stderr,
        )
        return 2
    finally:
        for kind, handler in before.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
        if arguments is None and before[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end_at_once)  # nothing is left to do
        sys.unraisablehook = hook
    return status


def _tell_stopped(stopped: KeyboardInterrupt) -> int:
    """Say that Ctrl-C or SIGTERM ended the command; returns the exit status."""
    terminated = isinstance(stopped, Terminated)
    if os.environ.get("RANK", "0") == "0":
        _say(f"{'' if terminated else chr(10)}das3: {'terminated' if terminated else 'interrupted'}; {_GOES_ON}")
    return 143 if terminated else 130


def _stopped_in(error: BaseException) -> KeyboardInterrupt | None:
    """Ctrl-C or SIGTERM, where an error came of it: torch fails to leave a mode that it was entering just then."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause


def _is_lack_of_memory(error: Exception) -> bool:
    """Torch has no error of its own for it on the CPU."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _say(text: str) -> None:
    """Print to stderr, if anybody reads it."""
    with suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _interrupt(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, _end_at_once)
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: object) -> None:
    """End without tidying up: nothing has been begun yet, or Ctrl-C was pressed twice. Files are whole at any time."""
    with suppress(OSError):
        os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}\ndas3: interrupted; {_GOES_ON}\n".encode())
    os._exit(130)


def _work_begins() -> None:
    """From now on there is something to tidy up when Ctrl-C is pressed."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, _interrupt)


def _dispatch(arguments: list[str]) -> int:
    """Answer what needs no imports, and leave the rest to the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"das3 {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(COMMANDS)}"
        raise RecipeError(f"no command {name!r}; {hint}")
    from das3.cli.command import run_command

    return run_command(name, rest, ready=_work_begins)


def _reader_has_left(error: BaseException) -> bool:
    """Whether nobody reads the output any more (`| head`); what is left to print goes nowhere then."""
    try:
        if sys.stdout:
            sys.stdout.flush()
        # Output that is not buffered fails at once, and flushing it does not.
        gone = isinstance(error, BrokenPipeError) and _pipe_is_broken(sys.stdout.fileno())
    except BrokenPipeError:
        gone = True
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _pipe_is_broken(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _heed_interrupts(ignored: sys.UnraisableHookArgs) -> None:
    """Python ignores Ctrl-C while an object's destructor runs; raise it again a moment later."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        _work_begins()  # the first time has not been heeded
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)
