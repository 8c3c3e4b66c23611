"""Fully sharded data parallelism (FSDP): each process keeps a part of every weight, and gets the rest when it needs it.

PyTorch's `fully_shard` cannot be undone, so a copy of the network is what is sharded and trained; the network itself
waits on the CPU and gets the weights in the end. State dicts of the segmenter hold whole tensors all the while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from das3.distributed import process_count
from das3.errors import ModelError, RecipeError
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.training.recompute import blocks_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["put_optimizer_state", "sharded_weights", "whole"]


@contextmanager
def sharded_weights(fabric: Fabric, segmenter: Segmenter, stage: Stage[Any]) -> Iterator[None]:
    """Within, every process holds a part of the weights, of their gradients and of what an optimiser keeps of them.

    Blocks of the network, see `das3.training.recompute.blocks_of`, are put together one at a time when they are run,
    and what is in none of them with the network. With one process nothing changes.

    Args:
        fabric: device and processes.
        segmenter: `state_dict` and `load_state_dict` take and give whole tensors, and are for all processes to call.
        stage: that trains it.

    Raises:
        RecipeError: if PyTorch is too old, or the stage keeps networks of its own.
        ModelError: if the network can't be copied or sharded.

    Source: Zhao et al., PyTorch FSDP (VLDB 2023); Rajbhandari et al., ZeRO (SC 2020), stage 3.
    """
    if process_count() == 1:
        yield
        return
    if type(stage).after_step is not Stage.after_step or next(stage.parameters(), None) is not None:
        raise RecipeError(
            f"shard_weights can't be used with stage {stage.name}, which keeps a network of its own; leave it out"
        )
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise RecipeError("shard_weights needs PyTorch 2.6 or newer; install one, or leave the option out") from error
    network = segmenter.model
    try:
        segmenter.model = _sharded(deepcopy(network.cpu()), fabric, fully_shard)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        network.to(fabric.device)
        raise ModelError(
            f"shard_weights: {type(network).__name__} can't be sharded ({' '.join(str(error).split())[:200]}); leave "
            "the option out"
        ) from error
    trained: dict[str, Tensor] | None = None
    try:
        yield
        trained = segmenter.model.state_dict()
    finally:  # after an error the others may be gone, and nobody asks for the weights
        segmenter.model = network
        if trained is not None:
            network.load_state_dict(trained)
        network.to(fabric.device)


def _sharded(network: nn.Module, fabric: Fabric, fully_shard: Callable[..., Any]) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(fabric.device.type, (process_count(),))
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    network.to(fabric.device)  # buffers
    network.register_state_dict_post_hook(_give_whole_tensors)
    network.register_load_state_dict_pre_hook(_take_whole_tensors)
    return network


def _give_whole_tensors(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.update({name: whole(value) for name, value in state.items() if name.startswith(prefix)})


def _take_whole_tensors(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    part: Any
    for part in module.modules():
        if hasattr(part, "reshard"):  # after a pass the weights of the whole are still put together
            part.reshard()
    for name, parameter in module.named_parameters():
        if prefix + name in state:
            state[prefix + name] = _part(state[prefix + name], parameter)


def whole(state: Any) -> Any:
    """Tensors in any containers, those that processes hold in parts put together; all processes have to call it."""
    if isinstance(state, Tensor):
        return state.full_tensor() if hasattr(state, "full_tensor") else state
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(whole, state))
    return state


def _part(value: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, where `like` is held in parts."""
    if not hasattr(like, "full_tensor") or hasattr(value, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def put_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state of whole tensors into an optimiser whose parameters may be held in parts."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = optimizer.state.get(parameter, {})
            kept |= {
                key: _part(value, parameter)
                for key, value in kept.items()
                if isinstance(value, Tensor) and value.shape == parameter.shape
            }
