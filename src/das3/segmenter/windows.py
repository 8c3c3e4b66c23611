"""Images larger than the one size that a network takes, seen in overlapping windows of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["in_windows"]


def in_windows(call: Callable[[Tensor], Tensor], images: Tensor, side: int) -> Tensor:
    """What `call` returns for windows of at most `side` × `side` pixels, averaged where they overlap.

    As few windows as cover the image, spread evenly, as EoMT's own inference does.

    Args:
        call: B×K×h×w to B×C×h×w, for h and w of at most `side`.
        images: B×K×H×W.
        side: of a window, in pixels.

    Returns:
        B×C×H×W.
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    count = images.new_zeros((1, 1, height, width))
    for top in _starts(height, side):
        for left in _starts(width, side):
            place = (..., slice(top, top + side), slice(left, left + side))
            part = call(images[place])
            if total is None:
                total = part.new_zeros((*part.shape[:2], height, width))
            inner = torch.zeros_like(total)
            inner[place] = part
            total = total + inner
            count[place] += 1
    assert total is not None
    return total / count


def _starts(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [i * max(0, length - side) // max(1, count - 1) for i in range(count)]
