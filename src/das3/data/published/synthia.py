"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from das3.data.decoding import opened
from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.data.published.classes import TRAIN_IDS, street_table
from das3.losses import IGNORE_INDEX

__all__ = ["Synthia"]

# SYNTHIA's classes 0 … 22, by Cityscapes' names where they are classes there; the field ignores the others.
_NAMES = [
    "void",
    "sky",
    "building",
    "road",
    "sidewalk",
    "fence",
    "vegetation",
    "pole",
    "car",
    "traffic sign",
    "person",
    "bicycle",
    "motorcycle",
    "parking slot",
    "road work",
    "traffic light",
    "terrain",
    "rider",
    "truck",
    "bus",
    "train",
    "wall",
    "lane marking",
]
TABLE = street_table(
    {i: TRAIN_IDS.names.index(n) if n in TRAIN_IDS.names else IGNORE_INDEX for i, n in enumerate(_NAMES)}
)


def read_classes(path: Path) -> NDArray[Any]:
    """H×W class ids of a label: the first channel of a 16-bit RGB PNG (the second numbers the instances)."""
    with opened(path, "label") as image:
        tiles: Any = getattr(image, "tile", None)
        if tiles and tiles[0][3] == "RGB;16B":
            # Pillow keeps the high byte of 16-bit RGB; told that bytes are swapped, it keeps the low one, the class.
            image.tile = [(*tiles[0][:3], "RGB;16L")]  # type: ignore[attr-defined]
        pixels = np.array(image)
    return pixels[..., 0] if pixels.ndim == 3 else pixels


class Synthia(PublishedDataset):
    """`RGB/0000000.png` … with `GT/LABELS/0000000.png`, at the root or in `RAND_CITYSCAPES`; there are no splits.

    By default 16 classes: it has hardly any terrain, truck and train, and the field leaves them out.
    """

    name = "synthia"
    splits = ("all",)
    class_counts = (16, 13, 19)
    counts: ClassVar = {"all": 9400}

    def part(self, split: str, condition: str) -> Part:
        """One folder for all."""
        form = LabelForm(("GT/LABELS", "RAND_CITYSCAPES/GT/LABELS"), ".png", TABLE, read_classes)
        return Part(("RGB", "RAND_CITYSCAPES/RGB"), labels=(form,))
