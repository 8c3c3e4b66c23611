"""Images are read by threads while others are predicted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from das3.data.image_files import ImageFiles
from das3.data.images import Images
from das3.distributed import spare_cores
from das3.evaluation.predict import WHOLE_PIXELS, Source
from das3.threads import ahead

__all__ = ["reading", "source_of"]

T = TypeVar("T")

LARGE = 3 * WHOLE_PIXELS
"""Bytes of a file's pixels beyond which it is read in strips: it may be larger than memory."""


def reading(
    images: Images, indices: Sequence[int], device: torch.device, read: Callable[[int], T]
) -> AbstractContextManager[Generator[T, None, None]]:
    """Context of an iterator over what `read` returns for each index; further images are read meanwhile.

    Args:
        images: those of a user's data set are read by the calling thread, when they are asked for.
        indices: of images, in order.
        device: that predicts; the CPU leaves one thread for reading.
        read: index → image, and what belongs to it.
    """

    def size(i: int) -> int:
        height, width = images.size(i)
        return height * width * images.pixel_bytes

    return closing(ahead(read, indices, max(1, spare_cores(device)) if images.is_thread_safe else 0, size))


def source_of(images: Images, i: int) -> tuple[Source, NDArray[np.bool_] | None]:
    """Image i for `das3.evaluation.predict`, and H×W where it has data; None where it has everywhere.

    A file of more than `LARGE` bytes is not read but named.
    """
    if isinstance(images, ImageFiles):
        height, width = images.size(i)
        if height * width * images.pixel_bytes > LARGE:
            return images.paths[i], None
    return images.masked(i)
