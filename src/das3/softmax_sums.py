"""Sums over pixels that several losses need of one softmax, with their gradients written out.

Autograd would keep a tensor of the logits' size for every step of every loss. These functions keep the logits alone,
which is what cross-entropy keeps of them, and take the softmax once more on the way back, where they need its
exponentials in any case. On a CPU they go through the pixels in parts that fit into its cache, in memory
that is used again: to be given new memory takes longer than what is computed in it. Logits are float32 or
float64 and results of the same dtype. Pixels that are not `valid` count nowhere, whatever they hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["entropies", "label_sums", "pairwise_sum", "weighted_entropies"]

PART = 2**19
"""Logits that are worked on at once on a CPU: a few such tensors fit into its cache."""


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
    entropy, sums = _Entropy.apply(logits, entropy_weight, _unless_all(valid))
    return entropy, sums


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, entropy_weight: float | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        entropy, normalizer = (logits.new_empty(logits[:, 0].shape) for _ in range(2))
        weight = sums = None
        if entropy_weight is not None:
            weight, sums = torch.empty_like(entropy), logits.new_zeros(logits.shape[1])
        for part, (log_probs, probs) in _parts(logits, 2):
            inside = None if valid is None else valid[part]
            _softmax(logits[_of(part)], inside, log_probs, probs, normalizer[part])
            # A class of logit −∞ has p log p = 0, where 0 · −∞ would be NaN; exp(−10⁴) is 0.
            found = log_probs.clamp_(min=-1e4).mul_(probs).sum(dim=1).div_(-math.log(logits.shape[1]))
            entropy[part] = found
            if entropy_weight is not None and weight is not None and sums is not None:
                weights = found.mul_(-entropy_weight).exp_()
                weight[part] = weights if inside is None else weights.masked_fill_(~inside, 0)
                sums += torch.bmm(probs.flatten(2), weight[part].flatten(1).unsqueeze(2)).sum(dim=(0, 2))
        ctx.save_for_backward(logits, entropy, normalizer, weight, valid)
        ctx.set_materialize_grads(False)
        return entropy, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_entropy: Tensor | None, of_sums: Tensor | None) -> tuple[Tensor | None, None, None]:
        logits, entropy, normalizer, weight, valid = ctx.saved_tensors
        if of_entropy is None and of_sums is None:
            return None, None, None
        # dH/dz_c = −p_c (log p_c / log C + H) and d(Σ_k g_k w p_k)/dz_c = w p_c (g_c − Σ_k g_k p_k).
        gradient = torch.empty_like(logits)
        for part, (inner, probs) in _parts(logits, 2):
            _softmax_again(logits[_of(part)], None if valid is None else valid[part], inner, probs, normalizer[part])
            inner.clamp_(min=-1e4)
            if of_entropy is None:
                inner.zero_()
            else:
                inner.mul_((of_entropy[part] / -math.log(logits.shape[1])).unsqueeze(1))
                inner.sub_((of_entropy[part] * entropy[part]).unsqueeze(1))
            if of_sums is not None:
                mean = torch.einsum("c,bcn->bn", of_sums, probs.flatten(2)).view_as(entropy[part])
                inner.sub_((mean * weight[part]).unsqueeze(1))
                inner.addcmul_(weight[part].unsqueeze(1), of_sums.view(1, -1, *[1] * (probs.ndim - 2)))
            gradient[_of(part)] = inner.mul_(probs)
        return gradient, None, None


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
    valid = _unless_all(valid)
    if labels is not None and valid is not None:
        labels = labels.masked_fill(~valid, ignore_index)
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
        positive, negative = logits.new_zeros(()), logits.new_zeros(())
        normalizer = logits.new_empty(logits[:, 0].shape)
        for part, (log_probs, probs) in _parts(logits, 2):
            inside = None if valid is None else valid[part]
            _softmax(logits[_of(part)], inside, log_probs, probs, normalizer[part])
            if labels is not None:
                positive += F.nll_loss(log_probs, labels[part].long(), ignore_index=ignore_index, reduction="sum")
            ruled_out = log_probs.copy_(_as_numbers(negatives[_of(part)])).mul_(probs)
            # One logarithm of the product: with Σ p ≤ 1 at most one of its factors is small.
            rest = 1 - ruled_out.sum(dim=1) if pooled else ruled_out.neg_().add_(1)
            rest.clamp_(min=eps)
            logarithms = (rest if pooled else rest.prod(dim=1)).log_()
            negative -= (logarithms if inside is None else logarithms.masked_fill_(~inside, 0)).sum()
        ctx.save_for_backward(logits, normalizer, labels, negatives, valid)
        ctx.pooled, ctx.eps, ctx.ignore_index = pooled, eps, ignore_index
        return positive, negative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_positive: Tensor, of_negative: Tensor) -> tuple[Tensor | None, ...]:
        logits, normalizer, labels, negatives, valid = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part, (probs, slopes, rest, free) in _parts(logits, 4):
            inside = None if valid is None else valid[part]
            _softmax_again(logits[_of(part)], inside, slopes, probs, normalizer[part])
            # With x_c = n_c p_c / (1 − p_c), or n_c p_c / (1 − Σ n p), the gradient is x_c − p_c Σ x.
            slopes.copy_(_as_numbers(negatives[_of(part)])).mul_(probs)
            if ctx.pooled:
                rest, free = rest[:, :1], free[:, :1]
            torch.sub(1, slopes.sum(dim=1, keepdim=True) if ctx.pooled else slopes, out=rest)
            torch.ge(rest, ctx.eps, out=free)  # elsewhere the rest is held
            slopes.mul_(free).div_(rest.clamp_(min=ctx.eps))
            slopes.mul_(of_negative if inside is None else torch.where(inside, of_negative, 0).unsqueeze(1))
            through = slopes.sum(dim=1).neg_()
            if labels is not None:
                known = labels[part] != ctx.ignore_index
                of_labels = torch.where(known, of_positive, 0)
                through += of_labels
                places = torch.where(known, labels[part], 0).long().unsqueeze(1)
                slopes.scatter_add_(1, places, -of_labels.unsqueeze(1))
            gradient[_of(part)] = slopes.addcmul_(probs, through.unsqueeze(1))
        return gradient, None, None, None, None, None, None


def _as_numbers(flags: Tensor) -> Tensor:
    """0 and 1 for false and true, in the same memory: these are faster to copy into floats on a CPU."""
    return flags.view(torch.uint8)


Place = tuple[slice, ...]
"""Which images and rows of a map B×H×W."""


def _parts(logits: Tensor, count: int) -> Iterator[tuple[Place, list[Tensor]]]:
    """Places of all pixels of B×C×… logits, with as many tensors of their size to work in, the same ones each time.

    In parts on a CPU; at once elsewhere, where each part is more launches.
    """
    images, classes, *rest = logits.shape
    if logits.device.type != "cpu" or logits.numel() <= PART or not rest:
        yield (slice(None),), [torch.empty_like(logits, memory_format=torch.contiguous_format) for _ in range(count)]
        return
    per_row = classes * math.prod(rest[1:])
    step = min(rest[0], max(1, PART // per_row))
    work = [logits.new_empty(step * per_row) for _ in range(count)]
    for image in range(images):
        for row in range(0, rest[0], step):
            rows = min(step, rest[0] - row)
            shape = (1, classes, rows, *rest[1:])
            yield (slice(image, image + 1), slice(row, row + rows)), [one[: rows * per_row].view(shape) for one in work]


def _of(part: Place) -> Place:
    """The same of all channels B×C×H×W."""
    return (part[0], slice(None), *part[1:])


def _unless_all(valid: Tensor | None) -> Tensor | None:
    """None where all pixels are valid, which is known without waiting on a CPU alone."""
    return None if valid is not None and valid.device.type == "cpu" and bool(valid.all()) else valid


def _softmax(logits: Tensor, valid: Tensor | None, log_probs: Tensor, probs: Tensor, normalizer: Tensor) -> None:
    """Put log p and p of B×C×… logits where they are to be, and Z of log p = z − Z, with one exponential each.

    All classes are equally likely where pixels do not count, so that nothing they hold can reach a sum or a gradient.
    """
    largest = logits.amax(dim=1, keepdim=True)
    torch.exp(torch.sub(logits, largest, out=log_probs), out=probs)
    sums = probs.sum(dim=1, keepdim=True)
    probs.div_(sums)
    logarithms = sums.log_()
    log_probs.sub_(logarithms)
    normalizer.copy_(largest.add_(logarithms).squeeze(1))
    _equal_outside(valid, log_probs, probs)


def _softmax_again(logits: Tensor, valid: Tensor | None, log_probs: Tensor, probs: Tensor, normalizer: Tensor) -> None:
    """The same, with Z given."""
    torch.exp(torch.sub(logits, normalizer.unsqueeze(1), out=log_probs), out=probs)
    _equal_outside(valid, log_probs, probs)


def _equal_outside(valid: Tensor | None, log_probs: Tensor, probs: Tensor) -> None:
    if valid is not None:
        outside, classes = ~valid.unsqueeze(1), log_probs.shape[1]
        log_probs.masked_fill_(outside, -math.log(classes))
        probs.masked_fill_(outside, 1 / classes)


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
