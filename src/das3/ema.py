"""Averages of a network's weights over time and between two networks; teachers that are updated from a student."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["ExponentialMovingAverage", "copy_weights", "ema_update", "frozen_copy", "interpolate_weights"]


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _lerp(values: Mapping[str, Tensor], towards: Mapping[str, Tensor], share: float) -> None:
    """Move `values` by a share of the way, in one launch for all tensors of a kind; counters are copied."""
    moved, copied = ([name for name, value in towards.items() if _is_float(value) == kind] for kind in (True, False))
    if moved:
        torch._foreach_lerp_([values[name] for name in moved], [towards[name] for name in moved], share)
    if copied:
        torch._foreach_copy_([values[name] for name in copied], [towards[name] for name in copied])


def _is_float(value: Tensor) -> bool:
    return value.dtype.is_floating_point


class _LiveValues:
    """`state_dict` of a network after every step: where the tensors are is looked up once, as that takes milliseconds.

    The tensors themselves are looked up every time, since a network may put new ones in their place.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, state = network, network.state_dict()
        stores = {
            f"{path}.{name}" if path else name: (store, name)
            for path, module in network.named_modules(remove_duplicate=False)
            for store in (module._parameters, module._buffers)
            for name in store
        }
        self.places = {name: stores[name] for name, value in state.items() if _is_stored(value, stores.get(name))}
        self.is_plain = len(self.places) == len(state)

    def __call__(self) -> Mapping[str, Tensor]:
        if not self.is_plain:
            return self.network.state_dict()
        return {name: store[key] for name, (store, key) in self.places.items()}


def _is_stored(value: Tensor, place: tuple[dict[str, Any], str] | None) -> bool:
    """Whether a value of a state dict is what a module holds there: networks may make something else of it."""
    stored = place[0][place[1]] if place else None
    if type(value) is not Tensor or not (type(stored) is Tensor or type(stored) is nn.Parameter):
        return False
    return value.data_ptr() == stored.data_ptr() and value.shape == stored.shape


class ExponentialMovingAverage:
    """Exponential moving average of the parameters and buffers of a network.

    The first steps are averaged evenly, so that the initial weights do not dominate.

    Args:
        network: its present weights are the initial value.
        decay: in [0, 1); the average spans about 1 / (1 − decay) steps.

    Source: Polyak & Juditsky (1992); as an exponential average, Tarvainen & Valpola (NeurIPS 2017).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live = _LiveValues(network)
        self.values = {name: value.clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update with the weights of one more step."""
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)
        if self._live.network is not network:
            self._live = _LiveValues(network)
        _lerp(self.values, self._live(), share)

    def copy_to(self, network: nn.Module) -> None:
        """Copy the average into the network."""
        network.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Any]:
        """State for `load_state_dict`."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.steps = state["steps"]
        values: dict[str, Tensor] = state["values"]
        for name, value in values.items():
            self.values[name].copy_(value)


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters and buffers, for `interpolate_weights`."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def interpolate_weights(network: nn.Module, incoming: Mapping[str, Tensor], source_weight: float) -> None:
    """weights ← w · incoming + (1 − w) · weights, norm statistics likewise; counters are unchanged.

    Args:
        network: trained from `incoming`; changed.
        incoming: its weights before that, see `copy_weights`.
        source_weight: w in [0, 1].

    Source: WiSE-FT (Wortsman et al., CVPR 2022), for models that are fine-tuned: interpolation keeps what
    both the original and the fine-tuned weights do well.
    """
    for name, value in network.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(incoming[name], source_weight)


def frozen_copy(network: ModuleT) -> ModuleT:
    """A frozen copy in evaluation mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher ← decay · teacher + (1 − decay) · student; norm statistics are copied.

    Args:
        teacher, student: of the same architecture; the teacher is changed.
        decay: in [0, 1].

    Source: Tarvainen & Valpola (NeurIPS 2017), mean teacher.
    """
    _lerp(dict(teacher.named_parameters()), dict(student.named_parameters()), 1 - decay)
    for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
        old.copy_(new)
