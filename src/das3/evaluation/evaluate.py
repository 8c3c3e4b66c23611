"""Evaluation by the field's protocol: one confusion matrix over the data set, at the labels' own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from das3.data.images import Size
from das3.data.labels import Labelled
from das3.data.pixels import Pixel
from das3.distributed import process_count, process_rank
from das3.errors import DataError, ModelError, RecipeError
from das3.evaluation.frames import data_frame
from das3.evaluation.metrics import BoundaryIoU, ConfusionMatrix
from das3.evaluation.predict import label_tensor
from das3.evaluation.reading import reading
from das3.losses import IGNORE_INDEX
from das3.segmenter import Segmenter

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of a model on labelled images.

    Attributes:
        miou: mean IoU in [0, 1] over the classes asked for that occur, see `ConfusionMatrix.iou`.
        per_class_iou: IoU in [0, 1] by class name, of all classes; NaN for a class that does not occur.
        confusion: the counts behind them.
        boundary: boundary IoU, if requested.
    """

    miou: float
    per_class_iou: dict[str, float]
    confusion: ConfusionMatrix
    boundary: BoundaryIoU | None = None

    @property
    def table(self) -> DataFrame:
        """A pandas table with a row per class: IoU in percent, and boundary IoU if it was measured.

        Raises:
            Das3Error: without pandas.
        """
        columns = {"IoU": list(self.per_class_iou.values())}
        if self.boundary is not None:
            columns["boundary IoU"] = self.boundary.iou().tolist()
        rows = [
            {"class": name} | {column: 100 * scores[c] for column, scores in columns.items()}
            for c, name in enumerate(self.per_class_iou)
        ]
        return data_frame(rows, "class")

    def __repr__(self) -> str:
        return f"Evaluation(mIoU {100 * self.miou:.1f} % over {len(self.per_class_iou)} classes)"


def evaluate(
    segmenter: Segmenter,
    labelled: Labelled,
    *,
    size: Size = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    tile: int | None = None,
    classes: Sequence[int] | None = None,
    boundary: bool = False,
    shared: bool = False,
    progress: Callable[[Iterable[int], str, int], Iterable[int]] | None = None,
) -> Evaluation:
    """Measure a model; labels are never resized, ignored pixels (255) and those without data do not count.

    Args:
        segmenter: the model; predicts in evaluation mode, each layer's own mode is restored.
        labelled: images and labels.
        size, flip, scales, tile: see `das3.evaluation.predict.PredictOptions`.
        classes: average over these only, e.g. `das3.data.published.classes.SUBSETS[13]`; all when None.
        boundary: also measure the boundary IoU.
        shared: several processes call this and share the images; all get the same result.
        progress: wraps the iteration over images (items, what, total).

    Raises:
        ModelError: if the model predicts another number of classes than the labels have.
        DataError: if a label can't be read, has unknown ids or another size than its image, or if no pixel counts.
    """
    if segmenter.num_classes != labelled.num_classes:
        raise ModelError(
            f"the model predicts {segmenter.num_classes} classes but the labels have {labelled.num_classes}; "
            "give the matching --classes or --class-map"
        )
    if shared and boundary:
        raise RecipeError("edges are measured by one process; leave out `boundary` or `shared`")
    confusion = ConfusionMatrix(labelled.num_classes)
    edges = BoundaryIoU(labelled.num_classes) if boundary else None
    indices = range(len(labelled))
    if shared:
        indices = range(process_rank(), len(labelled), process_count())

    def read(i: int) -> tuple[Pixel, Tensor]:
        image, valid = labelled.images.masked(i)
        label = torch.from_numpy(labelled.label(i))
        return image, label if valid is None else label.masked_fill(~torch.from_numpy(valid), IGNORE_INDEX)

    device = next(segmenter.parameters()).device
    shown = progress(indices, "evaluating", len(indices)) if progress else indices
    with reading(labelled.images, indices, device, read) as pairs:
        for _, (image, label) in zip(shown, pairs, strict=True):
            prediction = label_tensor(segmenter, image, size=size, flip=flip, scales=scales, tile=tile)
            confusion.update(prediction, label)
            if edges is not None:
                edges.update(prediction, label)
    if shared:
        confusion.sum_over_processes(device)
    if not confusion.counts.any():
        where = f", such as {labelled.paths[0]}," if labelled.paths else ""
        raise DataError(
            f"no pixel of the labels{where} counts: all are ignored or without data; check --classes and --class-map"
        )
    per_class = dict(zip(labelled.class_names, confusion.iou().tolist(), strict=True))
    return Evaluation(confusion.miou(classes), per_class, confusion, edges)
