"""Two captures of a run → the numbers of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from das3.errors import ModelError
from das3.report.capture import BINS, Capture, center_window
from das3.report.numbers import percent
from das3.report.run_folder import PseudoLabels
from das3.report.statistics import ImageChange, agreement, image_change, shares, transitions

__all__ = ["Findings", "compare_captures", "points_to_check", "pseudo_labels_of"]

_VANISHED = 0.1  # a class that keeps less than this share of its pixels has all but vanished
_GROWN = 3.0  # a class with more than this many times its pixels has grown suspiciously
_SEEN = 0.005  # of all pixels; of rarer classes such factors say little
_AGREES = 0.5  # below this agreement the two models see different things


@dataclass(frozen=True)
class Findings:
    """What the incoming and the adapted model's predictions say about each other.

    Attributes:
        matrix: C×C pixels by class before (rows) and after (columns), over all images of the sample.
        changes: per image of the sample.
        histograms: 2×`BINS`, shares of the pixels by entropy, before and after.
        pseudo: C + 1 shares of the pixels by pseudo label, the last one of those without; None if there are none.
    """

    matrix: NDArray[np.int64]
    changes: list[ImageChange]
    histograms: NDArray[np.float64]
    pseudo: NDArray[np.float64] | None

    @property
    def agreement(self) -> float:
        """Share of the pixels whose class did not change, in [0, 1]."""
        return agreement(self.matrix)

    @property
    def entropy(self) -> tuple[float, float]:
        """Mean normalised entropy before and after, over images, in [0, 1]."""
        before, after = zip(*((c.entropy_before, c.entropy_after) for c in self.changes), strict=True)
        return float(np.mean(before)), float(np.mean(after))


def compare_captures(before: Capture, after: Capture, pseudo: PseudoLabels | None = None) -> Findings:
    """Go through the sample once, one image at a time.

    Args:
        before: of the incoming model.
        after: of the adapted model, on the same images.
        pseudo: labels that it was trained with.

    Raises:
        ModelError: if the two are of other images or classes.
    """
    if (before.info.names, len(before.info.class_names)) != (after.info.names, len(after.info.class_names)):
        raise ModelError(
            "the two models' predictions are of other images or classes; make both anew with --model and --images"
        )
    num_classes = len(after.info.class_names)
    total = np.zeros((num_classes, num_classes), np.int64)
    histograms, labelled = np.zeros((2, BINS)), np.zeros(256, np.int64)
    changes = []
    for i, name in enumerate(before.info.names):
        one, other = before[i], after[i]
        matrix = transitions(one["labels"], other["labels"], num_classes)
        total += matrix
        histograms += np.stack([one["histogram"], other["histogram"]])
        changes.append(image_change(name, matrix, float(one["mean_entropy"]), float(other["mean_entropy"])))
        made = pseudo_labels_of(pseudo, name, one["labels"].shape, num_classes)
        if made is not None:
            labelled += np.bincount(made[one["labels"] < num_classes], minlength=256)  # not where there is no data
    counted = np.append(labelled[:num_classes], labelled[255])
    found = counted / counted.sum() if counted.sum() else None
    return Findings(total, changes, histograms / np.maximum(1, histograms.sum(axis=1, keepdims=True)), found)


def pseudo_labels_of(
    pseudo: PseudoLabels | None, name: str, shape: tuple[int, ...], num_classes: int
) -> NDArray[np.uint8] | None:
    """Pseudo labels of the part of an image that was captured; None if there are none, or of another size."""
    labels = pseudo.labels(name) if pseudo else None
    if labels is None:
        return None
    part = labels[center_window(labels.shape, num_classes)]
    return part if part.shape == shape else None


def points_to_check(findings: Findings, class_names: Sequence[str]) -> list[str]:
    """What in the predictions often goes with a worse model, in words. None of it proves anything."""
    before, after = shares(findings.matrix)
    points = []
    for c, name in enumerate(class_names):
        if before[c] >= _SEEN and after[c] < _VANISHED * before[c]:
            points.append(
                f"{name} all but vanished: from {percent(before[c])} of the pixels to {percent(after[c], 2)}."
            )
        elif after[c] >= _SEEN and after[c] > _GROWN * before[c]:
            points.append(f"{name} grew from {percent(before[c], 2)} of the pixels to {percent(after[c])}.")
    if findings.agreement < _AGREES:
        points.append(f"The two models agree on {percent(findings.agreement, 0)} of the pixels only.")
    sure, unsure = findings.entropy
    if unsure > sure:
        points.append(f"The adapted model is less certain: its mean entropy rose from {sure:.3f} to {unsure:.3f}.")
    return points
