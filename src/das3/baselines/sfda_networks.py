"""Networks that SFDA trains beside the segmenter: a generator of images, a discriminator of easy and hard patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Generator", "PatchDiscriminator", "reverse"]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradient, None


def reverse(values: Tensor, scale: float = 1.0) -> Tensor:
    """The same values; the gradient that passes back is multiplied by −scale, so that what comes before plays against
    what comes after in one backward pass.

    Source: Ganin & Lempitsky (ICML 2015).
    """
    return _Reverse.apply(values, scale)  # type: ignore[no-any-return]


class Generator(nn.Module):
    """Noise to images in [0, 1], in the manner of DCGAN.

    Args:
        size: (height, width) of the images.
        latent: length of the noise.
        width: channels of the last layer but one, ×4 at the beginning.
        bands: of the images.
    """

    def __init__(self, size: tuple[int, int], latent: int = 256, width: int = 16, bands: int = 3) -> None:
        super().__init__()
        self.size, self.latent = size, latent
        self.start = (4 * width, -(-size[0] // 8), -(-size[1] // 8))
        self.project = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        steps = [self._double(4 * width, 4 * width), self._double(4 * width, 2 * width), self._double(2 * width, width)]
        self.layers = nn.Sequential(*steps, nn.Conv2d(width, bands, 3, padding=1), nn.Sigmoid())

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        up = nn.Upsample(scale_factor=2)
        return nn.Sequential(up, nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.LeakyReLU(0.2))

    def forward(self, noise: Tensor) -> Tensor:
        """B×latent to B×bands×H×W."""
        images: Tensor = self.layers(self.project(noise).view(-1, *self.start))
        return images[..., : self.size[0], : self.size[1]]


class PatchDiscriminator(nn.Module):
    """Discriminator: is a patch of a prediction, at a known position in the image, an easy one? A logit.

    Args:
        classes: C.
        places: number of places.
        width: channels of the first layer.
    """

    def __init__(self, classes: int, places: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(classes, width, 4, stride=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2),
            nn.LeakyReLU(0.2),
        )
        self.place = nn.Embedding(places, 2 * width)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """Patches N×C×h×w and places N to N logits."""
        small = F.adaptive_avg_pool2d(patches, 32)
        features = self.layers(small).mean(dim=(2, 3)) + self.place(places)
        scores: Tensor = self.score(features).squeeze(1)
        return scores
