"""The losses: pure functions of logits, each a mean over the valid pixels.

All of them take logits B×C×H×W of any floating dtype and compute entropies and logarithms in float32 or better.
`valid` is a boolean B×H×W map of the pixels that count (padding does not); a batch without any gives 0. Where several
processes share a batch, means are over all of it, see `das3.distributed`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from das3.distributed import average_over_processes, mean_over_processes, sum_over_processes
from das3.softmax_sums import entropies, label_sums, pairs, pairwise_sum, weighted_entropies

__all__ = [
    "IGNORE_INDEX",
    "bidirectional_losses",
    "diversity_loss",
    "entropy_and_mean_prediction",
    "entropy_of_probs",
    "focal_entropy",
    "focal_entropy_loss",
    "masked_mean",
    "mean_prediction",
    "most_likely",
    "mutual_information",
    "negative_loss",
    "normalized_entropy",
    "pairwise_loss",
    "positive_loss",
]

IGNORE_INDEX = 255
"""Class id of pixels that do not count, as in the field's data sets and label files."""

_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Rows and columns from a pixel to half of its neighbours; the other half are theirs."""
_DARK = 0.05
"""Added to colours before their logarithm: below it there is more noise than light."""
_REACHES = (1, 3)
"""How far away, in pixels of half resolution, those are that a pixel is compared with."""


def most_likely(scores: Tensor, dim: int) -> Tensor:
    """Class of the largest score: …×C×… to int64 without dimension `dim`. On a CPU argmax takes twice as long."""
    return scores.max(dim=dim).indices


def normalized_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) per pixel, divided by log C.

    Args:
        logits: B×C×…, any floating dtype; computed in float32 or better, since p log p loses small p in half precision.

    Returns:
        B×… in [0, 1], float32 (float64 for float64 input).

    Source: DAS3 (arXiv 2106.11653), H(p) = −Σ_c p_c log p_c / log C.
    """
    return entropies(_wide(logits))


def _wide(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def entropy_of_probs(probs: Tensor) -> Tensor:
    """The same from probabilities B×C×… (zeros allowed: 0 log 0 = 0); no gradient is meant to pass."""
    return -torch.xlogy(probs, probs).sum(dim=1) / math.log(probs.shape[1])


def focal_entropy_loss(
    logits: Tensor, *, gamma: float = 5.0, alpha: float = 1.0, valid: Tensor | None = None, detach_focus: bool = False
) -> Tensor:
    """Focal entropic loss: entropy minimisation in which confident pixels dominate.

    Args:
        logits: B×C×H×W.
        gamma: ≥ 0; the larger, the less uncertain pixels contribute; 0 is plain entropy minimisation.
        alpha: scale of the loss.
        valid: boolean B×H×W, or None for all pixels.
        detach_focus: keep (1 − H)^γ out of the graph, so that it only weighs.

    Returns:
        Scalar ≥ 0.

    Source: DAS3, L_fent = (1/N) Σ_i α (1 − H_i)^γ H_i; the factor is in the graph as in the ATP release.
    """
    return focal_entropy(normalized_entropy(logits), gamma=gamma, alpha=alpha, valid=valid, detach_focus=detach_focus)


def focal_entropy(
    entropy: Tensor, *, gamma: float = 5.0, alpha: float = 1.0, valid: Tensor | None = None, detach_focus: bool = False
) -> Tensor:
    """The same from entropies B×H×W in [0, 1]."""
    # Rounding can leave H a hair above 1, where a fractional power is NaN.
    focus = (1 - entropy).clamp(min=0) ** gamma
    return alpha * masked_mean((focus.detach() if detach_focus else focus) * entropy, valid)


def mean_prediction(logits: Tensor, *, entropy_weight: float = 3.0, valid: Tensor | None = None) -> Tensor:
    """Mean prediction p̄ in which confident pixels weigh more.

    Args:
        logits: B×C×H×W.
        entropy_weight: a ≥ 0, steepness of the weight w_i = exp(−a H_i), through which no gradient passes.
        valid: boolean B×H×W, or None for all pixels.

    Returns:
        C values ≥ 0 whose sum, the mean weight, is at most 1.

    Source: DAS3, p̄ = Σ_i w_i p_i / N of the weighted diversity loss.
    """
    return entropy_and_mean_prediction(logits, entropy_weight=entropy_weight, valid=valid)[1]


def entropy_and_mean_prediction(
    logits: Tensor, *, entropy_weight: float = 3.0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`normalized_entropy` and `mean_prediction` from one softmax; the entropy of pixels that do not count is 1."""
    entropy, sums = weighted_entropies(_wide(logits), entropy_weight, valid)
    return entropy, mean_over_processes(sums, entropy.numel() if valid is None else valid.sum())


def diversity_loss(mean: Tensor, prior: Tensor | None = None) -> Tensor:
    """Σ_c p̄_c log p̄_c / log C: small where the mean prediction keeps all classes alive.

    Args:
        mean: the C values of p̄, of this batch or a running estimate (see `mean_prediction`).
        prior: C positive values q with sum 1 that p̄ is drawn to, by Σ_c p̄_c log(p̄_c / q_c) / log C; None draws it to
            equal shares, as the paper does.

    Returns:
        Scalar; ≤ 0 without a prior.

    Source: DAS3, L_wdiv; the prior is ours, for images that do not show all classes equally.
    """
    # The gradient of x log x is −∞ at 0, which a class reaches whose probability underflows in every pixel.
    loss = torch.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()
    if prior is not None:
        loss = loss - (mean * prior.log()).sum()
    return loss / math.log(mean.numel())


def positive_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Cross-entropy on the pixels that have a positive pseudo label.

    Args:
        logits: B×C×H×W.
        labels: B×H×W integer class ids, `ignore_index` where there is none.
        ignore_index: id that does not count.

    Returns:
        Scalar ≥ 0, the mean over labelled pixels; 0 where there are none.

    Source: DAS3, L_pos.
    """
    total = F.cross_entropy(_wide(logits), labels.long(), ignore_index=ignore_index, reduction="sum")
    return mean_over_processes(total, (labels != ignore_index).sum())


def negative_loss(
    logits: Tensor,
    negatives: Tensor,
    *,
    valid: Tensor | None = None,
    form: Literal["separate", "pooled"] = "separate",
    eps: float = 1e-6,
) -> Tensor:
    """Push down the classes that a pixel surely is not.

    Args:
        logits: B×C×H×W.
        negatives: boolean B×C×H×W, true where class c is ruled out.
        valid: boolean B×H×W, pixels that count, or None for all.
        form: "separate" is the paper's −(1/N) Σ_i Σ_c n_ic log(1 − p_ic); "pooled" is the ATP release's
            −(1/N) Σ_i log(1 − Σ_c n_ic p_ic).
        eps: 1 − p is held above this inside the logarithm.

    Returns:
        Scalar ≥ 0.

    Source: DAS3, L_neg.
    """
    _, total = label_sums(_wide(logits), None, negatives, valid=valid, form=form, eps=eps, ignore_index=IGNORE_INDEX)
    return _mean_of_pixels(total, negatives, valid)


def bidirectional_losses(
    logits: Tensor,
    labels: Tensor,
    negatives: Tensor,
    *,
    valid: Tensor | None = None,
    form: Literal["separate", "pooled"] = "separate",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """`positive_loss` and `negative_loss` from one softmax; labels count where `valid`.

    Args:
        logits, labels: see `positive_loss`.
        negatives, valid, form, eps: see `negative_loss`.
    """
    positive, negative = label_sums(
        _wide(logits), labels, negatives, valid=valid, form=form, eps=eps, ignore_index=IGNORE_INDEX
    )
    known = labels != IGNORE_INDEX
    labelled = (known if valid is None else known & valid).sum()
    return mean_over_processes(positive, labelled), _mean_of_pixels(negative, negatives, valid)


def _mean_of_pixels(total: Tensor, like: Tensor, valid: Tensor | None) -> Tensor:
    """A sum over the valid pixels of B×C×H×W as their mean."""
    return mean_over_processes(total, like[:, 0].numel() if valid is None else valid.sum())


def pairwise_loss(logits: Tensor, image: Tensor, *, valid: Tensor | None = None, contrast: float = 0.03) -> Tensor:
    """Neighbouring pixels of nearly equal colour are of a class: Σ_ij k_ij ‖p_i − p_j‖², a mean over all pairs.

    At half resolution; x is the logarithm of the colour, so that an edge in the shade counts like one in the light, and
    j each of the eight neighbours of i and of the eight three pixels away. The kernel is
    k_ij = exp(−d_ij / (contrast v + 1e-5)), d_ij the largest ‖x_k − x_l‖² of the two pixels and of all steps on the
    straight way between them, v the image's mean ‖x_k − x_l‖² of direct neighbours. So pairs on either side of an edge,
    be it a thin line, do not count, nor do most in an image that is noise all over, where colours tell little.

    Args:
        logits: B×C×H×W; 0 where H or W is 1.
        image: B×K×H×W in [0, 1], what the model was shown; K = 3 for RGB.
        valid: boolean B×H×W, pixels that count, or None for all.
        contrast: > 0; the smaller, the more alike two colours have to be.

    Returns:
        Scalar in [0, 2].

    Source: ours, after the dense CRF's appearance kernel (Krähenbühl and Koltun, NeurIPS 2011) and its use as a local
    loss, gated CRF (Obukhov et al., 2019), whose 1 − p_i · p_j would also make unsure pixels sure.
    """
    logits = _wide(logits)
    if min(logits.shape[-2:]) < 2:  # no pairs
        return 0 * logits.softmax(dim=1).sum()
    probs = F.avg_pool2d(logits.softmax(dim=1), 2)
    with torch.no_grad():
        weights = _pair_weights(F.avg_pool2d(image.to(probs.dtype), 2), valid, contrast)
    return sum_over_processes(pairwise_sum(probs, weights))


def _pair_weights(image: Tensor, valid: Tensor | None, contrast: float) -> dict[tuple[int, int], Tensor]:
    """k_ij over the number of pairs, for each of the eight ways to a neighbour, see `pairwise_loss`.

    Args:
        image: B×K×h×w at half resolution.
        valid: boolean B×H×W, of the whole image.
        contrast: see there.
    """
    colour = torch.log(image + _DARK)
    inside = torch.ones_like(colour[:, 0]) if valid is None else F.avg_pool2d(valid.to(colour.dtype), 2)
    inside = inside == 1
    steps = {way: _squared(colour, *way) for way in _DIRECTIONS}
    counted = {way: _both(inside, *way) for way in _DIRECTIONS[:2]}
    total = torch.stack([torch.where(counted[way], steps[way], 0).sum(dim=(1, 2)) for way in counted]).sum(dim=0)
    usual = total / torch.stack([where.sum(dim=(1, 2)) for where in counted.values()]).sum(dim=0).clamp(min=1)
    scale = (contrast * usual + 1e-5)[:, None, None]
    kernels, there = {}, {}
    for reach in _REACHES:
        for rows, columns in _DIRECTIONS:
            pair = reach * rows, reach * columns
            apart = _squared(colour, *pair)
            height, width = apart.shape[-2:]
            for step in range(reach):
                left = step if columns >= 0 else reach - 1 - step
                part = steps[rows, columns][:, step * rows :, left * abs(columns) :][:, :height, :width]
                apart = torch.maximum(apart, part)
            there[pair] = _both(inside, *pair)
            kernels[pair] = torch.where(there[pair], torch.exp(-apart / scale), 0)
    counts = sum_over_processes(torch.stack([where.sum() for where in there.values()])).clamp(min=1)
    return {pair: kernels[pair] / (count * len(kernels)) for pair, count in zip(kernels, counts, strict=True)}


def _squared(values: Tensor, rows: int, columns: int) -> Tensor:
    one, other = pairs(values, rows, columns)
    return (one - other).square().sum(dim=1)


def _both(inside: Tensor, rows: int, columns: int) -> Tensor:
    one, other = pairs(inside, rows, columns)
    return one & other


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of the values where `valid`, a boolean tensor of their shape, is true; 0 where it nowhere is.

    None means everywhere.
    """
    if valid is None:
        return average_over_processes(values.mean())  # all processes have equally many values
    # where(), not a product: an invalid pixel's NaN must not reach the sum.
    return mean_over_processes(torch.where(valid, values, 0).sum(), valid.sum())


def mutual_information(means: Tensor, entropies: Tensor) -> float:
    """Mutual information of image and class in a model's predictions, as a share of log C: in [0, 1] but for rounding.

    It is large where the model is sure of each pixel and predicts all classes.

    Args:
        means: N×C mean predictions of N images.
        entropies: the N images' mean entropies, as shares of log C.

    Source: Bridle et al. (1991); Shi and Sha (ICML 2012) choose among adapted models by it, without labels.
    """
    mean = means.double().mean(dim=0)
    marginal = -torch.xlogy(mean, mean).sum().item() / math.log(mean.numel())
    return marginal - entropies.double().mean().item()
