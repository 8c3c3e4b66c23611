"""Second networks that a stage carries along: a frozen copy, or one that follows the network being trained."""

from __future__ import annotations

import copy

import torch

from das3.segmenter import Segmenter

__all__ = ["follow", "frozen_copy"]


def frozen_copy(segmenter: Segmenter) -> Segmenter:
    """A copy in evaluation mode that nothing trains."""
    return copy.deepcopy(segmenter).eval().requires_grad_(False)


@torch.no_grad()
def follow(teacher: Segmenter, student: Segmenter, keep: float) -> None:
    """teacher ← keep · teacher + (1 − keep) · student; norm statistics are taken over.

    Args:
        teacher, student: of the same architecture; the teacher is changed.
        keep: in [0, 1].

    Source: Tarvainen & Valpola (NeurIPS 2017), mean teacher.
    """
    for kept, now in zip(teacher.parameters(), student.parameters(), strict=True):
        kept.lerp_(now, 1 - keep)
    for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
        old.copy_(new)
