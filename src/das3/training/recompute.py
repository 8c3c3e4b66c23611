"""Activation checkpointing: a network's blocks are run again in the backward pass instead of keeping what they made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from das3.errors import ModelError
from das3.norms import restored_running_statistics, training_norms

__all__ = ["blocks_of", "recomputed_blocks"]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network, such as the residual blocks of a ResNet or the layers of a transformer.

    They are the innermost modules that a list of modules is made of and that are more than a row of single layers.
    """
    listed = {
        id(element): element
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and len(module) > 1
        for element in module.children()
        if _is_compound(element)
    }
    return [one for one in listed.values() if not any(id(part) in listed for part in one.modules() if part is not one)]


def _is_compound(module: nn.Module) -> bool:
    """Whether a module is run as a whole, and is more than layers in a row, which keep little more than they get."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | torch.jit.ScriptModule):
        return False
    children = list(module.children())
    is_row = isinstance(module, nn.Sequential) and not any(list(child.children()) for child in children)
    return bool(children) and not is_row and any(True for _ in module.parameters())


@contextmanager
def recomputed_blocks(model: nn.Module) -> Iterator[None]:
    """Within, the blocks of a network keep only their inputs for the backward pass, and are run again there.

    Gradients, running statistics and random numbers are those of a usual step.

    Raises:
        ModelError: if the network has no such blocks.

    Source: Chen et al., Training deep nets with sublinear memory cost (2016).
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ModelError(
            f"checkpoint_activations: {type(model).__name__} has no list of blocks that could be run again (its layers "
            "are in no nn.Sequential or nn.ModuleList of larger parts, or it is TorchScript); leave the option out, "
            "or train with a smaller --batch-size or --crop"
        )
    own = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.forward = partial(_run, block, block.forward)
        yield
    finally:
        for block, forward in own:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _run(block: nn.Module, forward: Any, *inputs: Any, **more: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **more)
    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=lambda: (ExitStack(), _second_run(block)), **more
    )


@contextmanager
def _second_run(block: nn.Module) -> Iterator[None]:
    """The first run has moved the running statistics; on a GPU another thread does the second one."""
    with restored_running_statistics(block), training_norms(1):
        yield
