"""Copies of an image in other tones or larger, and how much a model makes of them: whether it does better that way.

A model that has seen white skies alone takes blue ones for buildings, and is sure of it. In grey it would not. Whether
it can do without colour is the model's affair: another one tells signs by colour alone. And a model that draws blobs
draws thin vessels better where they are larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOOKS", "PLAIN", "TONES", "ZOOMS", "information", "larger"]

PLAIN = "plain"

TONES: Mapping[str, Callable[[Tensor], Tensor]] = {
    PLAIN: lambda images: images,
    "grey": lambda images: images.mean(dim=1, keepdim=True).expand_as(images),
    "faded": lambda images: (images + images.mean(dim=1, keepdim=True)) / 2,
    "brighter": lambda images: (1.5 * images).clamp(max=1),
    "lifted": lambda images: images**0.6,
    "darker": lambda images: images**1.6,
}
"""Images B×3×H×W in [0, 1] → the same in another tone; the first leaves them as they are."""


ZOOMS = (1.25, 1.5)
"""How many times larger a model may be shown its images, in rising order."""


def larger(tone: str, zoom: float) -> str:
    """Name in `LOOKS` of that tone, so many times larger."""
    return tone if zoom == 1 else f"{tone} x{zoom:g}"


def _shown(images: Tensor, tone: str, zoom: float) -> Tensor:
    images = TONES[tone](images)
    if zoom == 1:
        return images
    size = [round(side * zoom) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


LOOKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    larger(tone, zoom): partial(_shown, tone=tone, zoom=zoom) for tone in TONES for zoom in (1, *ZOOMS)
}
"""All ways to show a model its images B×3×H×W in [0, 1]: in a tone, larger, or both."""


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
