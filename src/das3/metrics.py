"""Segmentation metrics from one data-set-level confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ConfusionMatrix", "gap_closed"]


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a data set; exact 64-bit counts.

    Attributes:
        counts: C×C int64, rows are labels, columns are predictions.
        num_classes: C.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: Tensor | NDArray[np.integer], label: Tensor | NDArray[np.integer]) -> None:
        """Count one image, or several, of equal shape.

        Args:
            prediction: integer class ids 0 … C − 1.
            label: integer class ids; `ignore_index` does not count.

        Raises:
            ValueError: if the shapes differ or an id is in no class.
        """
        guess, truth = torch.as_tensor(prediction), torch.as_tensor(label)
        if guess.shape != truth.shape:
            raise ValueError(f"prediction {tuple(guess.shape)} and label {tuple(truth.shape)} differ in shape")
        counted = truth != self.ignore_index
        guess, truth = guess[counted.to(guess.device)].long(), truth[counted].long().to(guess.device)
        both = torch.cat([guess, truth])
        if both.numel() and (both.min() < 0 or both.max() >= self.num_classes):
            raise ValueError(f"class ids must lie in 0 … {self.num_classes - 1}, found {both.min()} … {both.max()}")
        pairs = torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)
        self.counts += pairs.cpu().numpy().reshape(self.counts.shape)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class in [0, 1]; NaN for a class that no label shows.

        As the Cityscapes evaluation does, such a class is absent, not 0, and pixels wrongly predicted as it still count
        against the classes they belong to.
        """
        hit = np.diag(self.counts).astype(np.float64)
        labelled, predicted = self.counts.sum(axis=1), self.counts.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = hit / (labelled + predicted - hit)
        return np.where(labelled > 0, iou, np.nan)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU over the classes that occur, or over those of `classes` that do; NaN if none does."""
        iou = self.iou() if classes is None else self.iou()[list(classes)]
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right; NaN if there are none."""
        total = self.counts.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")


def gap_closed(source: float | None, adapted: float | None, oracle: float | None) -> float | None:
    """(adapted − source) / (oracle − source): 0 for no gain, 1 for as good as with labels; None where undefined."""
    if source is None or adapted is None or oracle is None or not oracle > source:
        return None
    return (adapted - source) / (oracle - source)
