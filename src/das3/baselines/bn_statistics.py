"""What batch-norm layers remember of the features they were trained on, and how far other features are from it.

Mean and variance of each channel are all that a model carries of its source's features. Every network with batch norm
carries them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from das3.norms import batch_norms

__all__ = ["BatchNormStatistics", "moments_loss", "running_statistics", "recorded_batch_statistics"]

_EPS = 1e-5
"""Added to variances, as batch norm does: what a channel that is always 0 does below this is of no account."""


class BatchNormStatistics(NamedTuple):
    """Mean and variance of each channel of what enters a norm layer: D values each, float32 at least."""

    mean: Tensor
    var: Tensor


def running_statistics(network: nn.Module) -> list[BatchNormStatistics]:
    """Copies of the running statistics of all batch-norm layers, in the order of `das3.norms.batch_norms`."""
    layers = batch_norms(network)
    return [BatchNormStatistics(n.running_mean.clone(), n.running_var.clone()) for n in layers]  # type: ignore[union-attr]


@contextmanager
def recorded_batch_statistics(network: nn.Module) -> Iterator[dict[int, BatchNormStatistics]]:
    """Measure what enters each batch-norm layer when the network is called within; gradients pass through.

    Yields:
        Number of the layer, as in `running_statistics`, → moments over batch and places; a layer that is not called
        is not in it. Of one that is called repeatedly, the last call counts.
    """
    found: dict[int, BatchNormStatistics] = {}

    def watch(number: int, layer: nn.Module) -> Any:
        def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[number] = BatchNormStatistics(*_BatchMoments.apply(inputs[0]))

        return layer.register_forward_pre_hook(measure)

    hooks = [watch(number, layer) for number, layer in enumerate(batch_norms(network))]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class _BatchMoments(torch.autograd.Function):
    """Mean and variance per channel. It keeps its input as it is, which batch norm does too: no memory is added.

    Autograd alone would keep a float32 copy of every half-precision input.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        wide = values if values.dtype.itemsize >= 4 else values.float()
        var, mean = torch.var_mean(wide, dim=[d for d in range(values.ndim) if d != 1], correction=0)
        ctx.save_for_backward(values, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> Tensor:
        values, mean = ctx.saved_tensors
        shape = [1, -1, *[1] * (values.ndim - 2)]
        along_mean, along_var, mean = (t.view(shape) for t in (of_mean, of_var, mean))
        count = values.numel() // values.shape[1]
        gradient: Tensor = (along_mean + 2 * along_var * (values - mean)) / count
        return gradient.to(values.dtype)


def moments_loss(now: Mapping[int, BatchNormStatistics], then: Sequence[BatchNormStatistics]) -> Tensor:
    """Bhattacharyya distance of normal distributions with these moments, mean over a layer's channels and over layers.

    ¼ (μ − μ_s)² / (σ² + σ_s²) + ½ log((σ² + σ_s²) / (2 σ σ_s)) is a fourth of the Kullback-Leibler divergence where
    both are close, and grows but slowly where they are not, so that no channel outweighs all others.

    Args:
        now: μ and σ² by layer, from `recorded_batch_statistics`.
        then: μ_s and σ_s², from `running_statistics` of the same network as it came from the source.

    Returns:
        Scalar ≥ 0.

    Source: Ishii & Sugiyama (arXiv 2101.10842), who match classifiers' features by the Kullback-Leibler divergence.
    """
    layers = []
    for number, (mean, var) in now.items():
        source = then[number]
        var, var_s = var + _EPS, source.var + _EPS
        spread = torch.log((var + var_s) / (2 * (var * var_s).sqrt())) / 2
        layers.append(((mean - source.mean) ** 2 / (var + var_s) / 4 + spread).mean())
    return torch.stack(layers).mean()
