"""Calling any network: in evaluation mode, and with the logits found in whatever it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from das3.errors import ModelError
from das3.segmenter.mask_classification import mask_queries, semantic_logits

__all__ = ["evaluating", "main_logits"]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, each layer put back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:  # setting it is slow, and small images are predicted by the thousand
                module.training = mode


def main_logits(output: Any, key: str | int | None = None) -> Tensor:
    """Take the main B×C×h×w logits out of whatever a network returns.

    Args:
        output: a tensor, a mapping (`out`, `logits`), an object with such an attribute, a tuple with auxiliary
            heads, or queries' classes and masks (see `das3.segmenter.mask_classification`).
        key: which entry is the main one, where the network's convention is not the usual one.

    Raises:
        ModelError: if no 4-dimensional floating tensor is found there.
    """
    found = output
    if key is None and (queries := mask_queries(output)) is not None:
        found = semantic_logits(*queries)
    elif isinstance(output, Mapping):
        names = [key] if key is not None else [n for n in ("out", "logits") if n in output] or list(output)
        found = output.get(names[0]) if names else None
    elif isinstance(output, Sequence):
        found = output[int(key or 0)] if len(output) > int(key or 0) else None
    elif not isinstance(output, Tensor):
        names = [str(key)] if key is not None else ["logits", "out"]
        found = next((getattr(output, n) for n in names if hasattr(output, n)), None)
    if not isinstance(found, Tensor) or found.ndim != 4 or not found.is_floating_point() or _is_empty(found):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"the network returned {type(output).__name__} in which no B×C×h×w logits were found (got {what}); "
            "name the entry that holds them with --output-key"
        )
    return found


def _is_empty(logits: Tensor) -> bool:
    """Without values, or not one for each place."""
    return logits.numel() == 0 or logits.is_meta or logits.layout != torch.strided
