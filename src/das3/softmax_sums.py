"""Sums over pixels that several losses need of one softmax, with their gradients written out.

Autograd would keep a tensor of the logits' size for every step of every loss. These functions keep log softmax and one
byte per class and pixel at most, as cross-entropy does, and go over the logits only as often as they have to. Logits
are float32 or float64 and results of the same dtype. Pixels that are not `valid` count nowhere, whatever they hold.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["entropies", "label_sums", "pairwise_sum", "weighted_entropies"]


def entropies(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) per pixel as a share of log C: B×C×… to B×…."""
    return _Entropy.apply(logits, None, None)[0]  # type: ignore[no-any-return]


def weighted_entropies(logits: Tensor, entropy_weight: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same H, and Σ_i w_i p_i with w_i = exp(−a H_i), through which no gradient passes.

    Args:
        logits: B×C×H×W.
        entropy_weight: a.
        valid: boolean B×H×W; entropies elsewhere are 1. None for all.

    Returns:
        B×H×W and C.
    """
    entropy, sums = _Entropy.apply(logits, entropy_weight, valid)
    return entropy, sums


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, entropy_weight: float | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        log_probs = _log_softmax(logits, valid)
        probs = log_probs.exp()
        entropy = (probs * log_probs).sum(dim=1).div_(-math.log(logits.shape[1]))
        weight = sums = None
        if entropy_weight is not None:
            weight = torch.exp(-entropy_weight * entropy)
            weight = weight if valid is None else weight.masked_fill_(~valid, 0)
            sums = torch.bmm(probs.flatten(2), weight.flatten(1).unsqueeze(2)).sum(dim=(0, 2))
        ctx.save_for_backward(log_probs, entropy, weight)
        ctx.set_materialize_grads(False)
        return entropy, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_entropy: Tensor | None, of_sums: Tensor | None) -> tuple[Tensor | None, None, None]:
        log_probs, entropy, weight = ctx.saved_tensors
        if of_entropy is None and of_sums is None:
            return None, None, None
        # dH/dz_c = −p_c (log p_c / log C + H) and d(Σ_k g_k w p_k)/dz_c = w p_c (g_c − Σ_k g_k p_k).
        probs, inner = log_probs.exp(), None
        if of_entropy is not None:
            slope = of_entropy / -math.log(log_probs.shape[1])
            inner = torch.addcmul((-of_entropy * entropy).unsqueeze(1), log_probs, slope.unsqueeze(1))
        if of_sums is not None:
            mean = torch.einsum("c,bcn->bn", of_sums, probs.flatten(2)).view_as(entropy)
            shape = [1, -1, *[1] * (probs.ndim - 2)]
            inner = (-mean * weight).unsqueeze(1) if inner is None else inner.sub_((mean * weight).unsqueeze(1))
            inner = torch.addcmul(inner, weight.unsqueeze(1), of_sums.view(shape))
        return probs.mul_(inner), None, None


def label_sums(
    logits: Tensor,
    labels: Tensor | None,
    negatives: Tensor,
    *,
    valid: Tensor | None,
    form: Literal["separate", "pooled"],
    eps: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Σ −log p_label over the labelled pixels, and Σ −log(1 − p) over the negative labels, see `das3.losses`.

    Args:
        logits: B×C×H×W.
        labels: B×H×W integer class ids, `ignore_index` where there is none; None for none at all.
        negatives: boolean B×C×H×W.
        valid: boolean B×H×W, or None; labels do not count elsewhere.
        form: of the negative sum, see `das3.losses.negative_loss`.
        eps: least 1 − p.
        ignore_index: id that is no class.

    Returns:
        Two scalars.
    """
    positive, negative = _LabelSums.apply(logits, labels, negatives, valid, form == "pooled", eps, ignore_index)
    return positive, negative


class _LabelSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor | None,
        negatives: Tensor,
        valid: Tensor | None,
        pooled: bool,
        eps: float,
        ignore_index: int,
    ) -> tuple[Tensor, Tensor]:
        log_probs = _log_softmax(logits, valid)
        positive = logits.new_zeros(())
        if labels is not None:
            labels = labels if valid is None else labels.masked_fill(~valid, ignore_index)
            positive = F.nll_loss(log_probs, labels.long(), ignore_index=ignore_index, reduction="sum")
        others = ~negatives
        probs = log_probs.exp().masked_fill_(others, 0)
        rest = torch.rsub(probs.sum(dim=1, keepdim=True) if pooled else probs, 1)
        ctx.save_for_backward(log_probs, labels, others.logical_or_(rest < eps), valid)
        ctx.pooled, ctx.ignore_index = pooled, ignore_index
        logarithms = rest.clamp_(min=eps).log_().sum(dim=1)
        negative = -(logarithms if valid is None else logarithms.masked_fill_(~valid, 0)).sum()
        return positive, negative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_positive: Tensor, of_negative: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, labels, flat, valid = ctx.saved_tensors
        # With x_c = n_c p_c / (1 − p_c), or n_c p_c / (1 − Σ n p), the gradient is x_c − p_c Σ x.
        probs = log_probs.exp()
        if ctx.pooled:
            ruled_out = probs.masked_fill(flat, 0)
            gradient = ruled_out / torch.rsub(ruled_out.sum(dim=1, keepdim=True), 1)
        else:
            gradient = torch.div(probs, torch.rsub(probs, 1)).masked_fill_(flat, 0)  # 0 / 0 among them
        gradient.mul_(of_negative if valid is None else torch.where(valid, of_negative, 0).unsqueeze(1))
        through = gradient.sum(dim=1).neg_()
        if labels is not None:
            known = labels != ctx.ignore_index
            of_labels = torch.where(known, of_positive, 0)
            through += of_labels
            gradient.scatter_add_(1, torch.where(known, labels, 0).long().unsqueeze(1), -of_labels.unsqueeze(1))
        return gradient.addcmul_(probs, through.unsqueeze(1)), None, None, None, None, None, None


def _log_softmax(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Even where pixels do not count, so that nothing they hold can reach a sum or a gradient."""
    log_probs = F.log_softmax(logits, dim=1)
    return log_probs if valid is None else log_probs.masked_fill_(~valid.unsqueeze(1), -math.log(logits.shape[1]))


Pair = tuple[int, int]
"""Rows ≥ 0 below a pixel, and columns to its right, that another one lies."""


def pairwise_sum(probs: Tensor, weights: dict[Pair, Tensor]) -> Tensor:
    """Σ_ij w_ij ‖p_i − p_j‖², a scalar; the gradient is found on the way.

    Args:
        probs: B×C×H×W.
        weights: pair → B×h×w weights of the pixels that have such a neighbour, see `pairs`.
    """
    return _PairwiseSum.apply(probs, list(weights), *weights.values())  # type: ignore[no-any-return]


class _PairwiseSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, ways: list[Pair], *weights: Tensor) -> Tensor:
        slopes, total = torch.zeros_like(probs), probs.new_zeros(())
        for way, weight in zip(ways, weights, strict=True):
            one, other = pairs(probs, *way)
            apart = one - other
            pull = apart * weight.unsqueeze(1)
            total += (pull.flatten() * apart.flatten()).sum()
            for slope, sign in zip(pairs(slopes, *way), (1, -1), strict=True):
                slope.add_(pull, alpha=sign)
        ctx.save_for_backward(slopes)
        ctx.count = len(weights)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * (2 * of_total), None, *[None] * ctx.count


def pairs(values: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """…×H×W values of the pixels that have one `rows` ≥ 0 below and `columns` to the right, and the values of those."""
    height, width = max(values.shape[-2] - rows, 0), max(values.shape[-1] - abs(columns), 0)
    left, right = max(-columns, 0), max(columns, 0)
    return (
        values[..., :height, left : left + width],
        values[..., rows : rows + height, right : right + width],
    )
