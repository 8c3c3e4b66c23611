"""Whether an exported file computes what the model computes in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from das3.export.network import Output, Shape, input_size
from das3.segmenter import Segmenter, evaluating

__all__ = ["Comparison", "compare", "noise"]

TOLERANCE = 1e-3
"""Largest difference, as a share of the largest logit, that rounding explains in float32."""

HALF_TOLERANCE = 5e-2
"""The same in float16, which has 11 bits where float32 has 24."""

_OTHER_SIZES = ((2, 96, 160), (1, 131, 75), (3, 64, 64))
"""Batch, height and width of the images on which a file that takes any is compared."""


@dataclass(frozen=True)
class Comparison:
    """How far a file is from the model.

    Attributes:
        difference: largest difference of two logits; where labels come out, by how much the logit of a label falls
            short of the pixel's largest one.
        relative: the same as a share of the largest logit.
        other_labels: share of pixels with another label.
        images: how many images, of how many sizes.
    """

    difference: float
    relative: float
    other_labels: float
    images: tuple[int, int]

    def holds(self, *, half: bool) -> bool:
        """Whether rounding explains the difference."""
        return self.relative <= (HALF_TOLERANCE if half else TOLERANCE)


def noise(channels: int, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images B×K×H×W in [0, 1] of coarse and fine noise, which make a network show more of its classes."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(batch, channels, height, width)
    for side in (2, 7, 31):
        coarse = torch.rand(batch, channels, min(side, height), min(side, width), generator=generator)
        total += F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return total / 3


def compare(
    run: Callable[[Tensor], Tensor], segmenter: Segmenter, output: Output, shape: Shape, *, quick: bool = False
) -> Comparison:
    """Run a file and the model on the same images, of several sizes if the file takes any.

    Args:
        run: the file.
        segmenter: the model, on the CPU.
        output: what the file returns.
        shape: which images it takes.
        quick: on one batch only.

    Raises:
        Exception: whatever the file's runtime raises, if it can't be run on images that it should take.
    """
    found: list[tuple[Tensor, float]] = []
    sizes = [(b, *shape.size) if shape.size else (b, h, w) for b, h, w in _OTHER_SIZES]
    sizes = list(dict.fromkeys((shape.batch or b, h, w) for b, h, w in sizes))
    other, pixels = 0, 0
    for seed, (batch, height, width) in enumerate(sizes[:1] if quick else sizes):
        images = noise(segmenter.in_channels, batch, height, width, seed)
        with evaluating(segmenter), torch.no_grad():
            expected, got = _logits(segmenter, images, output), run(images)
        found.append((_difference(expected, got), float(expected.abs().max())))
        labels = got.long() if output == "labels" else got.argmax(dim=1)
        other += int((labels != expected.argmax(dim=1)).sum())
        pixels += labels.numel()
    difference = max(float(one.max()) for one, _ in found)
    relative = max(float(one.max()) / max(largest, 1e-12) for one, largest in found)
    count = sum(batch for batch, _, _ in sizes)
    return Comparison(difference, relative, other / pixels, (count, len({size[1:] for size in sizes})))


def _difference(expected: Tensor, got: Tensor) -> Tensor:
    if got.ndim == 3:
        chosen = expected.gather(1, got.long()[:, None])[:, 0]
        return expected.amax(dim=1) - chosen
    if got.shape != expected.shape:
        raise ValueError(f"the file returns {tuple(got.shape)} where the model returns {tuple(expected.shape)}")
    return (expected - got).abs()


def _logits(segmenter: Segmenter, images: Tensor, output: Output) -> Tensor:
    """What das3 itself computes, by its own way."""
    size = images.shape[-2:]
    resized = input_size(segmenter, (size[0], size[1]))
    if resized is not None:
        images = F.interpolate(images, resized, mode="bilinear", align_corners=False, antialias=True)
    if output == "native":
        return segmenter.native_logits(segmenter.pad(images))
    logits: Tensor = segmenter(images)
    if resized is not None:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=segmenter.align_corners)
    return logits
