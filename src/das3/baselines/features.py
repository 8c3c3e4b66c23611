"""Features: what enters the classifier, f(x) of the network seen as g ∘ f."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from das3.errors import ModelError
from das3.segmenter import Segmenter

__all__ = ["features_and_logits", "to_grid"]


def features_and_logits(segmenter: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features B×D×h×w float32 on the network's own grid, and logits B×C×H×W at the size of the images.

    Args:
        segmenter: a `Segmenter`, wrapped for training or not. Of several classifiers the first one's input is taken.
        images: B×K×H×W in [0, 1].

    Raises:
        ModelError: if what enters the classifier is no map.
    """
    inner = cast(Segmenter, segmenter)
    name, caught = inner.classifier[0], list[Tensor]()
    handle = inner.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        logits = segmenter(images)
    finally:
        handle.remove()
    features = caught[-1]
    if features.ndim != 4:
        raise ModelError(
            f"this method needs a feature map B×D×h×w before the classifier, but {name} takes a tensor of "
            f"{features.ndim} dimensions; choose another method, or a network whose classifier is a convolution"
        )
    return features.float(), logits


def to_grid(segmenter: Segmenter, maps: Tensor, features: Tensor) -> Tensor:
    """Maps B×K×H×W of the images' size, averaged to the grid of their features B×D×h×w."""
    return F.interpolate(segmenter.pad(maps), size=features.shape[-2:], mode="area")
