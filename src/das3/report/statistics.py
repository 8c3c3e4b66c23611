"""What two models' predictions say about each other, without labels: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Flow", "ImageChange", "agreement", "image_change", "largest_flows", "pick_images", "shares", "transitions"]

Counts = NDArray[np.int64]
Labels = NDArray[np.uint8]


def transitions(before: Labels, after: Labels, num_classes: int) -> Counts:
    """Pixels by predicted class: a confusion matrix of two models, which needs no labels.

    Args:
        before: H×W class ids of one model; what is not below C, as 255 where there is no data, does not count.
        after: those of the other one.
        num_classes: C.

    Returns:
        C×C; row i, column j counts pixels that were of class i and are of class j.
    """
    known = (before < num_classes) & (after < num_classes)
    pairs = before[known].astype(np.int64) * num_classes + after[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def shares(matrix: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of each class's pixels before and after, from `transitions`: C and C values that each sum to 1."""
    total = max(1, matrix.sum())
    return matrix.sum(axis=1) / total, matrix.sum(axis=0) / total


def agreement(matrix: Counts) -> float:
    """Share of the pixels whose class is the same before and after, in [0, 1]."""
    return float(np.trace(matrix) / max(1, matrix.sum()))


class Flow(NamedTuple):
    """Pixels that went from one class to another one.

    Attributes:
        before: class id.
        after: class id.
        share: of all pixels, in [0, 1].
        of_class: share of the pixels of class `before`, in [0, 1].
    """

    before: int
    after: int
    share: float
    of_class: float


def largest_flows(matrix: Counts, count: int) -> list[Flow]:
    """The largest changes of class, at most `count`, none that is empty; largest first."""
    moved = matrix.copy()
    np.fill_diagonal(moved, 0)
    total, rows = max(1, matrix.sum()), np.maximum(1, matrix.sum(axis=1))
    order = np.argsort(-moved, axis=None, kind="stable")[:count]
    places = [(int(i) // len(moved), int(i) % len(moved)) for i in order]
    return [Flow(a, b, float(moved[a, b] / total), float(moved[a, b] / rows[a])) for a, b in places if moved[a, b]]


@dataclass(frozen=True)
class ImageChange:
    """What changed in one image.

    Attributes:
        name: of the image.
        changed: share of its pixels whose class changed, in [0, 1].
        entropy_before: mean normalised entropy of the incoming model, in [0, 1].
        entropy_after: the adapted model's.
        classes: class id → (share before, share after, share that left or entered the class), where one is not 0.
    """

    name: str
    changed: float
    entropy_before: float
    entropy_after: float
    classes: Mapping[int, tuple[float, float, float]]


def image_change(name: str, matrix: Counts, entropy_before: float, entropy_after: float) -> ImageChange:
    """What `transitions` of one image and its mean entropies say."""
    before, after = shares(matrix)
    kept = np.diag(matrix) / max(1, matrix.sum())
    moved = before + after - 2 * kept
    seen = {int(c): (float(before[c]), float(after[c]), float(moved[c])) for c in np.flatnonzero(before + after)}
    return ImageChange(name, 1 - agreement(matrix), entropy_before, entropy_after, seen)


def pick_images(changes: Sequence[ImageChange], each: int, seed: int = 0) -> dict[str, list[int]]:
    """Indices of the images to show, no image twice.

    Args:
        changes: of all images of the sample.
        each: how many of each kind, at most.
        seed: of the random ones.

    Returns:
        "changed": those of which most pixels changed; "uncertain": those of highest entropy after adaptation;
        "random": drawn from the rest.
    """
    order = range(len(changes))
    changed = sorted(order, key=lambda i: -changes[i].changed)[:each]
    left = [i for i in order if i not in changed]
    uncertain = sorted(left, key=lambda i: -changes[i].entropy_after)[:each]
    left = [i for i in left if i not in uncertain]
    drawn = np.random.default_rng(seed).permutation(len(left))[:each]
    return {"changed": changed, "uncertain": uncertain, "random": sorted(left[i] for i in drawn)}
