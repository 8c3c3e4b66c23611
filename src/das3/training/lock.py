"""One run at a time writes in a run folder."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from das3.errors import RecipeError
from das3.files import why_not_written

__all__ = ["LOCK", "locked_folder"]

LOCK = ".lock"
"""File in the run folder that is locked; it stays, empty of meaning, when nobody holds the lock."""

_held: set[int] = set()


def _close_inherited() -> None:
    """Processes that load images are forked and may live a moment longer than the run: they must not hold its lock."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a run if there is none, and keep other runs out of it within.

    The system frees the lock of a process that dies.

    Raises:
        RecipeError: if another run writes in it, or it can't be written in.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RecipeError(why_not_written(error.filename or folder, error)) from error
    _held.add(descriptor)
    try:
        _take(descriptor, folder)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # on Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return  # a file system without locks
        who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise RecipeError(
            f"{folder} is in use by a run that is going on ({who}); wait for its end, or choose another --out"
        ) from None
    with suppress(OSError):  # it is for people alone, and the disk may be full
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
