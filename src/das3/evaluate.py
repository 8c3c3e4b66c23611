"""Evaluation by the field's protocol: one confusion matrix over the data set, at the labels' own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from das3.data.images import Size
from das3.data.labels import Labelled
from das3.metrics import ConfusionMatrix
from das3.predict import predict_labels
from das3.segmenter import Segmenter

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on labelled images.

    Attributes:
        miou: mean IoU in [0, 1] over the classes that the labels show.
        per_class_iou: IoU in [0, 1] by class name; NaN for a class that no label shows.
        confusion: the counts behind them.
    """

    miou: float
    per_class_iou: dict[str, float]
    confusion: ConfusionMatrix


def evaluate(
    segmenter: Segmenter,
    labelled: Labelled,
    *,
    size: Size = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    tile: int | None = None,
    progress: Callable[[Iterable[int], str, int], Iterable[int]] | None = None,
) -> Evaluation:
    """Measure a model; labels are never resized.

    Args:
        segmenter: the model.
        labelled: images and labels.
        size, flip, scales, tile: see `das3.predict.predict_labels`.
        progress: wraps the iteration over images (items, what, total).

    Raises:
        DataError: if a label can't be read, has unknown ids or another size than its image.
    """
    confusion = ConfusionMatrix(labelled.num_classes)
    indices: Iterable[int] = range(len(labelled))
    for i in progress(indices, "evaluating", len(labelled)) if progress else indices:
        prediction = predict_labels(segmenter, labelled.image(i), size=size, flip=flip, scales=scales, tile=tile)
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(labelled.label(i)))
    names = labelled.class_names
    return Evaluation(confusion.miou(), dict(zip(names, confusion.iou().tolist(), strict=True)), confusion)
