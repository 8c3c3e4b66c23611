"""Positive and negative pseudo labels: the class of a pixel, and classes that it does not have.

Pure functions of probabilities. Thresholds are per class *and per image*, so no image loses a class, and no
statistics of the data set are needed.
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
        probs: C×H×W probabilities of one image.
        spatial_prior: C×h×w shares > 0, see `das3.stages.priors.ClassPriors`; π_c(x) is interpolated, π_c is its mean.
        underprediction_ratio: C, s_c > 0, see there.
        class_balance: in [0, 1]; 0 leaves every class as it is.
        spatial_prior_weight: at least 0; 0 ignores the location, 1 is Bayes' rule.

    Returns:
        C×H×W of sum 1 per pixel.

    Source: logit adjustment (Menon et al., ICLR 2021) and the adjustment of posteriors to new priors (Saerens et al.,
    Neural Computation 2002), here with a prior per location; class-balanced self-training (Zou et al., ECCV 2018) takes
    its spatial priors from the source's labels, which we do not have.
    """
    if not (class_balance or spatial_prior_weight):
        return probs
    usual = spatial_prior.mean(dim=(1, 2), keepdim=True)
    factor = (spatial_prior / usual) ** spatial_prior_weight * underprediction_ratio.view(-1, 1, 1) ** class_balance
    adjusted = F.interpolate(factor[None], size=probs.shape[-2:], mode="bilinear", align_corners=False)[0]
    # In the memory of the factor: on a CPU new memory takes longer than what is computed in it.
    adjusted *= probs
    adjusted /= adjusted.sum(dim=0)
    return adjusted


def class_thresholds(
    confidence: Tensor, prediction: Tensor, *, top_fraction: float, num_classes: int, valid: Tensor | None = None
) -> Tensor:
    """λ_c of one image: the confidence reached by the most confident `top_fraction` of the pixels predicted as c.

    Args:
        confidence: H×W (any shape) maximum probabilities.
        prediction: integer class ids of the same shape.
        top_fraction: K in (0, 1]; at least one pixel of each predicted class is kept.
        num_classes: C.
        valid: boolean, pixels that count; None for all.

    Returns:
        C thresholds in the dtype of `confidence`; infinity for a class that the image does not predict.

    Source: DAS3, positive pseudo labels. Two sorts on the device for all classes together, no loop and no histogram.
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction must be in (0, 1], got {top_fraction}")
    if valid is not None:
        confidence, prediction = confidence[valid], prediction[valid]
    if not confidence.numel():
        return confidence.new_full((num_classes,), torch.inf)
    confidence, order = confidence.flatten().sort(descending=True)
    # uint8 keys sort several times faster than int64, and a stable sort keeps confidences descending within a class.
    key = torch.uint8 if num_classes <= 256 else torch.int64
    ranked, by_class = prediction.flatten()[order].to(key).sort(stable=True)
    # Nothing below depends on a value that a GPU would have to be waited for.
    ends = torch.searchsorted(ranked, torch.arange(num_classes, device=ranked.device).to(key), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    # The slack keeps 0.1 × 30 = 3.0000000000000004 from counting as 4 pixels.
    kept = torch.ceil(counts.double() * top_fraction - 1e-6).long().clamp(min=1)
    last = (ends - counts + kept - 1).clamp(max=len(confidence) - 1)
    return torch.where(counts > 0, confidence[by_class[last]], torch.inf)


def positive_labels(
    probs: Tensor, *, top_fraction: float, valid: Tensor | None = None, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Class ids of the pixels whose confidence reaches the threshold of their class in their image.

    Args:
        probs: C×H×W probabilities of one image.
        top_fraction: K, see `class_thresholds`. Pixels that tie with the threshold are all kept.
        valid: boolean H×W, or None.
        ignore_index: id of pixels without a label.

    Returns:
        H×W uint8 (int64 for more than 255 classes).

    Source: DAS3, ŷ_i = argmax p_i where p_i,ŷ ≥ λ_ŷ.
    """
    num_classes = probs.shape[0]
    confidence, prediction = probs.max(dim=0)
    thresholds = class_thresholds(
        confidence, prediction, top_fraction=top_fraction, num_classes=num_classes, valid=valid
    )
    keep = confidence >= thresholds[prediction]
    if valid is not None:
        keep &= valid
    labels = torch.where(keep, prediction, ignore_index)
    return labels.to(torch.uint8) if num_classes <= 255 else labels


def negative_labels(probs: Tensor, *, threshold: float = 0.05, valid: Tensor | None = None) -> Tensor:
    """Negative labels: n_c = 1 where p_c < threshold.

    The most likely class is never among them, not even where so many classes share the probability that all are small.

    Args:
        probs: C×H×W probabilities of one image.
        threshold: in (0, 1).
        valid: boolean H×W, or None for all; no negative labels elsewhere.

    Returns:
        Boolean C×H×W.

    Source: DAS3, negative pseudo labels.
    """
    negatives = probs < threshold
    if threshold * len(probs) > 0.99:  # else the most likely class, which has a share of at least 1 / C, is above it
        negatives.scatter_(0, most_likely(probs, 0)[None], False)
    return negatives if valid is None else negatives & valid


def pack_negatives(negatives: Tensor) -> Tensor:
    """Boolean C×H×W as bits: uint8 ⌈C/8⌉×H×W, an eighth of the memory. Bit c % 8 of plane c // 8 is class c."""
    num_classes, height, width = negatives.shape
    planes = -(-num_classes // 8)
    padded = negatives.new_zeros((planes * 8, height, width))
    padded[:num_classes] = negatives
    bits = padded.view(planes, 8, height, width).to(torch.uint8)
    return (bits << _shifts(bits)).sum(dim=1, dtype=torch.uint8)


def unpack_negatives(planes: Tensor, num_classes: int) -> Tensor:
    """Inverse of `pack_negatives`: uint8 …×P×H×W to boolean …×C×H×W."""
    bits = planes.unsqueeze(-3) >> _shifts(planes)
    bits &= 1
    # The same bytes: a comparison with 0 takes longer than all the rest on a CPU.
    return bits.flatten(-4, -3)[..., :num_classes, :, :].view(torch.bool)


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device).view(8, 1, 1)
