"""Atomic writing: an interruption, a full disk or a second process never leaves half a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["part_of", "write_atomically", "writing_atomically"]


def part_of(path: Path) -> Path:
    """Where a file lies while it is being written, by this process; not longer than file systems allow names to be."""
    name = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return path.with_name(f".{os.getpid()}.{name}.part")


@contextmanager
def writing_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    At every moment `path` is the old file or the new one, whole. The part that is being written has the process id in
    its name, so that processes do not disturb each other; it is removed if the block fails.

    Raises:
        OSError: if it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` into `path`, see `writing_atomically`."""
    with writing_atomically(path) as file:
        file.write(data)
