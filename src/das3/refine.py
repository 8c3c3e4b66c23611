"""Predictions refined by the image itself: equal colours are of a class, and classes end where the image has edges.

A network of stride 4 or 8 draws blobs; what it learnt of colours and edges was learnt on other images. The target image
says where things end, and no label is needed to see it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["by_colour", "by_edges", "refined"]

_BINS = 8
_DOUBT = 0.002  # share of the image's pixels that a bin of colours is given of the image's mean prediction


def refined(probs: Tensor, image: Tensor) -> Tensor:
    """`by_colour`, then `by_edges`.

    Args:
        probs: C×H×W probabilities of one image.
        image: 3×H×W in [0, 1].

    Returns:
        C×H×W of sum 1 per pixel.
    """
    return by_edges(by_colour(probs, image), image)


def by_colour(probs: Tensor, image: Tensor) -> Tensor:
    """Each pixel's probabilities times how much more often its colour is a class's than any pixel is, in this image.

    The mean prediction of the pixels of a colour q_c(k), k one of 8³ bins between the image's darkest and brightest
    hundredth, is blurred over neighbouring bins and drawn to the mean prediction π_c of the image where a colour is
    rare: p_c · q_c(k) / π_c, scaled to sum 1. Where colours say nothing, that changes nothing.

    Args:
        probs: C×H×W probabilities of one image.
        image: 3×H×W in [0, 1].

    Returns:
        C×H×W of sum 1 per pixel.

    Source: the colour models of GrabCut (Rother et al., 2004), here of soft predictions in place of a user's strokes.
    """
    classes = probs.shape[0]
    flat = image.flatten(1)
    ordered = flat.sort(dim=1).values
    end = flat.shape[1] - 1
    low, high = ordered[:, round(0.01 * end), None], ordered[:, round(0.99 * end), None]
    place = ((flat - low) / (high - low + 1e-3)).clamp(0, 1).mul(_BINS - 1).round().long()
    bins = (place[0] * _BINS + place[1]) * _BINS + place[2]
    counted = torch.cat([probs.flatten(1), probs.new_ones(1, flat.shape[1])])
    table = probs.new_zeros(classes + 1, _BINS**3).index_add_(1, bins, counted)
    table = F.avg_pool3d(table.view(1, -1, _BINS, _BINS, _BINS), 3, 1, 1).view(classes + 1, -1)
    usual = probs.mean(dim=(1, 2)).clamp(min=1e-6)[:, None]
    doubt = _DOUBT * flat.shape[1] / 27  # the blur has divided the counts by 27 as well
    factor = (table[:classes] + doubt * usual) / (table[classes:] + doubt) / usual
    likely = probs * factor.clamp(min=0.05)[:, bins].view_as(probs)
    return likely / likely.sum(dim=0)


def by_edges(probs: Tensor, image: Tensor, *, radius: int = 4, epsilon: float = 1e-3) -> Tensor:
    """Guided filter: in each window the probabilities become the linear function of the colour that fits them best.

    Args:
        probs: C×H×W probabilities of one image.
        image: the guide, 3×H×W in [0, 1].
        radius: of the square windows in pixels; they have 2 radius + 1 on a side.
        epsilon: variance of the colour below which a window is smoothed.

    Returns:
        C×H×W of sum 1 per pixel, each at least 1e-4 before that scaling.

    Source: He, Sun and Tang, "Guided Image Filtering" (ECCV 2010), equations 8, 14 and 15.
    """
    colour, mean = _box(image, radius), _box(probs, radius)
    channels = image.shape[0]
    covariance = _box((image[:, None] * image).flatten(0, 1), radius).view(channels, channels, *image.shape[1:])
    covariance = covariance - colour[:, None] * colour
    covariance = covariance.permute(2, 3, 0, 1) + epsilon * torch.eye(channels, device=image.device)
    both = torch.stack([_box(image[k] * probs, radius) - colour[k] * mean for k in range(channels)])
    slope = torch.linalg.solve(covariance, both.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)  # 3×C×H×W
    offset = _box(mean - (slope * colour[:, None]).sum(dim=0), radius)
    fitted = sum((_box(slope[k], radius) * image[k] for k in range(channels)), start=offset)
    fitted = fitted.clamp(min=1e-4)
    return fitted / fitted.sum(dim=0)


def _box(values: Tensor, radius: int) -> Tensor:
    """Mean of N×H×W values in square windows; the border is repeated outwards.

    A sum of shifted copies: on a CPU several times faster than average pooling, which is not vectorised there.
    """
    side = 2 * radius + 1
    for dim in (-2, -1):
        around = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
        padded = F.pad(values[None], around, mode="replicate")[0]
        length = values.shape[dim]
        values = padded.narrow(dim, 0, length).clone()
        for start in range(1, side):
            values += padded.narrow(dim, start, length)
        values /= side
    return values
