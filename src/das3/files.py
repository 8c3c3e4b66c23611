"""Atomic writing: an interruption, a full disk or a second process never leaves half a file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = [
    "DISK_ERRORS",
    "os_error",
    "part_of",
    "remove_leftovers",
    "sync_files",
    "why_not_written",
    "write_atomically",
    "writing_atomically",
]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DISK_ERRORS = _FULL | {errno.EROFS, errno.EIO}
"""Numbers of errors that are the disk's, whatever is written."""
_LEFTOVERS = ("**/*.part", ".model.*")
"""What a killed process may leave in a run folder: halves of files, and of the folder of the model."""


class _PartFile(io.FileIO):
    """Remembers why it could not be written: libraries that are handed a file raise errors of their own instead."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def part_of(path: Path) -> Path:
    """Where a file lies while it is being written, by this process; not longer than file systems allow names to be."""
    name = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return path.with_name(f".{os.getpid()}.{name}.part")


@contextmanager
def writing_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    At every moment `path` is the old file or the new one, whole, also after a power cut. The part that is being written
    has the process id in its name, so that processes do not disturb each other; it is removed if the block fails.

    Raises:
        OSError: if it can't be written, with the file's name, whatever a library in the block made of it.
    """
    part = part_of(path)
    raw = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _PartFile(part, "wb")
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    except BaseException as error:
        if raw is not None:
            with suppress(OSError):
                raw.close()
        with suppress(OSError):
            part.unlink(missing_ok=True)
        cause = raw.failed if raw is not None and raw.failed is not None else error
        if isinstance(cause, OSError) and cause.errno:
            where = cause.filename if cause.filename not in (None, str(part)) else str(path)
            raise OSError(cause.errno, cause.strerror, where) from error
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Put `data` into `path`, see `writing_atomically`.

    Text is written as UTF-8. What is none, such as bytes in the names of files, is written as \\udcff, which JSON reads
    back.
    """
    with writing_atomically(path) as file:
        file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def os_error(error: BaseException) -> OSError | None:
    """The error of the operating system behind an exception of a library, None if there is none.

    Rust's libraries (safetensors) say only its number, in their text.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen
        if found := re.search(r"\(os error (\d+)\)", str(seen)):
            number = int(found.group(1))
            return OSError(number, os.strerror(number))
        seen = seen.__cause__ or seen.__context__
    return None


def why_not_written(path: object, error: OSError) -> str:
    """In words: which file can't be written, why, and what helps."""
    if error.errno in _FULL:
        return f"can't write {path}: no space left ({error.strerror}); free some space on that disk"
    if error.errno == errno.EROFS:
        return f"can't write {path}: the disk is read-only; name a folder on another one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"can't write {path}: permission denied; change its permissions or name another folder"
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY):
        return f"can't write {path}: {(error.strerror or '').lower()}; move away what is in its place"
    return f"can't write {path} ({error.strerror}); check the disk"


def sync_files(folder: Path) -> None:
    """Wait until all files of a folder are on the disk: after a power cut none is empty that was written before."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left half-written in a run folder that no other process writes in."""
    for pattern in _LEFTOVERS:
        for left in folder.glob(pattern):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink()
