"""A small convolutional network that two CPU cores can train in minutes: the demo's and the CPU benchmarks' network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallSegmenter", "small"]


def _conv(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(width, width, dilation=dilation), _conv(width, width, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


class SmallSegmenter(nn.Module):
    """Stride-8 residual encoder with growing dilation and one stride-4 skip; logits at a quarter of the input's size.

    Args:
        num_classes: C.
        width: channels at stride 4; twice as many at stride 8.
        in_channels: of the input.
    """

    def __init__(self, num_classes: int, width: int = 24, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(in_channels, width // 2, stride=2), _conv(width // 2, width, stride=2), _Residual(width, 1)
        )
        self.context = nn.Sequential(
            _conv(width, 2 * width, stride=2), *(_Residual(2 * width, d) for d in (1, 2, 4, 8))
        )
        self.reduce = _conv(2 * width, width, kernel=1)
        self.fuse = _conv(2 * width, 2 * width)
        self.classifier = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B×in_channels×H×W to logits B×C×⌈H/4⌉×⌈W/4⌉."""
        fine = self.stem(x)
        coarse = self.reduce(self.context(fine))
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.fuse(torch.cat([fine, coarse], dim=1)))  # type: ignore[no-any-return]


def small(num_classes: int, width: int = 24, in_channels: int = 3) -> SmallSegmenter:
    """Build a `SmallSegmenter` with random weights."""
    return SmallSegmenter(num_classes, width, in_channels)
