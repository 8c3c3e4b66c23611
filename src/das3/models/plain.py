"""Networks that a function builds: `package.module:function` of the user's own code, and das3's own by name."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from das3.errors import ModelError
from das3.models.weights import Weights, infer_classes
from das3.segmenter import Preprocess

__all__ = ["Blueprint", "build", "builtin", "from_code", "without_downloads"]

_CLASS_ARGUMENTS = ("num_classes", "classes", "n_classes", "num_labels")

# Arguments that make other libraries download weights. They are not kept: a saved network has its own.
_DOWNLOADS = ("weights", "weights_backbone", "encoder_weights")


@dataclass(frozen=True)
class Blueprint:
    """How to build a network.

    Attributes:
        spec: what the user calls it.
        function: makes the network.
        args: its arguments.
        class_argument: the argument that is the number of classes, None if it has none.
        preprocess: what networks of this kind are trained with.
        align_corners: how they upsample their logits.
    """

    spec: str
    function: Callable[..., Any]
    args: Mapping[str, Any] = field(default_factory=dict)
    class_argument: str | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    align_corners: bool = False


def build(plan: Blueprint, num_classes: int | None, weights: Weights | None) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network with random weights, for as many classes as asked for or else as its weights have.

    Returns:
        The network, and all arguments that build it again, to be filled with its saved weights.

    Raises:
        ModelError: if the number of classes is needed and unknown, or the function fails or returns something else.
    """
    args = dict(plan.args)
    name = plan.class_argument
    if name and name not in args:
        if num_classes is None and weights is not None:
            num_classes = infer_classes(lambda n: _call(plan, {**args, name: n}), weights)
        needed = inspect.signature(plan.function).parameters[name].default is inspect.Parameter.empty
        if num_classes is None and needed and weights is None:
            raise ModelError(f"{plan.spec}: how many classes? give --num-classes, or --weights that tell")
        if num_classes is not None or needed:  # weights that don't tell don't fit, which their own error explains
            args[name] = num_classes or 2
    return _call(plan, args), without_downloads(args)


def without_downloads(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build the same network without fetching weights, to be filled with saved ones."""
    return {k: None if k in _DOWNLOADS else v for k, v in args.items()}


def _call(plan: Blueprint, args: Mapping[str, Any]) -> nn.Module:
    try:
        model = plan.function(**args)
    except (TypeError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, ArithmeticError) as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in args.items())
        raise ModelError(f"{plan.spec}: can't be built with ({shown}): {error}; see --model-args") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{plan.spec}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def class_argument(function: Callable[..., Any]) -> str | None:
    """Name of the argument of `function` that is the number of classes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    return next((n for n in _CLASS_ARGUMENTS if n in parameters), None)


def from_code(spec: str, args: Mapping[str, Any]) -> Blueprint:
    """`package.module:function` (or a class), importable from the working directory or installed.

    Raises:
        ModelError: if it can't be imported or called.
    """
    module_name, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:  # `das3` is a script, so Python does not look here by itself
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ModelError(
            f"{spec}: can't import {module_name} ({type(error).__name__}: {error}); "
            "run das3 in the folder that holds it, or install it"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{spec}: {module_name} has no function or class {name!r}")
    return Blueprint(spec, function, args, class_argument(function))


def builtin(name: str, args: Mapping[str, Any]) -> Blueprint:
    """`das3:NAME`.

    Raises:
        ModelError: if there is no such network.
    """
    from das3.models import deeplabv2, mit, small

    networks: dict[str, Callable[..., nn.Module]] = {
        "small": small.small,
        "deeplabv2_resnet101": deeplabv2.deeplabv2_resnet101,
        "segformer": mit.segformer,
        "daformer": mit.daformer,
    }
    spec = f"das3:{name}"
    if name not in networks:
        raise ModelError(f"{spec}: no such network; there are: {', '.join(f'das3:{n}' for n in networks)}")
    caffe = name == "deeplabv2_resnet101" and bool(args.get("caffe", True))
    preprocess = deeplabv2.CAFFE if caffe else Preprocess()
    return Blueprint(spec, networks[name], args, "num_classes", preprocess, align_corners=caffe)
