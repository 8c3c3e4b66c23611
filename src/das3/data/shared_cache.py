"""Decoded images that several processes have in common: in memory, and beyond it in a file that is mapped into it."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from das3.data.pixels import Masked, Pixel

__all__ = ["Room", "SharedCache"]


@dataclass(frozen=True)
class Room:
    """How many bytes of decoded images may be kept.

    Attributes:
        memory: those of the first images.
        disk: those of the images after them, and not more than half of what is free.
        folder: where the file is; without one there is none.
    """

    memory: int = 0
    disk: int = 0
    folder: Path | None = None

    def on_disk(self) -> int:
        """Bytes that the file may have."""
        if self.folder is None or not self.disk:
            return 0
        try:
            return min(self.disk, shutil.disk_usage(self.folder).free // 2)
        except OSError:
            return 0


class SharedCache:
    """Decoded images, and where they have data, in memory that this process and its children share, then in a file.

    The first ones are kept, up to a number of bytes. The file has no name, so that it is gone when the last process
    that uses it ends, however it ends.

    Two processes may decode an image at the same time; both then write the same bytes.

    Args:
        sizes: (height, width) of every image.
        pixel_bytes: of one pixel, 4 for a float32.
        room: bytes of all.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], pixel_bytes: int, room: Room) -> None:
        ends = np.cumsum([0, *(pixel_bytes * height * width for height, width in sizes)])
        self.in_memory = _count(ends, room.memory)
        begin = int(ends[self.in_memory])
        count = _count(ends, begin + room.on_disk()) if self.in_memory < len(sizes) else self.in_memory
        self.sizes, self.pixel_bytes, self.starts = list(sizes[:count]), pixel_bytes, ends[: count + 1].tolist()
        self.folder = room.folder
        self._map()

    def _map(self) -> None:
        """Pages take no memory before they are written. A byte per image: 0 is none, 1 uint8, 2 float32, + 2 masked."""
        self.masks: dict[int, NDArray[np.bool_]] = {}  # few images have any, and each process finds its own
        self.forms: NDArray[np.uint8] | None = None
        self.bytes = self.file_bytes = np.empty(0, np.uint8)
        self.file: IO[bytes] | None = None
        try:
            self._open_file()
        except OSError:  # a folder that can't be written to, a limit of files' sizes
            self.file = None
        if self.file is None:
            self.sizes = self.sizes[: self.in_memory]
        try:
            if self.in_memory:
                self.bytes = np.frombuffer(mmap.mmap(-1, self.starts[self.in_memory]), np.uint8)
            if self.sizes:
                self.forms = np.frombuffer(mmap.mmap(-1, len(self.sizes)), np.uint8)
        except OSError:  # no memory: it goes without
            self.forms = None

    def _open_file(self) -> None:
        if len(self.sizes) == self.in_memory:
            return
        size = self.starts[-1] - self.starts[self.in_memory]
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # open as long as the cache is there
        os.truncate(self.file.fileno(), size)
        self.file_bytes = np.frombuffer(mmap.mmap(self.file.fileno(), size), np.uint8)

    def _place(self, i: int) -> tuple[NDArray[np.uint8], int, int]:
        """Where image i is: the bytes of memory or file, and which of them."""
        if i < self.in_memory:
            return self.bytes, self.starts[i], self.starts[i + 1]
        begin = self.starts[self.in_memory]
        return self.file_bytes, self.starts[i] - begin, self.starts[i + 1] - begin

    def get(self, i: int) -> Masked | None:
        """Image i, a view of the memory or the file, and its mask; None if it is not there."""
        if self.forms is None or i >= len(self.sizes) or not self.forms[i]:
            return None
        if self.forms[i] > 2 and i not in self.masks:
            return None
        kept, first, end = self._place(i)
        found: Pixel = kept[first:end].view(np.uint8 if self.forms[i] % 2 else np.float32).reshape(*self.sizes[i], -1)
        return found, self.masks.get(i)

    def put(self, i: int, image: Pixel, valid: NDArray[np.bool_] | None) -> Masked:
        """Keep image i if there is a place for it; what `get` then returns."""
        if self.forms is None or i >= len(self.sizes) or image.nbytes != self.starts[i + 1] - self.starts[i]:
            return image, valid
        if image.shape[:2] != self.sizes[i] or image.dtype not in (np.uint8, np.float32):
            return image, valid
        flat = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        kept, first, end = self._place(i)
        if i < self.in_memory:
            kept[first:end] = flat
        elif not self._written(flat, first):
            return image, valid
        if valid is not None:
            self.masks[i] = valid
        self.forms[i] = (1 if image.dtype == np.uint8 else 2) + (0 if valid is None else 2)
        return self.get(i) or (image, valid)

    def _written(self, flat: NDArray[np.uint8], first: int) -> bool:
        """Whether the file took it. Written to as memory, a full disk would end the process."""
        done = 0
        try:
            while self.file is not None and done < len(flat):
                done += os.pwrite(self.file.fileno(), flat[done:].data, first + done)
        except OSError:
            return False
        return done == len(flat)

    def close(self) -> None:
        """Keep nothing any more, and give memory and file back."""
        self.forms, self.masks = None, {}
        self.bytes = self.file_bytes = np.empty(0, np.uint8)
        if self.file is not None:
            self.file.close()
            self.file = None

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not a fork decodes for itself; a copy of all pixels for each would cost more."""
        without = dict.fromkeys(("bytes", "file_bytes", "forms", "file"))
        count = self.in_memory
        return {
            **self.__dict__,
            **without,
            "masks": {},
            "sizes": self.sizes[:count],
            "starts": self.starts[: count + 1],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _count(ends: NDArray[np.int64], limit: int) -> int:
    """How many images end within so many bytes."""
    return int(np.searchsorted(ends, limit, side="right")) - 1
