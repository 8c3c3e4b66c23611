"""Batch normalisation under a domain shift: which statistics a network runs on decides half of the outcome."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "BatchNormMode",
    "batch_norms",
    "held_running_statistics",
    "needs_reestimation",
    "reestimate",
    "restored_running_statistics",
    "set_norm_mode",
]

BatchNormMode = Literal["batch", "target", "frozen"]
"""How a stage runs its batch-norm layers: on each batch's statistics ("batch"), on statistics re-estimated over the
target images before the stage and then held ("target"), or on the ones it was given ("frozen"). Layers without running
statistics (group and layer norm) are not concerned. Where "batch" starts from, see `needs_reestimation`."""


def needs_reestimation(mode: BatchNormMode, earlier: Sequence[BatchNormMode]) -> bool:
    """Whether statistics are to be re-estimated before a stage in this mode, after stages in the `earlier` modes.

    They are the source's until a stage has run on the target. Training on batches then leaves statistics that fit its
    weights, of augmented crops, and better ones than a new estimate over whole images: see docs/decisions/0008, and
    0010 for stage 1, which augments nothing.
    """
    return mode == "target" or (mode == "batch" and all(one == "frozen" for one in earlier))


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """Batch-norm layers that keep running statistics."""
    return (m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)


def set_norm_mode(module: nn.Module, mode: BatchNormMode) -> None:
    """Put the batch-norm layers of a network that is in train() into `mode`; call it after every train()."""
    for norm in batch_norms(module):
        norm.train(mode == "batch")


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


@torch.no_grad()
def reestimate(segmenter: nn.Module, batches: Iterable[Tensor], *, target_weight: float = 1.0) -> None:
    """Replace the batch-norm statistics by their mean over target images.

    Everything but the norm layers runs as in evaluation, so dropout does not disturb the statistics.

    Args:
        segmenter: called on each batch; a network without batch norm is left alone.
        batches: B×3×H×W images in [0, 1].
        target_weight: in [0, 1]; share of the new statistics, the rest stays with the old.

    Source: BN re-estimation (Li et al., AdaBN, 2016); blending after Schneider et al. (NeurIPS 2020).
    """
    norms = list(batch_norms(segmenter))
    if not norms:
        return
    was_training = segmenter.training
    kept = [(n, n.momentum, n.running_mean.clone(), n.running_var.clone()) for n in norms]  # type: ignore[union-attr]
    segmenter.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    for batch in batches:
        segmenter(batch)
    for norm, momentum, mean, var in kept:
        norm.momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.lerp_(mean, 1 - target_weight)
        norm.running_var.lerp_(var, 1 - target_weight)
    segmenter.train(was_training)
