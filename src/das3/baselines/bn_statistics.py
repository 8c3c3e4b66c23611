"""Statistics that batch-norm layers store of the source's features, and those of other features.

Mean and variance of each channel are all that a model carries of its source's features. Every network with batch norm
carries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from das3.distributed import average_over_processes, process_count
from das3.norms import NormStatistics, batch_norms

__all__ = ["recorded_batch_statistics"]


@contextmanager
def recorded_batch_statistics(network: nn.Module) -> Iterator[dict[int, NormStatistics]]:
    """Measure what enters each batch-norm layer when the network is called within; gradients pass through.

    Yields:
        Number of the layer, as in `das3.norms.running_statistics`, → moments over batch and places; a layer that is
        not called is not in it. Of one that is called repeatedly, the last call counts.
    """
    found: dict[int, NormStatistics] = {}

    def watch(number: int, layer: nn.Module) -> Any:
        def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[number] = _over_processes(*_BatchMoments.apply(inputs[0]))

        return layer.register_forward_pre_hook(measure)

    hooks = [watch(number, layer) for number, layer in enumerate(batch_norms(network))]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _over_processes(mean: Tensor, var: Tensor) -> NormStatistics:
    """Moments of the whole batch from those of the processes' equal parts of it."""
    if process_count() == 1:
        return NormStatistics(mean, var)
    whole = average_over_processes(mean)
    return NormStatistics(whole, average_over_processes(var + (mean - whole) ** 2))


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
