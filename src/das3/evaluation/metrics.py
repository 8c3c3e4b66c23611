"""Segmentation metrics from data-set-level counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from das3.distributed import sum_over_processes

__all__ = ["BoundaryIoU", "ConfusionMatrix", "gap_closed", "percent"]

Ids = Tensor | NDArray[np.integer]
Scores = NDArray[np.float64]

_AT_ONCE = 2**23  # pixels; counting takes some 30 bytes for each


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a data set; exact 64-bit counts, on the device of the predictions.

    Attributes:
        num_classes: C.
        ignore_index: value of label pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self._counts = torch.zeros(num_classes**2, dtype=torch.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """C×C, rows are labels, columns are predictions."""
        return self._counts.cpu().numpy().reshape(self.num_classes, self.num_classes)

    def update(self, prediction: Ids, label: Ids) -> None:
        """Count one image, or several, of equal shape.

        Args:
            prediction: integer class ids 0 … C − 1; anything where the label is ignored.
            label: integer class ids; `ignore_index` does not count.

        Raises:
            ValueError: if the shapes differ or an id is in no class.
        """
        guess, truth = torch.as_tensor(prediction), torch.as_tensor(label)
        if guess.shape != truth.shape:
            raise ValueError(f"prediction {tuple(guess.shape)} and label {tuple(truth.shape)} differ in shape")
        pieces = (x.reshape(-1).split(_AT_ONCE) for x in (guess, truth))
        added = sum(
            (self._pairs(g, t.to(g.device)) for g, t in zip(*pieces, strict=True)), self._counts.to(guess.device)
        )
        self._counts = added  # only now, so that a refused image leaves no trace

    def _pairs(self, guess: Tensor, truth: Tensor) -> Tensor:
        truth = truth.long()
        counted = truth != self.ignore_index
        guess, truth = guess.long()[counted], truth[counted]
        if guess.numel():
            low, high = torch.stack([guess, truth]).aminmax()
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"class ids must lie in 0 … {self.num_classes - 1}, found {low} … {high}")
        return torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)

    def sum_over_processes(self, device: torch.device) -> None:
        """Add the counts of all processes' images; on the device that they exchange tensors on."""
        self._counts = sum_over_processes(self._counts.to(device))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Counts of both, as if their images had been counted together."""
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            raise ValueError("confusion matrices of different classes can't be added")
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total._counts = self._counts + other._counts.to(self._counts.device)
        return total

    def iou(self) -> Scores:
        """Intersection over union per class in [0, 1]; NaN for a class that occurs neither in labels nor predictions.

        The rule of cityscapesScripts and of the field's code: a class without a labelled pixel scores 0 if some counted
        pixel is predicted as it, and leaves the mean if none is. Predictions on ignored pixels count nowhere.
        """
        hit, labelled, predicted = self._sums()
        return _ratio(hit, labelled + predicted - hit)

    def recall(self) -> Scores:
        """Share of each class's labelled pixels that are predicted as it; NaN for a class that no label shows."""
        hit, labelled, _ = self._sums()
        return _ratio(hit, labelled)

    def precision(self) -> Scores:
        """Share of the pixels predicted as each class that are right; NaN for a class that is never predicted."""
        hit, _, predicted = self._sums()
        return _ratio(hit, predicted)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean of `iou` over the classes that have one; NaN if none has.

        Args:
            classes: average over these only, e.g. the 16 or 13 classes of the SYNTHIA protocols, while pixels of
                the others still count as errors; None for all.
        """
        return _mean(self.iou(), classes)

    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right; NaN if there are none."""
        hit, labelled, _ = self._sums()
        return float(_ratio(hit.sum(), labelled.sum()))

    def _sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Right, labelled and predicted pixels per class."""
        counts = self.counts
        return np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)


class BoundaryIoU:
    """Boundary IoU: IoU of the classes' edges, to which the inside of large regions does not contribute.

    The edge of a class is those of its pixels that lie within d pixels (a square window) of another class, of ignored
    pixels or of the image's border. It scores how much the labels' edges and the prediction's edges have in common.

    Source: Cheng et al., "Boundary IoU", CVPR 2021: |G_d ∩ P_d| / |G_d ∪ P_d| with G_d, P_d the edges of G and P; here
    both are counted over the data set, as for IoU.

    Args:
        num_classes: C.
        ignore_index: value of label pixels that do not count.
        ratio: d as a share of the image's diagonal, 1 pixel at least; the paper's code takes 0.02 and, on Cityscapes,
            0.005.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, ratio: float = 0.005) -> None:
        self.num_classes, self.ignore_index, self.ratio = num_classes, ignore_index, ratio
        self._matrix = ConfusionMatrix(num_classes + 1, ignore_index=-1)  # the last class: not on an edge

    def update(self, prediction: Ids, label: Ids) -> None:
        """Count one image.

        Args:
            prediction: H×W integer class ids 0 … C − 1; anything where the label is ignored.
            label: H×W integer class ids; `ignore_index` does not count.

        Raises:
            ValueError: if the shapes differ.
        """
        guess = torch.as_tensor(prediction).long()
        truth = torch.as_tensor(label).to(guess.device).long()
        if guess.shape != truth.shape:
            raise ValueError(f"prediction {tuple(guess.shape)} and label {tuple(truth.shape)} differ in shape")
        ignored = truth == self.ignore_index
        width = max(1, round(self.ratio * float(np.hypot(*truth.shape))))
        for_edges = (x.masked_fill(ignored, -1) for x in (guess, truth))
        guess, truth = (x.where(_on_edge(x, width), self.num_classes) for x in for_edges)
        self._matrix.update(guess, truth.masked_fill(ignored, -1))

    def iou(self) -> Scores:
        """Boundary IoU per class in [0, 1]; NaN for a class that occurs neither in labels nor predictions."""
        return self._matrix.iou()[:-1]

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean of `iou` over the classes that have one, or over those of `classes`; NaN if none has."""
        return _mean(self.iou(), classes)


def _on_edge(ids: Tensor, width: int) -> Tensor:
    """Pixels of H×W ids in whose window of 2 · width + 1 pixels another id or the border lies."""
    outside = float(ids.max()) + 1 if ids.numel() else 0.0
    padded = F.pad(ids.float()[None], (width,) * 4, value=outside)

    def largest(x: Tensor) -> Tensor:  # rows, then columns: the same as a square window, and faster
        window = 2 * width + 1
        return F.max_pool2d(F.max_pool2d(x, (window, 1), 1), (1, window), 1)[0]

    return largest(padded) != -largest(-padded)


def _ratio(part: NDArray[np.int64] | np.int64, whole: NDArray[np.int64] | np.int64) -> Scores:
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole, dtype=np.float64)


def _mean(scores: Scores, classes: Sequence[int] | None) -> float:
    chosen = scores if classes is None else scores[list(classes)]
    return float(np.nanmean(chosen)) if np.isfinite(chosen).any() else float("nan")


def gap_closed(source: float | None, adapted: float | None, oracle: float | None) -> float | None:
    """(adapted − source) / (oracle − source): 0 for no gain, 1 for as good as with labels; None where undefined."""
    if source is None or adapted is None or oracle is None or not oracle > source:
        return None
    return (adapted - source) / (oracle - source)


def percent(evaluation: Any) -> dict[str, Any]:
    """mIoU and IoU per class as summary.json and result files give them: in percent, absent classes None."""
    per_class = {
        name: None if iou != iou else round(100 * iou, 4)  # NaN is not JSON
        for name, iou in evaluation.per_class_iou.items()
    }
    return {"miou": round(100 * evaluation.miou, 4), "per_class_iou": per_class}
