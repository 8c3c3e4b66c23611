"""Does the preprocessing that is assumed fit the model? Asked of a few images, without labels.

Weights do not say how their images were normalised. A wrong guess costs most of the accuracy and looks like a hard
target. Where the network has batch norm, its running statistics remember what came in during training; elsewhere a
wrong preprocessing shows in predictions that are unsure, and that change when the image is mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from das3.data.decoding import is_large
from das3.data.images import Images, resize_image
from das3.data.pixels import to_unit
from das3.models.deeplabv2 import CAFFE
from das3.segmenter import Preprocess, Segmenter, evaluating

__all__ = ["CANDIDATES", "Fit", "better_preprocess", "preprocess_fits", "warn_of_preprocess"]

CANDIDATES: Mapping[str, Preprocess] = {
    "ImageNet's mean and std": Preprocess(),
    "0 to 1": Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "-1 to 1": Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 255": Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), input_max=255.0),
    "Caffe's BGR means": CAFFE,
}
"""How segmentation networks are usually fed."""

_OPTIONS = {
    "ImageNet's mean and std": "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
    "0 to 1": "--mean 0,0,0 --std 1,1,1",
    "-1 to 1": "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
    "0 to 255": "--mean 0,0,0 --std 1,1,1 --input-max 255",
    "Caffe's BGR means": "--mean "
    + ",".join(f"{value:g}" for value in CAFFE.mean)
    + " --std 1,1,1 --input-max 255 --channels bgr",
}

IMAGES = 3
"""How many images are looked at."""

_SIDE = 256  # largest side of what is looked at of an image, which keeps its scale

CLEARLY = 0.5
"""With batch norm, a candidate is named if its misfit is at most this share of the assumed one's."""

CLEARLY_SURER = 1 / 3
"""The same without batch norm."""

_UNSCALED = ("ImageNet's mean and std", "0 to 1", "-1 to 1")


@dataclass(frozen=True)
class Fit:
    """How well a preprocessing fits.

    Attributes:
        statistics: mean distance of the inputs of the batch-norm layers from their running statistics, in standard
            deviations (means) and natural logarithms (variances); None without trained batch norm.
        entropy: mean entropy of a pixel's prediction, of 1 at most.
        inconsistency: share of pixels whose class changes when the image is mirrored; only measured without batch norm.
    """

    statistics: float | None
    entropy: float
    inconsistency: float = 0.0

    @property
    def misfit(self) -> float:
        """The smaller the better: the statistics where there are some, else entropy and inconsistency."""
        return self.entropy + self.inconsistency if self.statistics is None else self.statistics


def preprocess_fits(segmenter: Segmenter, images: Images) -> dict[str, Fit]:
    """How well the segmenter's own preprocessing fits ("assumed"), and each candidate that differs from it.

    Args:
        segmenter: of an RGB network; unchanged.
        images: target images, of which a few, evenly spread, are looked at.
    """
    views = _views(segmenter, images)
    own = segmenter.preprocess
    tried = {"assumed": own, **{n: replace(p, size=own.size, rgb=own.rgb) for n, p in CANDIDATES.items()}}
    return {name: _fit(segmenter, p, views) for name, p in tried.items() if name == "assumed" or p != own}


def better_preprocess(fits: Mapping[str, Fit]) -> str | None:
    """The candidate that fits clearly better than what is assumed, None if there is none.

    Without batch norm it must be better in both respects, and inputs of hundreds are not considered: networks that were
    trained on small inputs are very sure on such, and wrong.
    """
    assumed = fits["assumed"]
    known = assumed.statistics is not None
    name = min((n for n in fits if n != "assumed" and (known or n in _UNSCALED)), key=lambda n: fits[n].misfit)
    best = fits[name]
    if best.misfit > (CLEARLY if known else CLEARLY_SURER) * assumed.misfit:
        return None
    both = best.entropy < assumed.entropy and best.inconsistency < assumed.inconsistency
    return name if both or known else None


def warn_of_preprocess(segmenter: Segmenter, images: Images) -> str | None:
    """A line of warning if the preprocessing was assumed and another one fits clearly better; nothing is changed."""
    if segmenter.origin.preprocess != "assumed" or segmenter.preprocess.channels not in ("rgb", "bgr"):
        return None
    if segmenter.pixels is not None or not segmenter.origin.trained or not len(images):
        return None
    if all(is_large(images.size(i)) for i in _chosen(images)):
        return None  # they are read in parts, from the top
    name = better_preprocess(preprocess_fits(segmenter, images))
    if name is None:
        return None
    return (
        f"warning: the model does not say how its images are normalised, and {name} fits these images better than what "
        f"is assumed; if it was trained so, give {_OPTIONS[name]}"
    )


def _chosen(images: Images) -> list[int]:
    """Numbers of a few images, evenly spread."""
    return [int(i) for i in np.unique(np.linspace(0, len(images) - 1, IMAGES).round())]


def _views(segmenter: Segmenter, images: Images) -> list[Tensor]:
    """Centres of a few images at the network's scale, 1×3×h×w in [0, 1]; of none too large to be decoded whole."""
    views = []
    for i in (i for i in _chosen(images) if not is_large(images.size(i))):
        image = resize_image(images[i], segmenter.preprocess.size)
        if not segmenter.one_size:
            top, left = (max(0, side - _SIDE) // 2 for side in image.shape[:2])
            image = image[top : top + _SIDE, left : left + _SIDE]
        views.append(to_unit(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]))
    return views


def _fit(segmenter: Segmenter, preprocess: Preprocess, views: list[Tensor]) -> Fit:
    own, device = segmenter.preprocess, next(segmenter.parameters()).device
    entropies: list[float] = []
    changed: list[float] = []
    try:
        segmenter.preprocess = preprocess
        with evaluating(segmenter), torch.no_grad(), _distances(segmenter) as distances:
            for view in views:
                probs = segmenter(view.to(device)).softmax(dim=1)
                entropies.append(float(torch.special.entr(probs).sum(dim=1).mean()) / np.log(probs.shape[1]))
                if not distances:
                    mirrored = segmenter(view.to(device).flip(-1)).flip(-1)
                    changed.append(float((probs.argmax(dim=1) != mirrored.argmax(dim=1)).float().mean()))
    finally:
        segmenter.preprocess = own
    found = float(np.mean(distances)) if distances else None
    return Fit(found, float(np.mean(entropies)), float(np.mean(changed)) if changed else 0.0)


@contextmanager
def _distances(model: nn.Module) -> Iterator[list[float]]:
    """Distances of what the first trained batch-norm layer is given from its running statistics, as it is run."""
    found: list[float] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        axes = [0, *range(2, values.ndim)]
        variance, mean = torch.var_mean(values, dim=axes, correction=0)
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_var is not None
        assert layer.running_mean is not None
        known = layer.running_var + layer.eps
        off = (mean - layer.running_mean).abs() / known.sqrt() + ((variance + layer.eps) / known).log().abs()
        found.append(min(float(off.mean()), 1e6))

    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and _is_trained(m)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers[:1]]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_trained(layer: nn.BatchNorm2d) -> bool:
    if layer.running_mean is None or layer.running_var is None:
        return False
    return bool((layer.running_mean != 0).any() or (layer.running_var != 1).any())
