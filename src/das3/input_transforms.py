"""Other looks of an image (tones, sizes, even light) and how much a model makes of them: whether it does better so.

A model that has seen white skies alone takes blue ones for buildings, and is sure of it. In grey it would not. Whether
it can do without colour is the model's affair: another one tells signs by colour alone. A model that draws blobs draws
thin vessels better where they are larger, and one that has learnt that lesions are dark takes the corners that a lens
leaves dark for lesions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PLAIN", "COLOR_TRANSFORMS", "UPSCALE_FACTORS", "InputTransform", "information", "estimate_illumination"]

PLAIN = "plain"


def _balanced(images: Tensor) -> Tensor:
    """Each channel of each image with mean 0.45 and standard deviation 0.22: without casts, haze and lack of light."""
    spread, mean = torch.std_mean(images, dim=(-2, -1), keepdim=True, correction=0)
    return (0.45 + 0.22 * (images - mean) / spread.clamp(min=0.02)).clamp(0, 1)


COLOR_TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "grey": lambda images: images.mean(dim=1, keepdim=True).expand_as(images),
    "lifted": lambda images: images**0.6,
    "darker": lambda images: images**1.6,
    "balanced": _balanced,
    "smooth": lambda images: F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False),
}
"""Images B×3×H×W in [0, 1] → the same in another tone. One may follow another, or itself."""


UPSCALE_FACTORS = (1.33, 1.67, 2.0)
"""How many times larger, about, a model may be shown its images, in rising order."""

_GRID = 8
_DARKEST = 0.2


@dataclass(frozen=True, eq=False)
class InputTransform:
    """A way to show a model its images.

    Attributes:
        tones: of `COLOR_TRANSFORMS`, one after another.
        zoom: how many times larger, about.
        light: 1×1×h×w, the light that is taken out of the images first, see `estimate_illumination`; None leaves it in them.
    """

    tones: tuple[str, ...] = ()
    zoom: float = 1.0
    light: Tensor | None = None

    @property
    def name(self) -> str:
        """For a person, and for a folder."""
        parts = ["evenly lit"] * (self.light is not None) + [*self.tones] + [f"x{self.zoom:g}"] * (self.zoom != 1)
        return " ".join(parts) or PLAIN

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """(height, width) in which an image of this (height, width) is shown."""
        height, width = shape if self.zoom == 1 else (_enlarged(side, self.zoom) for side in shape)
        return height, width

    def __call__(self, images: Tensor) -> Tensor:
        """Images B×3×H×W in [0, 1] shown so."""
        size = images.shape[-2:]
        if self.light is not None:
            light = F.interpolate(self.light.to(images), size=size, mode="bilinear", align_corners=False)
            images = (images / light).clamp(max=1)
        for tone in self.tones:
            images = COLOR_TRANSFORMS[tone](images)
        if self.zoom == 1:
            return images
        return F.interpolate(images, size=self.size(size), mode="bilinear", align_corners=False)


def _enlarged(side: int, zoom: float) -> int:
    """About `zoom` times a side: a multiple of 8, and of 16 or 32 if the side is one.

    Networks halve an image up to five times. Where its sides do not divide, what they see is shifted.
    """
    unit = max(8, math.gcd(side, 32))
    return max(1, round(side * zoom / unit)) * unit


def estimate_illumination(batches: Iterable[Tensor]) -> Tensor:
    """What all images have in common of bright and dark places, as lamps and lenses leave it: 1×1×8×8 of mean about 1.

    Scenes that differ in all but this cancel out in the mean. What they share is kept too: skies are bright and above,
    so whether images are better off without is to be asked.

    Args:
        batches: images B×3×H×W in [0, 1].

    Source: flat-field correction, estimated from the images themselves (Smith et al., Nature Methods 2015).
    """
    # On the CPU, where processes that load images can use it too.
    bright = torch.cat([F.adaptive_avg_pool2d(batch.mean(dim=1, keepdim=True), _GRID).cpu() for batch in batches])
    mean = bright.mean(dim=0, keepdim=True)
    return (mean / mean.mean().clamp(min=1e-6)).clamp(min=_DARKEST)


def information(means: Tensor, entropies: Tensor) -> float:
    """Mutual information of image and class in a model's predictions, as a share of log C: in [0, 1] but for rounding.

    It is large where the model is sure of each pixel and sees all classes. Where it fails, it is unsure or sees few.

    Args:
        means: N×C mean predictions of N images.
        entropies: the N images' mean entropies, as shares of log C.

    Source: Bridle et al. (1991); Shi and Sha (ICML 2012) choose among adapted models by it, without labels.
    """
    mean = means.double().mean(dim=0)
    marginal = -torch.xlogy(mean, mean).sum().item() / math.log(mean.numel())
    return marginal - entropies.double().mean().item()
