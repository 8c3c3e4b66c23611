"""Images of a stage seen otherwise: under an input transform, or a part of each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from das3.data.images import Images
from das3.data.pixels import Pixel, to_unit
from das3.input_transforms import InputTransform

__all__ = ["TransformedImages", "Windows"]

_SPREAD = (0.7549, 0.5698)
"""Steps from window to window, as shares of the room there is: evenly spread in two dimensions (Roberts, 2018)."""


class TransformedImages(Images):
    """Images under a transform that keeps their size and type."""

    def __init__(self, images: Images, transform: InputTransform) -> None:
        super().__init__(images.names)
        self.images, self.transform, self.pixels = images, transform, images.pixels
        self.is_thread_safe = images.is_thread_safe

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]

    def masked(self, i: int) -> tuple[Pixel, NDArray[np.bool_] | None]:
        """Image i, and H×W where it has data; None where it has everywhere."""
        image, valid = self.images.masked(i)
        transformed = self.transform(to_unit(torch.from_numpy(image).permute(2, 0, 1)[None]))[0]
        if image.dtype == np.uint8:
            transformed = transformed.mul(255).round().byte()
        return transformed.permute(1, 2, 0).contiguous().numpy(), valid

    def size(self, i: int) -> tuple[int, int]:
        """The image's own."""
        return self.images.size(i)


class Windows(Images):
    """A part of each image, of a size at most, at one place or another."""

    def __init__(self, images: Images, size: tuple[int, int]) -> None:
        super().__init__(images.names)
        self.images, self.largest, self.pixels = images, size, images.pixels
        self.is_thread_safe = images.is_thread_safe

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]

    def masked(self, i: int) -> tuple[Pixel, NDArray[np.bool_] | None]:
        """The window of image i, and where it has data; None where it has everywhere."""
        image, valid = self.images.masked(i)
        part = tuple(
            slice(start := int((side - length) * (i * step % 1)), start + length)
            for side, length, step in zip(image.shape, self.size(i), _SPREAD, strict=False)
        )
        return np.ascontiguousarray(image[part]), None if valid is None else np.ascontiguousarray(valid[part])

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the window."""
        height, width = self.images.size(i)
        return min(height, self.largest[0]), min(width, self.largest[1])
