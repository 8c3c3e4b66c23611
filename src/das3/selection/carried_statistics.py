"""Norm statistics that follow the weights: what was chosen before training stays chosen while the weights move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from das3.norms import NormStatistics, batch_norms

__all__ = ["carry_statistics", "put_statistics"]

_EPS = 1e-8


@torch.no_grad()
def put_statistics(module: nn.Module, statistics: Sequence[NormStatistics]) -> None:
    """Put a network on other running statistics, one for each of its batch-norm layers."""
    for norm, wanted in zip(batch_norms(module), statistics, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(wanted.mean)
        norm.running_var.copy_(wanted.var)


@torch.no_grad()
def carry_statistics(module: nn.Module, chosen: Sequence[NormStatistics], before: Sequence[NormStatistics]) -> None:
    """Put a network that was trained on the target's statistics back on those chosen, moved as far as its weights did.

    mean ← chosen mean + (target's mean now − target's mean before), var ← chosen var · target's var now / before.
    Statistics that are merely held while weights train no longer fit them, see docs/decisions/0020.

    Args:
        module: trained; its running statistics are the target's, under the weights that it has now.
        chosen: what it is to run on: statistics under the weights that entered, the source's or a blend.
        before: the target's statistics under the weights that entered.

    Source: ours.
    """
    for norm, wanted, old in zip(batch_norms(module), chosen, before, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.add_(wanted.mean - old.mean)
        norm.running_var.mul_(wanted.var / old.var.clamp(min=_EPS))
