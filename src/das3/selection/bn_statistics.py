"""Choose the batch-norm statistics a model runs on: the source's, those of the target images, or a blend of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from das3.norms import NormStatistics, batch_norms, running_statistics
from das3.selection.signals import measure_color_consistency
from das3.stages.context import StageContext

__all__ = ["StatisticsChoice", "appearance_shift", "best_weight", "choose_bn_statistics", "sample_batches"]

_EPS = 1e-8

TARGET_WEIGHTS = (0.0, 0.5, 1.0)
"""Shares of the target's statistics that are tried,"""
STEP_BESIDE = 0.25
"""and how far below and above the best of them, unless that is the source's: docs/decisions/0035."""
MIN_CONSISTENCY_GAIN = 0.03
"""Statistics other than the source's have to make the model this much more consistent: where they are better by 5 mIoU
or more, the gain was 0.06 to 0.11, elsewhere at most 0.027 (docs/decisions/0020)."""
MIN_APPEARANCE_SHIFT = 0.025
"""Where the first layers' statistics are this far apart, see `appearance_shift`, images look unlike the source's: it is
0.03 to 0.07 by night, under haze or inverted, and at most 0.015 on the same or a similar place by day."""
MAX_DISAGREEMENT = 1.125
"""Then the model may disagree with itself this many times as much under the target's statistics, disagreement being 1 −
consistency: where they are better it was up to 1.09 times, where they are worse 1.16 to 1.47 (docs/decisions/0021)."""
FIRST_LAYERS = 5
"""Layers that say how images look; later ones say what they show, which re-estimation should not undo."""
MIN_IMAGES_FOR_STATISTICS = 4
"""Statistics of fewer images are of these images, not of the target; they are not tried."""
MAX_IMAGES_FOR_SIGNALS = 32
"""About how many images signals are measured on."""


@dataclass(frozen=True)
class StatisticsChoice:
    """Which statistics were chosen, and why.

    Attributes:
        target_weight: share of the target's statistics, 0 for the source's, in [0, 1].
        consistency: by target weight, the mean IoU of the model with itself in another light or colour.
        reason: in words.
        source, target: the statistics themselves, of every batch-norm layer; empty if none was tried.
    """

    target_weight: float
    reason: str
    consistency: dict[float, float] = field(default_factory=dict)
    source: Sequence[NormStatistics] = field(default=(), repr=False)
    target: Sequence[NormStatistics] = field(default=(), repr=False)


def sample_batches(context: StageContext, images: int = MAX_IMAGES_FOR_SIGNALS) -> list[Tensor]:
    """Some target images, evenly spread, as B×3×H×W batches on the device, a size at a time; always the same ones."""
    sizes = context.images.sizes()
    chosen = range(0, len(sizes), max(1, -(-len(sizes) // images)))
    return list(context.batches(context.at_once(context.groups_of(sorted(chosen, key=lambda i: sizes[i])))))


@torch.no_grad()
def choose_bn_statistics(context: StageContext, batches: Sequence[Tensor]) -> StatisticsChoice:
    """Put the model on the statistics under which it is most consistent, the source's unless others are clearly better.

    The consistency of a model that nothing has trained on the target tells the better statistics most often; entropy
    and mutual information improve where the model gets worse. See docs/decisions/0020.

    Args:
        context: with the model as it came in; its statistics are changed.
        batches: of images to measure on, see `sample_batches`.
    """
    layers = list(batch_norms(context.segmenter))
    if not layers:
        return StatisticsChoice(0.0, "the network has no batch-norm statistics")
    if _came_frozen(context.segmenter, layers):
        return StatisticsChoice(0.0, "the network's batch-norm layers came frozen")
    if len(context.images) < MIN_IMAGES_FOR_STATISTICS:
        count = len(context.images)
        few = f"{count} image{'s are' if count > 1 else ' is'} too few to estimate statistics on"
        return StatisticsChoice(0.0, few)
    source = running_statistics(context.segmenter)
    context.reestimate_bn()
    target = running_statistics(context.segmenter)
    shift = appearance_shift(source, target)

    def consistency_at(weight: float) -> float:
        _set_blend(layers, source, target, weight)
        with context.fabric.autocast():
            return measure_color_consistency(context.segmenter, batches, context.rgb)

    consistency = consistency_by_weight(consistency_at)
    best = best_weight(consistency, shift)
    _set_blend(layers, source, target, best)
    return StatisticsChoice(best, _in_words(best, consistency, shift), consistency, source, target)


def consistency_by_weight(consistency_at: Callable[[float], float]) -> dict[float, float]:
    """Consistency at `TARGET_WEIGHTS` and on both sides of the best of them, by target weight in rising order.

    Args:
        consistency_at: target weight in [0, 1] → consistency.
    """
    found = {weight: consistency_at(weight) for weight in TARGET_WEIGHTS}
    best = max(found, key=lambda weight: found[weight])
    beside = (best - STEP_BESIDE, best + STEP_BESIDE) if best else ()
    found |= {weight: consistency_at(weight) for weight in beside if weight < 1}
    return dict(sorted(found.items()))


def best_weight(consistency: Mapping[float, float], shift: float) -> float:
    """The target weight that is clearly the most consistent; else 1 where images look unlike the source's; else 0.

    Args:
        consistency: by target weight, 0 and 1 among them.
        shift: see `appearance_shift`.
    """
    best = max(consistency, key=lambda weight: consistency[weight])
    if consistency[best] >= consistency[0.0] + MIN_CONSISTENCY_GAIN:
        return best
    return float(shift >= MIN_APPEARANCE_SHIFT and 1 - consistency[1.0] <= MAX_DISAGREEMENT * (1 - consistency[0.0]))


def appearance_shift(source: Sequence[NormStatistics], target: Sequence[NormStatistics]) -> float:
    """How far the first layers' target statistics are from the source's: 0 if they are equal.

    Of each channel the squared 2-Wasserstein distance of the two normal distributions, over the product of their
    standard deviations; the median over the channels of a layer, then the mean over the layers.

    Args:
        source, target: of every batch-norm layer, in the network's order.

    Source: Schneider et al. (NeurIPS 2020), who predict a model's error by that distance.
    """
    distances = []
    for old, new in zip(source[:FIRST_LAYERS], target[:FIRST_LAYERS], strict=True):
        (mean, var), (new_mean, new_var) = ((one.mean.cpu().double(), one.var.cpu().double()) for one in (old, new))
        stds = var.clamp(min=_EPS).sqrt(), new_var.clamp(min=_EPS).sqrt()
        squared = (mean - new_mean) ** 2 + (stds[0] - stds[1]) ** 2
        distances.append((squared / (stds[0] * stds[1])).median())
    return float(torch.stack(distances).mean())


def _in_words(best: float, consistency: dict[float, float], shift: float) -> str:
    names = {0.0: "the source's statistics", 1.0: "statistics re-estimated on the target images"}
    name = names.get(best, f"a blend of source and target statistics ({best:.0%} target)")
    shown = ", ".join(f"{consistency[w]:.3f} with {w:.0%} target" for w in consistency)
    return (
        f"{name}: agreement of the model with itself in another light or colour is {shown}; the first layers' "
        f"statistics are {shift:.3f} apart (images that look like the source's: up to 0.015)"
    )


def _came_frozen(segmenter: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether the norm layers' scales and shifts don't train although other parameters do, as in Caffe's networks."""
    of_layers = [p for layer in layers for p in layer.parameters(recurse=False)]
    frozen = bool(of_layers) and not any(p.requires_grad for p in of_layers)
    return frozen and any(p.requires_grad for p in segmenter.parameters())


def _set_blend(
    layers: Sequence[nn.Module],
    source: Sequence[NormStatistics],
    target: Sequence[NormStatistics],
    weight: float,
) -> None:
    for layer, (mean, var), (new_mean, new_var) in zip(layers, source, target, strict=True):
        layer.running_mean.copy_(mean.lerp(new_mean, weight))  # type: ignore[operator]
        layer.running_var.copy_(var.lerp(new_var, weight))  # type: ignore[operator]
