"""What can be said of a model on images without labels, alone and beside another model: `das3 evaluate` prints it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from das3.data.images import Images
from das3.errors import ModelError
from das3.losses import most_likely
from das3.segmenter import Segmenter
from das3.selection.bn_statistics import MAX_IMAGES_FOR_SIGNALS, sample_batches
from das3.selection.candidates import to_square
from das3.selection.signals import (
    ViewPredictions,
    agreement,
    class_shares,
    ensemble_agreement,
    share_shift,
    signals_of,
    sure_agreement,
    view_predictions,
)
from das3.stages.context import StageContext

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["measure_unlabelled"]


def measure_unlabelled(
    fabric: Fabric,
    segmenter: Segmenter,
    images: Images,
    *,
    reference: Segmenter | None = None,
    most: int = MAX_IMAGES_FOR_SIGNALS,
) -> dict[str, Any]:
    """The label-free signals of a model, see `das3.selection.signals`.

    Args:
        fabric: device and precision.
        segmenter: the model; it is moved to the device.
        images: of any size; about `most` of them, evenly spread, are looked at, at the size that the model is run at.
        reference: another model of the same classes, such as the one that came in, to compare with.
        most: number of images.

    Raises:
        ModelError: if the models have different classes.

    Returns:
        "images": how many were looked at; entropy, mutual_information, density, consistency and consistent_miou (by
        view), consistency_mean; shares: of the pixels by class name. With a reference also "reference": the same of it
        under "signals", and share_shift, agreement (share of pixels labelled alike), sure_agreement, and
        ensemble_agreement (mean IoU with the mean prediction of both) of each. Shares, agreements and consistencies are
        in [0, 1].
    """
    if reference is not None and reference.num_classes != segmenter.num_classes:
        raise ModelError(
            f"the model predicts {segmenter.num_classes} classes but the reference {reference.num_classes}; "
            "compare models of the same classes"
        )
    found = _views(fabric, segmenter, images, most)
    result = _described(segmenter, found)
    if reference is None:
        return result
    other = _views(fabric, reference, images, most)
    plain, before = (torch.cat([to_square(probs) for probs in views.probs]) for views in (found, other))
    labels, known = most_likely(plain, 1), most_likely(before, 1)
    ensemble = ensemble_agreement([plain, before])
    result["reference"] = {
        "signals": _described(reference, other),
        "share_shift": share_shift(class_shares(plain), class_shares(before)),
        "agreement": agreement(labels, known)[0],
        "sure_agreement": sure_agreement(labels, before),
        "ensemble_agreement": [miou for _, miou in ensemble],
    }
    return result


def _views(fabric: Fabric, segmenter: Segmenter, images: Images, most: int) -> ViewPredictions:
    segmenter.to(fabric.device)
    context = StageContext(fabric, segmenter, images.resized(segmenter.preprocess.size), Path(), (0,), (1, 1))
    with fabric.autocast():
        return view_predictions(segmenter, sample_batches(context, most), context.rgb)


def _described(segmenter: Segmenter, views: ViewPredictions) -> dict[str, Any]:
    signals = signals_of(views)
    return asdict(signals) | {
        "images": sum(len(probs) for probs in views.probs),
        "consistency_mean": signals.mean_consistency,
        "shares": dict(zip(segmenter.class_names, signals.shares, strict=True)),
    }
