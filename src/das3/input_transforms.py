"""Input transforms: colours, even illumination or a larger size under which a model may do better on its target.

A model that was trained on white skies only may take a blue sky for a building, but not on grayscale images. Another
model recognises signs by their colour and needs it. A coarse model finds thin vessels only in enlarged images, and a
model of dark lesions takes dark corners for lesions. `das3.stages.choose_transform` chooses without labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["COLOR_TRANSFORMS", "IDENTITY", "UPSCALE_FACTORS", "InputTransform", "estimate_illumination"]

IDENTITY = "none"
"""Name of the transform that leaves images as they are."""


def _balanced(images: Tensor) -> Tensor:
    """Each channel of each image with mean 0.45, standard deviation 0.22: removes colour casts, haze and darkness."""
    spread, mean = torch.std_mean(images, dim=(-2, -1), keepdim=True, correction=0)
    return (0.45 + 0.22 * (images - mean) / spread.clamp(min=0.02)).clamp(0, 1)


COLOR_TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "grayscale": lambda images: images.mean(dim=1, keepdim=True).expand_as(images),
    "brighter": lambda images: images**0.6,
    "darker": lambda images: images**1.6,
    "balanced": _balanced,
    "smooth": lambda images: F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False),
}
"""Images B×3×H×W in [0, 1] → the same in other colours. One may follow another, or itself."""


UPSCALE_FACTORS = (1.33, 1.67, 2.0)
"""Approximate factors by which images may be enlarged, in rising order."""

ILLUMINATION_GRID = 8
"""Cells per side of the grid on which illumination is estimated."""
DARKEST_ILLUMINATION = 0.2
"""Lower bound of the illumination, as a share of its mean."""


@dataclass(frozen=True, eq=False)
class InputTransform:
    """A transform of images before they enter the model.

    Attributes:
        color_transforms: keys of `COLOR_TRANSFORMS`, one after another.
        upscale: approximate factor on the size.
        illumination: 1×1×h×w, divided out of the images first, see `estimate_illumination`; None for none.
        rgb: indices of the bands that are red, green and blue, which alone change their colours; None for all bands.
    """

    color_transforms: tuple[str, ...] = ()
    upscale: float = 1.0
    illumination: Tensor | None = None
    rgb: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """For a person, and for a folder."""
        parts = ["even illumination"] * (self.illumination is not None)
        parts += [*self.color_transforms, *[f"x{self.upscale:g}"] * (self.upscale != 1)]
        return " ".join(parts) or IDENTITY

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """(height, width) that an image of this (height, width) has afterwards."""
        height, width = shape if self.upscale == 1 else (_enlarged(side, self.upscale) for side in shape)
        return height, width

    def __call__(self, images: Tensor) -> Tensor:
        """Transform images B×K×H×W in [0, 1]."""
        size = images.shape[-2:]
        if self.rgb is None:
            images = self._recolored(images)
        elif self.color_transforms or self.illumination is not None:
            bands, images = list(self.rgb), images.clone()
            images[:, bands] = self._recolored(images[:, bands])
        if self.upscale == 1:
            return images
        return F.interpolate(images, size=self.size(size), mode="bilinear", align_corners=False)

    def _recolored(self, images: Tensor) -> Tensor:
        if self.illumination is not None:
            size = images.shape[-2:]
            illumination = F.interpolate(self.illumination.to(images), size=size, mode="bilinear", align_corners=False)
            images = (images / illumination).clamp(max=1)
        for name in self.color_transforms:
            images = COLOR_TRANSFORMS[name](images)
        return images


def _enlarged(side: int, zoom: float) -> int:
    """About `zoom` times a side: a multiple of 8, and of 16 or 32 if the side is one.

    Networks halve an image up to five times. If its sides do not divide evenly, their features are shifted.
    """
    unit = max(8, math.gcd(side, 32))
    return max(1, round(side * zoom / unit)) * unit


def estimate_illumination(batches: Iterable[Tensor]) -> Tensor:
    """Brightness pattern that all images share, caused by lamps and lenses: 1×1×8×8, mean about 1.

    What differs between the scenes cancels out in the mean. What scenes share, such as a bright sky above, stays in it,
    so dividing by it may help or harm.

    Args:
        batches: RGB images B×3×H×W in [0, 1].

    Source: flat-field correction, estimated from the images themselves (Smith et al., Nature Methods 2015).
    """
    # On the CPU, where processes that load images can use it too.
    bright = torch.cat(
        [F.adaptive_avg_pool2d(batch.mean(dim=1, keepdim=True), ILLUMINATION_GRID).cpu() for batch in batches]
    )
    mean = bright.mean(dim=0, keepdim=True)
    return (mean / mean.mean().clamp(min=1e-6)).clamp(min=DARKEST_ILLUMINATION)
