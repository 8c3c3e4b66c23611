"""Averages of a network's weights: what a stage hands on is steadier than the weights of its last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ExponentialMovingAverage", "interpolate_weights", "copy_weights"]


class ExponentialMovingAverage:
    """Exponential moving average of the parameters and buffers of a network.

    The first steps are averaged evenly, so that the weights it starts from do not linger.

    Args:
        network: whose present weights are where it starts.
        decay: in [0, 1); the average spans about 1 / (1 − decay) steps.

    Source: Polyak & Juditsky (1992); as an exponential average, Tarvainen & Valpola (NeurIPS 2017).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: value.clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of one more step."""
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value, share)
            else:
                self.values[name].copy_(value)

    def copy_to(self, network: nn.Module) -> None:
        """Give the network the average."""
        network.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.steps = state["steps"]
        values: dict[str, Tensor] = state["values"]
        for name, value in values.items():
            self.values[name].copy_(value)


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters and buffers, for `interpolate_weights`."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def interpolate_weights(network: nn.Module, before: Mapping[str, Tensor], keep: float) -> None:
    """weights ← keep · before + (1 − keep) · weights, norm statistics alike; counters stay as they are.

    Args:
        network: trained from `before`; changed.
        before: its weights before that, see `copy_weights`.
        keep: in [0, 1].

    Source: WiSE-FT (Wortsman et al., CVPR 2022), for models that are fine-tuned: what they could do before and what
    they have learnt add up along the line between both.
    """
    for name, value in network.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(before[name], keep)
