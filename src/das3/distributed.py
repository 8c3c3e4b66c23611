"""One run on several processes: sums, means and batches over all of them; with one process everything is local.

A loss that is a mean over pixels has to be divided by the number of pixels of the whole batch. A mean of the processes'
means is another number as soon as one process has fewer valid pixels than another. So losses are computed over all
processes (`mean_over_processes`), each process has the same loss, and the loop averages the gradients.

The rule behind it: every process calls the same collectives in the same order, whatever its data are. No branch around
one may depend on the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from das3.errors import Das3Error

if TYPE_CHECKING:
    pass

__all__ = [
    "average_gradients",
    "average_over_processes",
    "from_first_process",
    "gather_batch",
    "is_first_process",
    "mean_over_processes",
    "on_first_process",
    "own_part",
    "process_count",
    "process_rank",
    "spare_cores",
    "sum_over_processes",
    "wait_for_all",
]

T = TypeVar("T")

GRADIENT_BUCKET = 2**25
"""About how many values of gradients are sent at once."""


def process_count() -> int:
    """How many processes work on this run; 1 where nothing was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def spare_cores(device: torch.device) -> int:
    """Cores that this process has for reading images, at most 8: none on a CPU, which computes on all of them."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores // process_count() - 1))


def is_first_process() -> bool:
    """Whether this is process 0, the one that writes."""
    return process_rank() == 0


class _Sum(torch.autograd.Function):
    """All-reduce. Every process's loss depends on the sum, so the gradients of all losses are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of a tensor of one shape over the processes, with gradient.

    Gradients are those of the mean of the processes' losses once the loop has averaged them, see `average_gradients`.
    """
    return values if process_count() == 1 else _Sum.apply(values)


def average_over_processes(values: Tensor) -> Tensor:
    """Mean of a tensor over the processes, with gradient: of means over equally many values the mean over all."""
    return values if process_count() == 1 else sum_over_processes(values) / process_count()


def mean_over_processes(total: Tensor, count: Tensor | int) -> Tensor:
    """Σ total / Σ count over all processes, 0 where nothing was counted; one collective.

    Args:
        total: this process's sum, of any shape.
        count: how many values it is of.
    """
    count = torch.as_tensor(count, device=total.device)
    if process_count() == 1:
        return total / count.clamp(min=1)
    # float64: a float32 can't count the pixels of a large batch.
    both = sum_over_processes(torch.cat([total.double().reshape(-1), count.detach().double().reshape(1)]))
    mean = both[:-1].reshape(total.shape) / both[-1].detach().clamp(min=1)
    return mean.to(total.dtype if total.is_floating_point() else torch.get_default_dtype())


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension; the gradient of a part is the sum of what all losses say of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.detach().contiguous()
        parts = [torch.empty_like(values) for _ in range(process_count())]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own_part(total)


def gather_batch(values: Tensor) -> Tensor:
    """The whole batch from the processes' equal parts of it, in the order that one process has; with gradient."""
    if process_count() == 1:
        return values
    if values.dtype == torch.bool:
        return gather_batch(values.to(torch.uint8)).bool()
    return _Gather.apply(values)  # type: ignore[no-any-return]


def own_part(batch: Tensor) -> Tensor:
    """This process's part of a whole batch."""
    size = len(batch) // process_count()
    return batch[process_rank() * size :][:size]


def from_first_process(values: Tensor) -> Tensor:
    """Process 0's value of a tensor, e.g. of something drawn at random, on all of them."""
    if process_count() == 1:
        return values
    # Of the backends only gloo takes tensors on the CPU, which is where things are drawn.
    found: list[Any] = [values.cpu()]
    dist.broadcast_object_list(found, 0)
    return found[0].to(values.device)  # type: ignore[no-any-return]


def on_first_process(work: Callable[[], T]) -> T:
    """Let process 0 do something while the others wait; its result, or its error, is everyone's.

    Raises:
        Das3Error: what `work` raised; on the other processes it is marked as told, so that it is printed once.
    """
    if process_count() == 1:
        return work()
    outcome: list[Any] = [None, None]
    caught: Das3Error | None = None
    if is_first_process():
        try:
            outcome[0] = work()
        except Das3Error as error:
            caught, outcome[1] = error, (type(error), str(error))
    dist.broadcast_object_list(outcome, 0)
    if caught is not None:
        raise caught
    if outcome[1] is not None:
        kind, message = outcome[1]
        told: Das3Error = kind(message)
        told.is_told = True
        raise told
    return outcome[0]  # type: ignore[no-any-return]


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if process_count() > 1:
        dist.barrier()


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace the gradients by their mean over the processes, a few large sums at a time.

    Parameters that are held in parts have had theirs averaged, see `das3.training.sharding`. Those without a gradient
    keep none, as with one process. Which these are is the network's and the loss's
    affair and so is the same on every process.
    """
    if process_count() == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None or hasattr(parameter, "full_tensor"):
            continue
        full = sum(g.numel() for g in bucket) + parameter.grad.numel() > GRADIENT_BUCKET
        if bucket and (full or bucket[0].dtype != parameter.grad.dtype):
            _average(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _average(bucket)


def _average(gradients: list[Tensor]) -> None:
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    parts = (flat / process_count()).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
