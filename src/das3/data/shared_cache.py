"""Decoded images in memory that several processes have in common."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.pixels import Masked, Pixel

__all__ = ["SharedCache"]


class SharedCache:
    """Decoded images, and where they have data, in memory that this process and its children share.

    The first ones are kept, up to a number of bytes.

    Two processes may decode an image at the same time; both then write the same bytes.

    Args:
        sizes: (height, width) of every image.
        pixel_bytes: of one pixel, 4 for a float32.
        limit: bytes of all.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], pixel_bytes: int, limit: int) -> None:
        ends = np.cumsum([0, *(pixel_bytes * height * width for height, width in sizes)])
        count = int(np.searchsorted(ends, limit, side="right")) - 1
        self.sizes, self.pixel_bytes, self.starts = list(sizes[:count]), pixel_bytes, ends[: count + 1].tolist()
        self.forms: NDArray[np.uint8] | None = None
        self._map()

    def _map(self) -> None:
        """Pages take no memory before they are written. A byte per image: 0 is none, 1 uint8, 2 float32, + 2 masked."""
        self.masks: dict[int, NDArray[np.bool_]] = {}  # few images have any, and each process finds its own
        try:
            if self.sizes:
                self.bytes = np.frombuffer(mmap.mmap(-1, self.starts[-1]), np.uint8)
                self.forms = np.frombuffer(mmap.mmap(-1, len(self.sizes)), np.uint8)
        except OSError:  # no memory: it goes without
            self.forms = None

    def get(self, i: int) -> Masked | None:
        """Image i, a view of the memory, and its mask; None if it is not there."""
        if self.forms is None or i >= len(self.sizes) or not self.forms[i]:
            return None
        if self.forms[i] > 2 and i not in self.masks:
            return None
        dtype = np.uint8 if self.forms[i] % 2 else np.float32
        found: Pixel = self.bytes[self.starts[i] : self.starts[i + 1]].view(dtype).reshape(*self.sizes[i], -1)
        return found, self.masks.get(i)

    def put(self, i: int, image: Pixel, valid: NDArray[np.bool_] | None) -> Masked:
        """Keep image i if there is a place for it; what `get` then returns."""
        if self.forms is None or i >= len(self.sizes) or image.nbytes != self.starts[i + 1] - self.starts[i]:
            return image, valid
        if image.shape[:2] != self.sizes[i] or image.dtype not in (np.uint8, np.float32):
            return image, valid
        self.bytes[self.starts[i] : self.starts[i + 1]] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        if valid is not None:
            self.masks[i] = valid
        self.forms[i] = (1 if image.dtype == np.uint8 else 2) + (0 if valid is None else 2)
        return self.get(i) or (image, valid)

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not a fork decodes for itself; a copy of all pixels for each would cost more."""
        return {**self.__dict__, "bytes": None, "forms": None, "masks": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
