"""Pictures of a run while it goes on: image, prediction of the incoming model, prediction now, pseudo labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from das3.data.images import Images
from das3.data.label_store import LabelStore
from das3.data.pixels import as_rgb8, to_unit
from das3.data.visualize import colorize, grid, palette
from das3.losses import IGNORE_INDEX
from das3.segmenter import Segmenter, evaluating

__all__ = ["Pictures"]

_COUNT, _SIDE = 3, 512


class Pictures:
    """A few images of the run, evenly spread, and what the model made of them when it came in.

    Args:
        images: target images at their training size; the middle of large ones is shown.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self.chosen = np.unique(np.linspace(0, len(images) - 1, _COUNT).round().astype(int)).tolist()
        self.before: list[NDArray[np.uint8]] | None = None

    def __call__(self, segmenter: Segmenter, labels: LabelStore | None) -> NDArray[np.uint8]:
        """A row per image: H×W×3. The first call's model is the one that came in."""
        colors = palette(segmenter.class_names)
        now = [self._predict(segmenter, i) for i in self.chosen]
        self.before = self.before or now
        rows = []
        for i, before, after in zip(self.chosen, self.before, now, strict=True):
            image = _middle(as_rgb8(self.images[i], segmenter.preprocess.rgb_bands))
            row = [image, colorize(before, colors), colorize(after, colors)]
            if labels is not None:
                # Images that are never drawn are not labelled.
                known = labels[i]["labels"] if labels.has(i) else np.full(before.shape, IGNORE_INDEX, np.uint8)
                row.append(colorize(_middle(np.asarray(known)), colors))
            rows.append(row)
        titles = ["image", "incoming model", "now", "pseudo labels"][: len(rows[0])]
        return np.array(grid(rows, titles))

    def _predict(self, segmenter: Segmenter, i: int) -> NDArray[np.uint8]:
        pixels = torch.from_numpy(np.ascontiguousarray(_middle(self.images[i]))).permute(2, 0, 1)[None]
        device = next(segmenter.parameters()).device
        with evaluating(segmenter), torch.no_grad():
            labels: NDArray[np.uint8] = (
                segmenter(to_unit(pixels.to(device))).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
            )
        return labels


def _middle(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    top, left = (max(0, side - _SIDE) // 2 for side in array.shape[:2])
    return array[top : top + _SIDE, left : left + _SIDE]  # type: ignore[return-value]
