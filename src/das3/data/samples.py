"""Training samples as a pure function of (seed, number): crop, scale, flip and colour, image and label maps together.

Sample n does not depend on what was drawn before it, so a resumed run, another number of workers or of processes sees
exactly the same samples, and no sampler state has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from das3.data.images import Images
from das3.data.pixels import Pixel, to_unit
from das3.data.rare_classes import RareClasses
from das3.losses import IGNORE_INDEX

__all__ = ["Augmentation", "Sample", "Samples", "auto_crop"]

Sample = dict[str, Tensor]
"""image: B×H×W float32 in [0, 1], RGB unless the network takes other bands; valid: H×W bool, false on padding and where
there is no data; any label maps: …×H×W uint8."""

Maps = Callable[[int], Mapping[str, NDArray[np.uint8]]]
"""Label maps of image i, each …×H×W uint8 of the image's size."""


@dataclass(frozen=True)
class Augmentation:
    """How a training sample is cut out of an image.

    Attributes:
        crop: (height, width) of every sample.
        scale: range of random scaling.
        flip: mirror half of the samples.
        color: strength of the random brightness, contrast, saturation and hue changes; 0 for none.
        blur: probability of a random Gaussian blur.
        rgb: the bands that are red, green and blue, whose colours change; None where all are.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    color: float = 0.0
    blur: float = 0.0
    rgb: tuple[int, int, int] | None = None

    def __call__(
        self,
        image: Pixel,
        maps: Mapping[str, NDArray[np.uint8]],
        rng: np.random.Generator,
        valid: NDArray[np.bool_] | None = None,
    ) -> Sample:
        """Cut a random sample; label maps are never interpolated, and padding gets 255 (0 where bits are packed).

        What is not `valid` in the image, H×W, counts as padding; None is everywhere.
        """
        zoom = rng.uniform(*self.scale)
        window = [max(1, round(c / zoom)) for c in self.crop]
        corner = [int(rng.integers(max(0, size - w) + 1)) for size, w in zip(image.shape[:2], window, strict=True)]
        mirrored = self.flip and rng.random() < 0.5
        top, left = (slice(c, c + w) for c, w in zip(corner, window, strict=True))

        pixels = to_unit(torch.from_numpy(np.array(image[top, left].transpose(2, 0, 1))))
        sample = {"image": _resize(pixels, window, self.crop, "bilinear", 0)}
        inside = torch.ones(pixels.shape[-2:], dtype=torch.uint8)
        if valid is not None:
            inside = torch.from_numpy(valid[top, left].astype(np.uint8))
        sample["valid"] = _resize(inside, window, self.crop, "nearest-exact", 0).bool()
        for name, values in maps.items():
            cut = torch.from_numpy(np.array(values[..., top, left]))
            nothing = IGNORE_INDEX if cut.ndim == 2 else 0
            sample[name] = _resize(cut, window, self.crop, "nearest-exact", nothing)
            if valid is not None:
                sample[name] = sample[name].masked_fill(~sample["valid"], nothing)
        if mirrored:
            sample = {name: value.flip(-1) for name, value in sample.items()}
        sample["image"] = self._photometric(sample["image"], rng)
        if image.dtype == np.uint8 and (sample["image"].shape != pixels.shape or self.color or self.blur):
            sample["image"] = _eight_bits(sample["image"])
        return sample

    def _photometric(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self.color:
            image = self._recolored(image, rng)
        if self.blur and rng.random() < self.blur:
            image = _blurred(image, float(rng.uniform(0.2, 1.5))).clamp_(0, 1)
        return image

    def _recolored(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Random brightness, saturation, contrast and hue, of the bands that are colours."""
        if self.rgb is not None:
            changed, bands = image.clone(), list(self.rgb)
            changed[bands] = replace(self, rgb=None)._recolored(image[bands], rng)
            return changed
        brightness, contrast, saturation = 1 + self.color * rng.uniform(-1, 1, 3)
        brightness, contrast, saturation = max(brightness, 0.0), max(contrast, 0.0), max(saturation, 0.0)
        colors = brightness * (_GREY + saturation * (np.eye(3) - _GREY))
        # Saturation leaves the mean of the three bands as it is, so contrast turns about brightness times the mean.
        middle = (1 - contrast) * brightness * image.mean().item()
        hue = 0.3 * np.pi * self.color * rng.uniform(-1, 1)
        turned = torch.from_numpy(hue_rotation(hue) @ (contrast * colors)).float()
        flat = torch.addmm(torch.full((3, 1), middle), turned, image.flatten(1)).clamp_(0, 1)
        return flat.view_as(image)


def _eight_bits(image: Tensor) -> Tensor:
    """The nearest values that a picture of 8 bits can have: a batch of them takes a quarter of the bytes."""
    return image.mul(255).round_().div_(255)


_GREY = np.full((3, 3), 1 / 3)


def hue_rotation(angle: float) -> NDArray[np.float64]:
    """3×3 float64 matrix that turns the hue of RGB colours by an angle in radians, about the axis of greys.

    Greys stay; the mean of the bands and the distance from grey are kept. Unlike a turn in HSV it is linear, so that it
    and the changes of brightness, saturation and contrast are one matrix.

    Source: Haeberli, "Matrix operations for image processing" (1993); Rodrigues' formula.
    """
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) * _GREY + math.sin(angle) * cross


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of C×H×W, its kernel cut off at 3 pixels from the middle.

    Sums of shifted bands: on a CPU a convolution of one band takes seven times as long.
    """
    reach = 3
    weights = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    middle, *others = (weights / weights.sum())[reach:].tolist()
    edges = "reflect" if min(image.shape[-2:]) > reach else "replicate"  # too few pixels to reflect
    blurred = torch.empty_like(image)
    for band, result in zip(image, blurred, strict=True):
        for dim, margins in ((1, (reach, reach, 0, 0)), (0, (0, 0, reach, reach))):
            size = band.shape[dim]
            padded = F.pad(band[None, None], margins, mode=edges)[0, 0]
            band = padded.narrow(dim, reach, size) * middle
            for distance, weight in enumerate(others, 1):
                for start in (reach - distance, reach + distance):
                    band.add_(padded.narrow(dim, start, size), alpha=weight)
        result.copy_(band)
    return blurred


def _resize(values: Tensor, window: Sequence[int], crop: tuple[int, int], mode: str, fill: int) -> Tensor:
    """Pad what the window found to its size, then resize to the crop."""
    bottom, right = (w - s for w, s in zip(window, values.shape[-2:], strict=True))
    values = F.pad(values, (0, right, 0, bottom), value=fill) if bottom or right else values
    if values.shape[-2:] == crop:
        return values
    lead = values.shape[:-2]
    flat = values.reshape(1, -1, *values.shape[-2:])
    return F.interpolate(flat, size=crop, mode=mode).reshape(*lead, *crop)


class Samples(Dataset[Sample]):
    """Sample n: an image, its maps, one random view of both. Without `rare` none is repeated within an epoch.

    Args:
        images: what to draw from; H×W×B arrays, uint8 or float32 in [0, 1].
        view: how to cut.
        seed: everything random depends on this and n alone.
        maps: label maps of image i, or None.
        order: indices of the images that are drawn; None for all.
        rare: draws them by the classes that they show; None draws all equally often.
    """

    def __init__(
        self,
        images: Sequence[Pixel],
        view: Augmentation,
        *,
        seed: Sequence[int],
        maps: Maps | None = None,
        order: Sequence[int] | None = None,
        rare: RareClasses | None = None,
    ) -> None:
        self.images, self.view, self.maps, self.rare = images, view, maps, rare
        self.seed = tuple(seed)
        self.order = np.asarray(order if order is not None else range(len(images)))
        self._epochs: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def pick(self, n: int, salt: int = 0) -> int:
        """Index of the image that sample n shows."""
        return self.draw(n, salt)[0]

    def drawn(self, count: int) -> set[int]:
        """Indices of the images that the first `count` samples show."""
        return {self.pick(n) for n in range(count)}

    def draw(self, n: int, salt: int = 0) -> tuple[int, int | None]:
        """Index of the image that sample n shows, and the class for which it was drawn.

        Without `rare`, or where it finds none, images follow a fresh permutation for every epoch, for no class.
        """
        drawn = self.rare and self.rare.draw(self.order, np.random.default_rng([*self.seed, salt, 2, n]))
        if drawn:
            return drawn
        epoch, position = divmod(n, len(self.order))
        return int(self.order[self._permutation(epoch, salt)[position]]), None

    def _permutation(self, epoch: int, salt: int) -> NDArray[np.int64]:
        """That of an epoch; the last one is kept, since making it takes as long as the set is large."""
        if self._epochs.get(salt, (-1,))[0] != epoch:
            permutation = np.random.default_rng([*self.seed, salt, 1, epoch]).permutation(len(self.order))
            self._epochs[salt] = epoch, permutation
        return self._epochs[salt][1]

    def cut(self, index: int, rng: np.random.Generator) -> Sample:
        """One random view of image `index` and its maps."""
        image, valid = self.images.masked(index) if isinstance(self.images, Images) else (self.images[index], None)
        return self.view(image, self.maps(index) if self.maps else {}, rng, valid)

    def rng(self, n: int) -> np.random.Generator:
        """The source of randomness of sample n."""
        return np.random.default_rng([*self.seed, 0, 0, n])

    def __getitem__(self, n: int) -> Sample:
        """Sample number n ≥ 0; there is no last one."""
        return self.cut(self.pick(n), self.rng(n))


def auto_crop(sizes: Sequence[tuple[int, int]], largest: int = 512) -> tuple[int, int]:
    """A crop for images of these (height, width): their median, at most `largest`, a multiple of 32 where it can be."""
    median = np.median(np.asarray(sizes), axis=0)
    height, width = (int(min(m, largest)) for m in median)
    return tuple(max(s // 32 * 32, min(s, 32)) for s in (height, width))  # type: ignore[return-value]
