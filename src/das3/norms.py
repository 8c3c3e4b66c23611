"""Batch normalisation under a domain shift: which statistics a network runs on decides half of the outcome.

Two things that a layer's own forward can't do are done from outside, for as long as a context lasts, so that networks
keep their layers and their format. Both see every call of `torch.nn.functional.batch_norm`, that of subclasses with a
forward of their own (timm's `BatchNormAct2d`) and `nn.SyncBatchNorm` included.

Several processes. In training, the statistics of a batch are those of the whole batch, not of each process's part
(`training_norms`); `nn.SyncBatchNorm` does that on GPUs alone. Statistics that are re-estimated are sums over the
images, which the processes share out (`reestimate`).

One value per channel. Behind a global pooling, as in DeepLabV3, PSPNet and UPerNet, a batch of one image has one value
per channel: there is no variance, and PyTorch raises "Expected more than 1 value per channel when training". Normalised
by itself it would be 0, and the branch would say nothing. So:

- In training such a layer runs on its running statistics for that step, and does not move them. They are the target's,
  since stages that train on batches re-estimate them first, and the branch still tells images apart.
- Where statistics are re-estimated the layer does the same on that image. If other batches have more values, its
  statistics are theirs. If none has, they are mean and variance of the values of all images. Of one image alone there
  is no variance either, so the layer keeps the statistics it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from das3.distributed import gather_batch, process_count, sum_over_processes

__all__ = [
    "BatchNormMode",
    "NormStatistics",
    "batch_norms",
    "batch_statistics",
    "held_running_statistics",
    "needs_reestimation",
    "reestimate",
    "restored_running_statistics",
    "running_statistics",
    "set_norm_mode",
    "training_norms",
]

BatchNormMode = Literal["auto", "batch", "target", "frozen"]
"""How a stage runs its batch-norm layers: on each batch's statistics ("batch"), on statistics re-estimated over the
target images before the stage and then held ("target"), or on the ones it was given ("frozen"). A run resolves "auto"
before its first stage (see `das3.selection.bn_statistics`); a stage on its own takes it for "batch". Layers without
running statistics (group and layer norm) are not concerned. Where "batch" starts from, see `needs_reestimation`."""


def needs_reestimation(mode: BatchNormMode, earlier: Sequence[BatchNormMode]) -> bool:
    """Whether statistics are to be re-estimated before a stage in this mode, after stages in the `earlier` modes.

    They are the source's until a stage has run on the target. Training on batches then leaves statistics that fit its
    weights, of augmented crops, and better ones than a new estimate over whole images: see docs/decisions/0008, and
    0010 for stage 1, which augments nothing.
    """
    return mode == "target" or (mode in ("auto", "batch") and all(one == "frozen" for one in earlier))


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """Batch-norm layers that keep running statistics."""
    return (m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)


class NormStatistics(NamedTuple):
    """Mean and variance of each channel of what enters a norm layer: C values each."""

    mean: Tensor
    var: Tensor


def running_statistics(module: nn.Module) -> list[NormStatistics]:
    """Copies of the running statistics of all batch-norm layers, in the order of `batch_norms`."""
    return [NormStatistics(n.running_mean.clone(), n.running_var.clone()) for n in batch_norms(module)]  # type: ignore[union-attr]


def set_norm_mode(module: nn.Module, mode: BatchNormMode) -> None:
    """Put the batch-norm layers of a network that is in train() into `mode`; call it after every train()."""
    for norm in batch_norms(module):
        norm.train(mode in ("auto", "batch"))


@contextmanager
def held_running_statistics(module: nn.Module) -> Iterator[None]:
    """What is run within does not move the running statistics."""
    momenta = [(norm, norm.momentum) for norm in batch_norms(module)]
    for norm, _ in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum


@contextmanager
def restored_running_statistics(module: nn.Module) -> Iterator[None]:
    """Whatever is done to the running statistics within is undone."""
    kept = [(buffer, buffer.clone()) for norm in batch_norms(module) for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


class _BatchNormCalls(TorchFunctionMode):
    """Hands every call of `F.batch_norm` that would normalise by the batch's statistics to `normalize`.

    `nn.SyncBatchNorm` calls it too, for as long as the context lasts: its own way among several processes can't be
    seen, and there is none on a CPU.
    """

    def __enter__(self) -> Self:
        self._forward = nn.SyncBatchNorm.forward
        nn.SyncBatchNorm.forward = _BatchNorm.forward  # type: ignore[method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        nn.SyncBatchNorm.forward = self._forward  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        return self._batch_norm(*args, **kwargs)

    def _batch_norm(
        self,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
        return self.normalize(values, running_mean, running_var, weight, bias, momentum, eps)

    def normalize(
        self,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """The layer's output, B×C×… as `values`; the running statistics are moved in place."""
        raise NotImplementedError


def _values_per_channel(values: Tensor) -> int:
    return values.numel() // max(1, values.shape[1])


class _TrainingNorms(_BatchNormCalls):
    """Statistics of the batch over all processes; running ones where the batch has one value per channel."""

    def normalize(
        self,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        count = _values_per_channel(values) * process_count()
        if count == 1 and running_mean is not None:
            return F.batch_norm(values, running_mean, running_var, weight, bias, False, 0.0, eps)
        if process_count() == 1:
            return F.batch_norm(values, running_mean, running_var, weight, bias, True, momentum, eps)
        normalized, mean, var = _SharedBatchNorm.apply(values, weight, bias, eps)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * (count / max(1, count - 1))).to(running_var.dtype), momentum)
        return normalized  # type: ignore[no-any-return]


class _SharedBatchNorm(torch.autograd.Function):
    """Batch norm by the moments of all processes' values, of which each has equally many per channel.

    Returns the output, and the mean and biased variance, C values each. Its input is kept as it is, as by batch norm.

    Source: Ioffe & Szegedy (ICML 2015) for the gradient; Chan et al. (1979) for combining variances.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = values if values.dtype.itemsize >= 4 else values.float()
        own_var, own_mean = torch.var_mean(wide, dim=_all_but_channels(values), correction=0)
        means, variances = gather_batch(torch.stack([own_mean, own_var])[None]).unbind(1)
        mean = means.mean(dim=0)
        var = (variances + (means - mean) ** 2).mean(dim=0)
        ctx.save_for_backward(values, weight, mean, torch.rsqrt(var + eps))
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(values, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        values, weight, mean, scale = ctx.saved_tensors
        shape = [1, -1, *[1] * (values.ndim - 2)]
        wide = gradient if gradient.dtype.itemsize >= 4 else gradient.float()
        centred = (values - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = wide.sum(_all_but_channels(values)), (wide * centred).sum(_all_but_channels(values))
        count = _values_per_channel(values) * process_count()
        along_bias, along_weight = (
            part.view(shape) / count for part in sum_over_processes(torch.stack([of_bias, of_weight]))
        )
        slope = (scale if weight is None else scale * weight).view(shape)
        through = (slope * (wide - along_bias - centred * along_weight)).to(values.dtype)
        if weight is None:
            return through, None, None, None
        return through, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _all_but_channels(values: Tensor) -> list[int]:
    return [d for d in range(values.ndim) if d != 1]


def training_norms(values_per_batch: int) -> AbstractContextManager[Any]:
    """Within, batch norm in training mode runs as the module says of several processes and of one value per channel.

    Args:
        values_per_batch: samples in this process's batch. One process with several samples needs nothing of it.
    """
    return _TrainingNorms() if process_count() > 1 or values_per_batch == 1 else nullcontext()


class _Collected:
    """What the batches say of one layer: sums of their means and variances, or single values per channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        wide = norm.running_mean.detach().to(_widest(norm.running_mean.device))
        self.norm, self.sums = norm, torch.zeros(2, len(wide), dtype=wide.dtype, device=wide.device)
        self.singles = torch.zeros_like(self.sums)
        self.counts = torch.zeros(2, dtype=wide.dtype, device=wide.device)
        self.origin = wide.clone()  # squares are taken of the distance to it, which loses fewer digits

    def add(self, mean: Tensor, var: Tensor) -> None:
        """Mean and unbiased variance of a batch."""
        self.sums += torch.stack([mean, var])
        self.counts[0] += 1

    def add_single(self, value: Tensor) -> None:
        """The one value per channel of a batch."""
        distance = value.to(self.origin.dtype) - self.origin
        self.singles += torch.stack([distance, distance**2])
        self.counts[1] += 1

    def packed(self) -> Tensor:
        """Everything in one row, to be summed over the processes."""
        return torch.cat([self.sums.flatten(), self.singles.flatten(), self.counts])

    def moments(self, packed: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Mean, variance and number of batches from the sum of all `packed`; None where they say nothing."""
        size = len(self.origin)
        sums, singles = packed[: 4 * size].view(2, 2, size)
        batches, images = (int(count) for count in packed[4 * size :])
        if batches:
            return sums[0] / batches, sums[1] / batches, batches
        if images > 1:
            distance = singles[0] / images
            return self.origin + distance, (singles[1] - images * distance**2).clamp(min=0) / (images - 1), images
        return None


def _widest(device: torch.device) -> torch.dtype:
    """Sums in float64 do not depend on how many processes share the images; MPS has none."""
    return torch.float32 if device.type == "mps" else torch.float64


class _CollectStatistics(_BatchNormCalls):
    """Notes each batch's statistics; running statistics stay as they are."""

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        super().__init__()
        self.collected = {id(norm.running_mean): _Collected(norm) for norm in norms}

    def normalize(
        self,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if running_mean is None or running_var is None:
            return F.batch_norm(values, running_mean, running_var, weight, bias, True, momentum, eps)
        collected = self.collected[id(running_mean)]
        if _values_per_channel(values) == 1:
            collected.add_single(values.flatten())
            return F.batch_norm(values, running_mean, running_var, weight, bias, False, 0.0, eps)
        mean, var = torch.zeros_like(running_mean), torch.zeros_like(running_var)
        # A momentum of 1 leaves the batch's own in them.
        output = F.batch_norm(values, mean, var, weight, bias, True, 1.0, eps)
        collected.add(mean, var)
        return output


@contextmanager
def _collecting(segmenter: nn.Module) -> Iterator[_CollectStatistics]:
    """In evaluation mode but for batch norm, which normalises by each batch and notes its statistics."""
    norms = list(batch_norms(segmenter))
    modes = [(module, module.training) for module in segmenter.modules()]
    counters = [(norm.num_batches_tracked, int(norm.num_batches_tracked or 0)) for norm in norms]
    try:
        segmenter.eval()
        for norm in norms:
            norm.train()
        with _CollectStatistics(norms) as statistics:
            yield statistics
    finally:
        for module, mode in modes:
            module.training = mode
        for counter, before in counters:
            if counter is not None:
                counter.fill_(before)


@contextmanager
def batch_statistics(segmenter: nn.Module) -> Iterator[None]:
    """Within, batch norm normalises by the statistics of each batch, and keeps its running ones; the rest evaluates."""
    with _collecting(segmenter):
        yield


@torch.no_grad()
def reestimate(segmenter: nn.Module, batches: Iterable[Tensor], *, target_weight: float = 1.0) -> None:
    """Replace the batch-norm statistics by their mean over target images.

    Everything but the norm layers runs as in evaluation, so dropout does not disturb the statistics. Layers that the
    network does not call keep theirs. Several processes each bring their share of the batches.

    Args:
        segmenter: called on each batch; a network without batch norm is left alone.
        batches: B×K×H×W images in [0, 1].
        target_weight: in [0, 1]; share of the new statistics, the rest stays with the old.

    Source: BN re-estimation (Li et al., AdaBN, 2016); blending after Schneider et al. (NeurIPS 2020).
    """
    if not any(True for _ in batch_norms(segmenter)):
        return
    with _collecting(segmenter) as statistics:
        for batch in batches:
            segmenter(batch)
    every = list(statistics.collected.values())
    packed = sum_over_processes(torch.cat([one.packed() for one in every]))
    for one, part in zip(every, packed.split([len(one.packed()) for one in every]), strict=True):
        _take_over(one, part, target_weight)


def _take_over(collected: _Collected, packed: Tensor, target_weight: float) -> None:
    found, norm = collected.moments(packed), collected.norm
    if found is None:
        return
    mean, var, batches = found
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), target_weight)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), target_weight)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(batches)
