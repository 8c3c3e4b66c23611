"""`torchvision:NAME`: the segmentation networks of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from das3.errors import ModelError
from das3.models.extras import library
from das3.models.plain import Blueprint
from das3.models.weights import Weights

__all__ = ["blueprint"]


def blueprint(name: str, args: Mapping[str, Any], weights: Weights | None) -> Blueprint:
    """How torchvision builds the network, with nothing downloaded unless `args` asks for it (weights="DEFAULT").

    Args:
        name: such as "fcn_resnet50".
        args: of torchvision's function.
        weights: to come; they tell whether the network has an auxiliary head.

    Raises:
        ModelError: if torchvision is missing or has no such segmentation network.
    """
    models = library("torchvision.models", "torchvision")
    names = models.list_models(module=models.segmentation)
    if name not in names:
        raise ModelError(f"torchvision:{name}: no such segmentation network; there are: {', '.join(names)}")
    defaults: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if any("aux_classifier." in key for key in (weights.tensors if weights else ())):
        defaults["aux_loss"] = True
    return Blueprint(f"torchvision:{name}", models.get_model_builder(name), {**defaults, **args}, "num_classes")
