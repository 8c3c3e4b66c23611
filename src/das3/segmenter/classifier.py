"""Finding g: the last layers of a network, which make its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from das3.errors import ModelError
from das3.segmenter.calling import evaluating, main_logits

__all__ = ["find_classifier"]

# Autograd nodes that only reshape or cast a weight on its way into the operation that uses it.
_PASS_THROUGH = ("TBackward", "TransposeBackward", "PermuteBackward", "ViewBackward", "ToCopyBackward", "UnsafeView")


def _weight_behind(node: Any) -> Tensor | None:
    while node is not None:
        if hasattr(node, "variable"):
            return node.variable  # type: ignore[no-any-return]
        if not node.name().startswith(_PASS_THROUGH) or len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
    return None


def _last_parameters(logits: Tensor) -> list[Tensor]:
    """Walk the graph back from the logits; stop each path at the first operation that uses parameters."""
    found: dict[int, Tensor] = {}
    stack, seen = [logits.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [n for n, _ in node.next_functions]
        weights = [w for w in map(_weight_behind, inputs) if w is not None]
        if weights:
            found.update((id(w), w) for w in weights)
        else:
            stack.extend(inputs)
    return list(found.values())


def find_classifier(model: nn.Module, example: Tensor, output_key: str | int | None = None) -> tuple[str, ...]:
    """Find g: the last layers that produce the logits, by walking the autograd graph back from the output.

    This follows what the network computes, not how its author named it, so auxiliary heads are left out and several
    layers whose outputs are summed (DeepLabV2's four branches, LR-ASPP's two) are all found.

    Args:
        model: any network, called on `example`.
        example: 1×3×H×W network input.
        output_key: see `main_logits`.

    Returns:
        Module names in the order of `named_modules`, e.g. ("decode_head.classifier",).

    Raises:
        ModelError: if the last layers with parameters do not each produce the C logits (a learned temperature, a
            mask-classification head, …): which layer is g is then for the user to say. Also if the network returns
            probabilities.
    """
    required = {p: p.requires_grad for p in model.parameters()}
    try:
        model.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            logits = main_logits(model(example), output_key)
    finally:
        for p, needed in required.items():
            p.requires_grad_(needed)
    _refuse_probabilities(logits)
    last = {id(p) for p in _last_parameters(logits)}
    channels = logits.shape[1]
    owners = {
        name: module
        for name, module in model.named_modules()
        if any(id(p) in last for p in module.parameters(recurse=False))
    }
    wrong = {n: m for n, m in owners.items() if not n or _out_channels(m) != channels}
    if not owners or wrong:
        layers = ", ".join(f"{n or '(root)'}: {type(m).__name__}" for n, m in wrong.items()) or "no layer at all"
        raise ModelError(
            f"can't tell which layer is the classifier: the network returns {channels} channels, but the last layers "
            f"with parameters are {layers}; name it with --classifier, one of: {_candidates(model, channels)}"
        )
    return tuple(owners)


def _refuse_probabilities(logits: Tensor) -> None:
    node = logits.grad_fn
    while node is not None and len(node.next_functions) == 1:  # resizing, slicing and casting
        if node.name().startswith(("Softmax", "Sigmoid")):
            raise ModelError(
                f"the network returns probabilities (its last step is a {node.name()[:7].lower()}); das3 needs the "
                "logits before it: build the network without that activation"
            )
        node = node.next_functions[0][0]


def _out_channels(module: nn.Module) -> int | None:
    for attribute in ("out_channels", "out_features"):
        if isinstance(getattr(module, attribute, None), int):
            return int(getattr(module, attribute))
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim >= 2 else None


def _candidates(model: nn.Module, channels: int) -> str:
    names = [n for n, m in model.named_modules() if n and _out_channels(m) == channels]
    return ", ".join(names) or f"(no layer has {channels} outputs; is the number of classes right?)"
