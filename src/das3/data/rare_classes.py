"""Rare-class sampling: images that show rare classes are drawn more often."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["RareClasses"]


class RareClasses:
    """Draws a class first, the rarer the more often, then an image that shows enough of it.

    Class c is drawn in proportion to exp((1 − f_c) / T), f_c its share of all labelled pixels, and then one of the
    images that show at least half as much of it as the median of those that show any, each equally often.

    Args:
        labels: N label maps, H×W class ids.
        temperature: T, above 0. The smaller, the more the rarest class prevails; with a large one all classes are drawn
            equally often.
        ignore_index: id that is no class.

    Attributes:
        classes: ids of the K classes that the labels show.
        chances: K, of sum 1: how often each is drawn.
        shown: N×K boolean: which images show enough of it.

    Source: rare-class sampling of DAFormer (Hoyer et al., CVPR 2022), which counts the source's labels; here they are
    the model's own. An image is not cut again where the crop misses the class.
    """

    def __init__(self, labels: Iterable[NDArray[np.uint8]], temperature: float, ignore_index: int = 255) -> None:
        counts = np.stack([np.bincount(one.ravel(), minlength=256) for one in labels])
        counts[:, ignore_index] = 0
        pixels = counts.sum(axis=0)
        self.classes = np.flatnonzero(pixels)
        counts, shares = counts[:, self.classes], pixels[self.classes] / max(1, pixels.sum())
        chances = np.exp((shares.min(initial=1) - shares) / temperature)
        self.chances = chances / chances.sum()
        enough = np.array([np.median(of_class[of_class > 0]) / 2 for of_class in counts.T])
        self.shown = counts >= np.maximum(enough, 1)

    def draw(self, order: NDArray[np.int64], rng: np.random.Generator) -> tuple[int, int] | None:
        """One of the images with these indices, and the class for which it was drawn; None if they show none."""
        shown = self.shown[order]
        chances = self.chances * shown.any(axis=0)
        if not chances.any():
            return None
        drawn = rng.choice(len(chances), p=chances / chances.sum())
        return int(rng.choice(order[shown[:, drawn]])), int(self.classes[drawn])
