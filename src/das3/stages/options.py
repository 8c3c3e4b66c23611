"""Options of the training loop and of every stage: a dataclass field holds name, type, default and range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from das3.errors import RecipeError
from das3.norms import BatchNormMode

__all__ = ["LoopOptions", "StageOptions", "bounds_of", "check_ranges", "option"]


def option(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    old: str | None = None,
) -> Any:
    """A dataclass field with a default and the range of its values, which `check_ranges` enforces.

    Args:
        default: of the option.
        low, high: smallest and largest value.
        above, below: bounds that the value itself must not reach.
        choices: the only values there are.
        old: name that the option had in recipes of format 1.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices, "old": old}
    return field(default=default, metadata={name: value for name, value in bounds.items() if value is not None})


def check_ranges(options: Any) -> None:
    """Check every field of a dataclass against the range that `option` gave it, there or in a class it inherits from.

    Raises:
        RecipeError: naming the first option that is out of its range, and the range, or that is None
            but needs a value.
    """
    for f in fields(options):
        value, bounds = getattr(options, f.name), bounds_of(type(options), f.name)
        if value is None and f.name not in _may_be_none(type(options)):  # type: ignore[arg-type]
            raise RecipeError(f"{f.name} is empty (null); give it a value, or leave it out for the default")
        if not _is_in_range(value, bounds):
            raise RecipeError(f"{f.name}={value!r} is out of range, it must be {_in_words(bounds)}; see --help")


@cache
def _may_be_none(kind: type) -> frozenset[str]:
    """Fields for which None is a value."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if type(None) in get_args(hint))


def bounds_of(kind: type, name: str) -> Mapping[str, Any]:
    """What `option` says of a field; a class that only changes a default keeps the range of the class above it."""
    declared = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in kind.__mro__)
    return next((f.metadata for f in declared if f is not None and f.metadata), {})


def _is_in_range(value: Any, bounds: Mapping[str, Any]) -> bool:
    if "choices" in bounds:
        return value in bounds["choices"]
    if not isinstance(value, int | float):
        return True
    return math.isfinite(value) and (
        bounds.get("low", value) <= value <= bounds.get("high", value)
        and ("above" not in bounds or value > bounds["above"])
        and ("below" not in bounds or value < bounds["below"])
    )


def _in_words(bounds: Mapping[str, Any]) -> str:
    if "choices" in bounds:
        return "one of " + ", ".join(map(str, bounds["choices"]))
    words = {"low": "at least", "high": "at most", "above": "above", "below": "below"}
    return " and ".join(f"{word} {bounds[name]:g}" for name, word in words.items() if name in bounds) or "finite"


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop, the same for every stage.

    Attributes:
        batch_size: samples per batch, over all processes.
        accumulate: number of batches whose gradients are summed before each optimiser step.
        optimizer: AdamW, or SGD with momentum 0.9.
        weight_decay: weight decay; not applied to biases and norm layers.
        power: exponent of the polynomial decay of the learning rate.
        warmup: fraction of the steps in which the learning rate rises linearly.
        clip: largest gradient norm; 0 for no limit.
        ema_decay: decay of the exponential moving average (EMA) of the weights, which each stage passes on; 0 passes on
            the weights of the last step.
        workers: number of processes that load images; 0 loads them in the main process; "auto" takes up to 8 for a
            GPU, which would wait for images, and 0 on a CPU.
        checkpoint_activations: keep only the inputs of the network's blocks for the backward pass, and run the blocks
            again there: less memory for a third more time, the same gradients.
        shard_weights: let each of several processes keep a part of the weights, their gradients and the optimiser's
            state only (FSDP), for networks that a device does not hold with all of these.
        compile: run the network through `torch.compile`; "auto" does not, as it has not been measured to help. Dropout
            then drops other places.
        channels_last: keep images and the weights of convolutions in the memory format channels_last, which makes many
            convolutional networks faster; the same results but for rounding.
        log_every: number of steps between two lines of metrics.jsonl.
        checkpoint_every: number of steps between two checkpoints.
    """

    batch_size: int = option(8, low=1, high=65536)
    accumulate: int = option(1, low=1, high=100_000)
    optimizer: Literal["adamw", "sgd"] = option("adamw", choices=("adamw", "sgd"))
    weight_decay: float = option(0.01, low=0)
    power: float = option(0.9, low=0)
    warmup: float = option(0.05, low=0, high=1)
    clip: float = option(1.0, low=0)
    ema_decay: float = option(0.0, low=0, below=1, old="average")
    workers: int | Literal["auto"] = option("auto", low=0, high=1024)
    checkpoint_activations: bool = False
    shard_weights: bool = False
    compile: Literal["auto", "on", "off"] = option("auto", choices=("auto", "on", "off"))
    channels_last: bool = False
    log_every: int = option(10, low=1)
    checkpoint_every: int = option(100, low=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.checkpoint_activations and self.compile == "on":
            raise RecipeError("checkpoint_activations and compile=on can't be used together; leave one of them out")


@dataclass(frozen=True)
class StageOptions:
    """Options that every stage has.

    Attributes:
        steps: number of optimiser steps.
        lr: learning rate after the warm-up.
        head_lr_factor: the classifier's learning rate is this times `lr`.
        bn_mode: statistics that batch-norm layers normalise with: "auto" chooses between the source's, the target's and
            blends of both before the first stage, without labels; "batch" takes each batch's; "target" re-estimates
            them on the target images before the stage and holds them; "frozen" keeps those the model came with.
        scale: smallest and largest factor of random scaling of a training sample.
        color: strength of random changes of brightness, contrast, saturation and hue; 0 for none.
        blur: probability of random Gaussian blur.
    """

    steps: int = option(200, low=0)
    lr: float = option(1e-4, above=0)
    head_lr_factor: float = option(1.0, low=0)
    bn_mode: BatchNormMode = option("auto", choices=("auto", "batch", "target", "frozen"), old="norm")
    scale: tuple[float, float] = (1.0, 1.0)
    color: float = option(0.0, low=0)
    blur: float = option(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.scale) != 2 or not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise RecipeError(f"scale={self.scale!r} must be two factors from 0.1 to 10, the smaller one first")
