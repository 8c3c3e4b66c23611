"""Means over the pixels that count."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_mean"]


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the values where `valid`, a boolean tensor of their shape, is true; 0 where it nowhere is."""
    # where(), not a product: an invalid pixel's NaN must not reach the sum.
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)
