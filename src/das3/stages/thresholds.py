"""Thresholds per class over the whole data set, from histograms: memory does not grow with the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from das3.losses import IGNORE_INDEX
from das3.stages.context import StageContext

__all__ = [
    "confidence_histogram",
    "counts_of_images",
    "data_set_thresholds",
    "label_above",
    "normalized_labels",
    "thresholds_of",
]

BINS = 4096
HISTOGRAMS_PER_FILE = 50
# 24 octaves of 1 − p, down to float32's rounding: confident models differ only there.
_OCTAVES = 24


def confidence_histogram(probs: Tensor) -> Tensor:
    """Confidences of the pixels predicted as each class, B×C×BINS counts; the bins are even in log(1 − confidence).

    Args:
        probs: B×C×H×W probabilities.
    """
    images, classes = probs.shape[:2]
    confidence, prediction = probs.max(dim=1)
    octaves = -torch.log2((1 - confidence.double()).clamp(min=2.0**-_OCTAVES))
    bins = (octaves * (BINS / _OCTAVES)).long().clamp(max=BINS - 1)
    places = counts_of_images(prediction * BINS + bins, classes * BINS)
    return places.view(images, classes, BINS)


def counts_of_images(values: Tensor, most: int) -> Tensor:
    """How often each image B×H×W has each of the integers below `most`: B×most."""
    first = torch.arange(len(values), device=values.device).view(-1, 1, 1) * most
    return torch.bincount((values + first).flatten(), minlength=len(values) * most).view(-1, most)


def thresholds_of(histogram: Tensor, top_fraction: float) -> Tensor:
    """λ_c, C float32: confidence reached by the most confident `top_fraction` of the pixels predicted as c, to within
    half a percent of its distance to 1; 1 for a class that is not predicted.

    Args:
        histogram: C×BINS counts, see `confidence_histogram`.
        top_fraction: in (0, 1].

    Source: CBST (Zou et al., ECCV 2018), k_c; the authors sort all confidences of the data set.
    """
    surest_first = histogram.flip(1).cumsum(1)
    wanted = torch.ceil(histogram.sum(1, keepdim=True).double() * top_fraction - 1e-6).clamp(min=1)
    position = (surest_first < wanted).sum(1)  # bins that are kept whole before the one that λ is in
    lower_edge = (BINS - 1 - position).clamp(min=0) * (_OCTAVES / BINS)
    thresholds = 1 - torch.exp2(-lower_edge.double())
    return torch.where(histogram.sum(1) > 0, thresholds, 1.0).float()


def data_set_thresholds(
    context: StageContext,
    top_fraction: float,
    *,
    adjust: Callable[[Tensor], Tensor] = lambda probs: probs,
) -> Tensor:
    """λ_c over all target images, C float32, by one pass of the incoming model.

    Args:
        context: model and images.
        top_fraction: in (0, 1], see `thresholds_of`.
        adjust: probabilities B×C×H×W → those whose confidences count.
    """

    def confidences(probs: Tensor) -> dict[str, Tensor]:
        return {"histogram": confidence_histogram(adjust(probs)).int()}

    found = context.summarize("confidences", confidences, per_file=HISTOGRAMS_PER_FILE, batched=True)
    total = sum(torch.from_numpy(one["histogram"]).long() for one in found)
    assert isinstance(total, Tensor)
    return thresholds_of(total, top_fraction).to(context.fabric.device)


def normalized_labels(probs: Tensor, thresholds: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Class of the largest p_c / λ_c where that is at least 1, else `ignore_index`: …×H×W uint8.

    Args:
        probs: …×C×H×W probabilities.
        thresholds: λ, C values.
        ignore_index: id of pixels without a label.

    Source: CBST; a class may win although another is more probable.
    """
    best, label = (probs / thresholds.clamp(min=1e-6).view(-1, 1, 1)).max(dim=-3)
    return torch.where(best >= 1, label, ignore_index).to(torch.uint8)


def label_above(probs: Tensor, thresholds: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The most probable class where its probability is at least its threshold, else `ignore_index`: …×H×W uint8."""
    best, label = probs.max(dim=-3)
    return torch.where(best >= thresholds[label], label, ignore_index).to(torch.uint8)
