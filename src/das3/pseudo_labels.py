"""Positive and negative pseudo labels: the class of a pixel, and classes that it does not have.

Pure functions of probabilities …×C×H×W of one image or a batch. Thresholds are per class *and per image*, so no image
loses a class, and no statistics of the data set are needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from das3.losses import IGNORE_INDEX, most_likely

__all__ = [
    "adjust_posteriors",
    "class_thresholds",
    "negative_labels",
    "pack_negatives",
    "positive_labels",
    "unpack_negatives",
]


def adjust_posteriors(
    probs: Tensor,
    spatial_prior: Tensor,
    underprediction_ratio: Tensor,
    *,
    class_balance: float,
    spatial_prior_weight: float,
) -> Tensor:
    """Probabilities adjusted to the model's predictions for all images: p_c (π_c(x) / π_c)^w s_c^b.

    Where a model is uncertain, a rare class rarely has the largest probability, and training on such labels makes it
    rarer with every round. `class_balance` (b) raises a class that wins fewer pixels than its mean probability
    suggests; one that wins as many, however rare, is unchanged. `spatial_prior_weight` (w) raises a class in the
    part of the image where it is usually predicted, e.g. sky above and road below. In textures, where all locations are
    alike, it changes nothing.

    Args:
        probs: …×C×H×W probabilities.
        spatial_prior: C×h×w shares > 0, see `das3.stages.priors.ClassPriors`; π_c(x) is interpolated, π_c is its mean.
        underprediction_ratio: C, s_c > 0, see there.
        class_balance: in [0, 1]; 0 leaves every class as it is.
        spatial_prior_weight: at least 0; 0 ignores the location, 1 is Bayes' rule.

    Returns:
        …×C×H×W of sum 1 per pixel.

    Source: logit adjustment (Menon et al., ICLR 2021) and the adjustment of posteriors to new priors (Saerens et al.,
    Neural Computation 2002), here with a prior per location; class-balanced self-training (Zou et al., ECCV 2018) takes
    its spatial priors from the source's labels, which we do not have.
    """
    if not (class_balance or spatial_prior_weight):
        return probs
    usual = spatial_prior.mean(dim=(1, 2), keepdim=True)
    factor = (spatial_prior / usual) ** spatial_prior_weight * underprediction_ratio.view(-1, 1, 1) ** class_balance
    factor = F.interpolate(factor[None].to(probs), size=probs.shape[-2:], mode="bilinear", align_corners=False)[0]
    # Of one image in the memory of the factor: on a CPU new memory takes longer than what is computed in it.
    adjusted = factor.view_as(probs).mul_(probs) if probs.numel() == factor.numel() else factor * probs
    return adjusted.div_(adjusted.sum(dim=-3, keepdim=True))


def class_thresholds(
    confidence: Tensor, prediction: Tensor, *, top_fraction: float, num_classes: int, valid: Tensor | None = None
) -> Tensor:
    """λ_c of each image: the confidence reached by the most confident `top_fraction` of the pixels predicted as c.

    Args:
        confidence: …×H×W maximum probabilities.
        prediction: integer class ids of the same shape.
        top_fraction: K in (0, 1]; at least one pixel of each predicted class is kept.
        num_classes: C.
        valid: boolean, pixels that count; None for all.

    Returns:
        …×C thresholds in the dtype of `confidence`; infinity for a class that the image does not predict.

    Source: DAS3, positive pseudo labels. Two sorts on the device for all classes together, no loop and no histogram,
    and nothing that a GPU would have to be waited for.
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction must be in (0, 1], got {top_fraction}")
    lead, pixels = confidence.shape[:-2], confidence.shape[-2] * confidence.shape[-1]
    if not pixels:
        return confidence.new_full((*lead, num_classes), torch.inf)
    # uint8 keys sort several times faster than int64, and a stable sort keeps confidences descending within a class.
    key = prediction.to(torch.uint8 if num_classes <= 255 else torch.int64)
    if valid is not None:
        key = torch.where(valid, key, num_classes)  # behind all classes
    confidence, order = confidence.reshape(-1, pixels).sort(dim=1, descending=True)
    ranked, by_class = key.reshape(-1, pixels).gather(1, order).sort(dim=1, stable=True)
    classes = torch.arange(num_classes, device=ranked.device).to(ranked.dtype).expand(len(ranked), -1).contiguous()
    ends = torch.searchsorted(ranked, classes, right=True)
    counts = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
    # The slack keeps 0.1 × 30 = 3.0000000000000004 from counting as 4 pixels.
    kept = torch.ceil(counts.double() * top_fraction - 1e-6).long().clamp(min=1)
    last = (ends - counts + kept - 1).clamp(max=pixels - 1)
    thresholds = confidence.gather(1, by_class.gather(1, last))
    return torch.where(counts > 0, thresholds, torch.inf).view(*lead, num_classes)


def positive_labels(
    probs: Tensor, *, top_fraction: float, valid: Tensor | None = None, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Class ids of the pixels whose confidence reaches the threshold of their class in their image.

    Args:
        probs: …×C×H×W probabilities.
        top_fraction: K, see `class_thresholds`. Pixels that tie with the threshold are all kept.
        valid: boolean …×H×W, or None.
        ignore_index: id of pixels without a label.

    Returns:
        …×H×W uint8 (int64 for more than 255 classes).

    Source: DAS3, ŷ_i = argmax p_i where p_i,ŷ ≥ λ_ŷ.
    """
    num_classes = probs.shape[-3]
    confidence, prediction = probs.max(dim=-3)
    thresholds = class_thresholds(
        confidence, prediction, top_fraction=top_fraction, num_classes=num_classes, valid=valid
    )
    keep = confidence >= thresholds.gather(-1, prediction.flatten(-2)).view_as(confidence)
    if valid is not None:
        keep &= valid
    labels = torch.where(keep, prediction, ignore_index)
    return labels.to(torch.uint8) if num_classes <= 255 else labels


def negative_labels(probs: Tensor, *, threshold: float = 0.05, valid: Tensor | None = None) -> Tensor:
    """Negative labels: n_c = 1 where p_c < threshold.

    The most likely class is never among them, not even where so many classes share the probability that all are small.

    Args:
        probs: …×C×H×W probabilities.
        threshold: in (0, 1).
        valid: boolean …×H×W, or None for all; no negative labels elsewhere.

    Returns:
        Boolean …×C×H×W.

    Source: DAS3, negative pseudo labels.
    """
    negatives = probs < threshold
    if threshold * probs.shape[-3] > 0.99:  # else the most likely class, of a share of at least 1 / C, is above it
        negatives.scatter_(-3, most_likely(probs, -3).unsqueeze(-3), False)
    return negatives if valid is None else negatives & valid.unsqueeze(-3)


def pack_negatives(negatives: Tensor) -> Tensor:
    """Boolean …×C×H×W as bits: uint8 …×⌈C/8⌉×H×W, an eighth of the memory. Bit c % 8 of plane c // 8 is class c."""
    planes = -(-negatives.shape[-3] // 8)
    padded = F.pad(negatives.view(torch.uint8), (0, 0, 0, 0, 0, 8 * planes - negatives.shape[-3]))
    bits: Tensor = padded.unflatten(-3, (planes, 8)) << _shifts(padded)
    return bits.sum(dim=-3, dtype=torch.uint8)


def unpack_negatives(planes: Tensor, num_classes: int) -> Tensor:
    """Inverse of `pack_negatives`: uint8 …×P×H×W to boolean …×C×H×W."""
    bits = planes.unsqueeze(-3) >> _shifts(planes)
    bits &= 1
    # The same bytes: a comparison with 0 takes longer than all the rest on a CPU.
    return bits.flatten(-4, -3)[..., :num_classes, :, :].view(torch.bool)


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device).view(8, 1, 1)
