"""Work on a batch, in halves where the memory does not hold it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["in_halves"]

T = TypeVar("T")


def in_halves(work: Callable[[slice], list[T]], count: int) -> list[T]:
    """What `work` finds in a batch; in its halves, quarters, … one after the other, where it runs out of memory.

    Args:
        work: a part of the batch → what is found in it. Begun again, it has to find the same.
        count: of the batch's images, at least 1.

    Raises:
        torch.OutOfMemoryError: if the memory does not hold one image.
    """

    def found_in(part: slice) -> list[T]:
        try:
            return work(part)
        except torch.OutOfMemoryError:
            if part.stop - part.start == 1:
                raise
        # Beyond the except, which holds the tensors that did not fit.
        torch.cuda.empty_cache()
        half = (part.start + part.stop) // 2
        return found_in(slice(part.start, half)) + found_in(slice(half, part.stop))

    return found_in(slice(0, count))
