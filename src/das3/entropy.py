"""Prediction entropy, the measure of (un)certainty that all three stages share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["entropy_of_probs", "normalized_entropy"]


def normalized_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) per pixel, divided by log C.

    Args:
        logits: B×C×…, any floating dtype; computed in float32 or better, since p log p loses small p in half precision.

    Returns:
        B×… in [0, 1], float32 (float64 for float64 input).

    Source: DAS3 (arXiv 2106.11653), H(p) = −Σ_c p_c log p_c / log C.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    log_probs = F.log_softmax(logits, dim=1)
    return -(log_probs.exp() * log_probs).sum(dim=1) / math.log(logits.shape[1])


def entropy_of_probs(probs: Tensor) -> Tensor:
    """The same from probabilities B×C×… (zeros allowed: 0 log 0 = 0); no gradient is meant to pass."""
    return -torch.xlogy(probs, probs).sum(dim=1) / math.log(probs.shape[1])
