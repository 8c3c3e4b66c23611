"""How a network expects its input: value range, mean and standard deviation, order of channels, size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from das3.errors import ModelError

__all__ = ["LARGEST_SIDE", "Preprocess", "preprocess_of_channels"]

LARGEST_SIDE = 65536
"""Pixels of the longest side that images are resized to, or cut out with."""


@dataclass(frozen=True)
class Preprocess:
    """How the network expects its input, applied to images in [0, 1].

    Attributes:
        mean: subtracted per channel, in the units of `input_max` and in the order of `channels`; one for each.
        std: divides per channel, likewise.
        input_max: largest value that the network was trained to see, before mean and std: 1 or 255.
        channels: "rgb"; "bgr" as Caffe-trained networks expect; "grey" for one channel; "bands" for those of the images
            as they are chosen, of any number.
        size: size that images are resized to before the network: None keeps theirs, an int is the length of the
            shorter side in pixels, (height, width) is exact.
        rgb: which bands of the images, from 0, are red, green and blue to a person, and get colour changes; None for
            the first three.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input_max: float = 1.0
    channels: Literal["rgb", "bgr", "grey", "bands"] = "rgb"
    size: int | tuple[int, int] | None = None
    rgb: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        count = {"rgb": 3, "bgr": 3, "grey": 1}.get(self.channels, len(self.mean))
        if not len(self.mean) == len(self.std) == count or not self.std or min(self.std) <= 0:
            raise ModelError(
                f"preprocessing needs {count} means and {count} positive stds, got mean={self.mean}, std={self.std}"
            )
        if self.channels not in ("rgb", "bgr", "grey", "bands"):
            raise ModelError(f"channels must be rgb, bgr, grey or bands, got {self.channels!r}")
        if self.rgb is not None and not (len(self.rgb) == 3 and all(0 <= band < count for band in self.rgb)):
            raise ModelError(f"the RGB bands must be three of the {count} that the network takes, got {self.rgb}")
        if not (0 < self.input_max < math.inf):
            raise ModelError(f"input_max must be positive (1 or 255), got {self.input_max}")
        # Squares of larger numbers would not fit into float32.
        if not all(abs(value) < 1e15 for value in self.mean) or not all(1e-15 < value < 1e15 for value in self.std):
            raise ModelError(f"mean and std must be ordinary numbers, got mean={self.mean}, std={self.std}")
        sides = self.size if isinstance(self.size, tuple) else () if self.size is None else (self.size,)
        if len(sides) not in ((2,) if isinstance(self.size, tuple) else (0, 1)) or not all(map(_is_side, sides)):
            raise ModelError(
                f"size must be a shorter side or (height, width), each from 1 to {LARGEST_SIDE}, got {self.size}"
            )

    @classmethod
    def of_channels(cls, count: int) -> Preprocess:
        """What is taken of a network of so many channels of which nothing is known: ImageNet's statistics, for other
        channels than RGB the mean of its three.
        """
        if count == 3:
            return cls()
        mean, std = (0.449,) * count, (0.226,) * count
        return cls(mean, std, channels="grey" if count == 1 else "bands")

    @property
    def rgb_bands(self) -> tuple[int, int, int]:
        """Which bands are red, green and blue to a person."""
        last = len(self.mean) - 1
        return self.rgb or (0, min(1, last), min(2, last))

    def __str__(self) -> str:
        """In words, for a person."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        scale = "" if self.input_max == 1 else f", of values to {self.input_max:g}"
        return f"{self.channels}{scale}, mean {mean}, std {std}"

    def __call__(self, images: Tensor) -> Tensor:
        """Turn B×K×H×W images in [0, 1] into the network's input of the same shape."""
        if self.channels == "bgr":
            images = images.flip(1)
        scale, shift = _normalization(self, images.device, images.dtype)
        return torch.addcmul(shift, images, scale)


@cache
def _normalization(preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1×K×1×1 factor and summand of `Preprocess`, made once: to send them at each call would be to wait for a GPU."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std)
    )
    return tuple(values.to(device, dtype) for values in (preprocess.input_max / std, -mean / std))  # type: ignore[return-value]


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def preprocess_of_channels(preprocess: Preprocess, channels: int) -> Preprocess:
    """The preprocessing of a network of so many channels, its defaults replaced by those for them."""
    if preprocess == replace(Preprocess(), size=preprocess.size):  # nothing is known of it
        return replace(Preprocess.of_channels(channels), size=preprocess.size)
    if len(preprocess.mean) != channels:
        raise ModelError(
            f"the network takes {channels} channels, but there are {len(preprocess.mean)} means and stds; give one for "
            "each channel with --mean and --std"
        )
    return preprocess
