"""channels_last: a network's convolutions keep the values of a pixel side by side, which is often faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["as_channels_last", "channels_last"]


def as_channels_last(images: Tensor) -> Tensor:
    """B×K×H×W with the K values of a pixel side by side in memory."""
    return images.contiguous(memory_format=torch.channels_last)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Within, the weights of 2-D convolutions lie in memory as channels_last wants them; afterwards as usual.

    The results are the same but for rounding.
    """
    weights = [p for p in model.parameters() if p.ndim == 4]
    try:
        for weight in weights:
            weight.data = as_channels_last(weight.data)
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()  # some file formats refuse other layouts
