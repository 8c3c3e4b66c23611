"""Finding which input sizes a network takes."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.errors import ModelError
from das3.segmenter.calling import evaluating, main_logits

__all__ = ["LARGEST_DIVISOR", "find_sides"]

LARGEST_DIVISOR = 64  # a network whose sides must be multiples of more takes one size


def find_sides(model: nn.Module, example: Tensor, output_key: str | int | None = None) -> tuple[int, bool]:
    """Find which input sizes a network takes, by trying.

    U-shaped networks need sides that all their strides divide, some transformers need squares, or one size only;
    `Segmenter` pads images accordingly and crops the logits back.

    Args:
        model: called on inputs about as large as `example`.
        example: 1×3×H×W input that it takes.
        output_key: see `main_logits`.

    Returns:
        Smallest of 1, 8, 16, 32, 64 such that the network takes odd multiples of it, else the one side that it takes;
        and whether both sides must be equal.

    Raises:
        ModelError: if the network takes the size of `example` only, and it is not square.
    """
    height, width = example.shape[-2:]
    for square in (False, True):
        for divisor in (1, 8, 16, 32, LARGEST_DIVISOR):
            side = max(divisor, (height // divisor - 1) * divisor) | divisor
            if square and side == height:  # a size that is known to work says nothing
                side += 2 * divisor if side <= 2 * divisor else -2 * divisor
            other = side if square else side + 2 * divisor
            with contextlib.suppress(RuntimeError, ValueError, AssertionError), evaluating(model), torch.no_grad():
                main_logits(model(F.interpolate(example, size=(side, other))), output_key)
                return divisor, square
    if height == width:
        return height, True
    raise ModelError(
        f"the network takes images of {height}×{width} pixels only, and das3 needs a square of one size, or sides that "
        "are multiples of 64 or less; build it for another size"
    )
