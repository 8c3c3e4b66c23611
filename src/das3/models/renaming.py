"""Renaming the keys of a state dict, and what a converted checkpoint is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from das3.models.weights import Weights
from das3.segmenter import Preprocess

__all__ = ["MMSEG", "Plan", "Rules", "Tensors", "count", "metadata", "renamed"]

Tensors = dict[str, Tensor]
Rules = Sequence[tuple[str, str]]

MMSEG = Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), input_max=255)
"""Images as mmsegmentation's configs normalise them."""


@dataclass(frozen=True)
class Plan:
    """What a checkpoint turns into.

    Attributes:
        network: one of das3's own, by name.
        args: of its builder.
        tensors: its weights.
        preprocess: how the codebase feeds images.
        align_corners: how it upsamples logits.
    """

    network: str
    args: Mapping[str, Any]
    tensors: Tensors
    preprocess: Preprocess
    align_corners: bool


def renamed(tensors: Tensors, rules: Rules) -> Tensors:
    """Rename keys by the first rule whose pattern they begin with; an empty replacement drops them.

    Args:
        tensors: by their names.
        rules: regular expression for the beginning of a name, and what takes its place.
    """
    result = {}
    for name, tensor in tensors.items():
        match, replacement = next(((m, r) for p, r in rules if (m := re.match(p, name))), (None, ""))
        if match is None:
            result[name] = tensor
        elif replacement:
            result[match.expand(replacement) + name[match.end() :]] = tensor
    return result


def count(tensors: Tensors, pattern: str) -> int:
    """How many values the only group of `pattern` takes among the names."""
    return len({m[1] for name in tensors if (m := re.match(pattern, name))})


def metadata(weights: Weights) -> Mapping[str, Any]:
    """What mmsegmentation writes beside the weights: its config and the class names."""
    meta = weights.rest.get("meta")
    return meta if isinstance(meta, Mapping) else {}
