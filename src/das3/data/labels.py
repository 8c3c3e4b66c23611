"""Labels of images, for source training and evaluation only; no stage imports this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.class_table import ClassTable, load_classes
from das3.data.decoding import opened, refuse_large
from das3.data.images import Images
from das3.data.matching import abbreviate
from das3.data.pixels import Pixel
from das3.errors import DataError
from das3.losses import IGNORE_INDEX

__all__ = [
    "ClassTable",
    "Labelled",
    "classify",
    "decode_label",
    "find_table",
    "load_classes",
    "read_label",
]

Decode = Callable[[Path], NDArray[Any]]
"""A label file → H×W integer ids, or H×W×3 uint8 colours."""


class Labelled:
    """Images with labels.

    Args:
        images: the images.
        paths: label file of each.
        table: what the values mean.
        decode: how to read a file; the usual formats by default.

    Attributes:
        images: as given.
        num_classes, class_names: from the table.
    """

    def __init__(self, images: Images, paths: Sequence[Path], table: ClassTable, decode: Decode | None = None) -> None:
        self.images, self.paths, self.table = images, list(paths), table
        self.decode = decode or decode_label
        self.num_classes, self.class_names = len(table.names), table.names

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> Pixel:
        """As in `images`: H×W×3 uint8 RGB, or other bands."""
        return self.images[i]

    def read_as(self, images: Images) -> Labelled:
        """The same labels for the same images, read in another way."""
        changed = copy(self)
        changed.images = images
        return changed

    def renamed(self, class_names: Sequence[str]) -> Labelled:
        """The same with other names of the classes."""
        changed = copy(self)
        changed.table = replace(self.table, names=tuple(class_names))
        changed.class_names = changed.table.names
        return changed

    def only(self, chosen: Sequence[int]) -> Labelled:
        """Those of these indices alone."""
        changed = copy(self)
        changed.images, changed.paths = self.images.only(chosen), [self.paths[i] for i in chosen]
        return changed

    def label(self, i: int) -> NDArray[np.uint8]:
        """H×W uint8 class ids, 255 where ignored.

        Raises:
            DataError: if the file can't be read, has values without a class, or another size than its image.
        """
        label = read_label(self.paths[i], self.table, self.decode)
        height, width = self.images.size(i)
        if label.shape != (height, width):
            raise DataError(
                f"label {self.paths[i]} is {label.shape[1]}×{label.shape[0]} but its image is {width}×{height} "
                "(width×height); give labels of the images' size"
            )
        return label

    def check(self, sample: int | None = None) -> None:
        """Read `sample` labels (all if None), evenly spread.

        Raises:
            DataError: naming the first file that does not fit, see `label`.
        """
        for i in evenly_spaced(len(self), sample):
            self.label(i)


def evenly_spaced(total: int, sample: int | None) -> list[int]:
    """Indices of `sample` of `total` things, evenly spread; of all if None."""
    count = total if sample is None else min(sample, total)
    return [int(i) for i in np.linspace(0, total - 1, count).round()]


def decode_label(path: Path) -> NDArray[Any]:
    """Pixels of a label file: H×W integer ids, of a palette file its indices; H×W×3 uint8 of an RGB file.

    Raises:
        DataError: if it can't be read or holds fractions.
    """
    with opened(path, "label") as image:
        refuse_large(path, (image.height, image.width), len(image.getbands()), "label")
        mode = image.mode
        # Converting a palette image would turn ids into colours.
        pixels: NDArray[Any] = np.array(image.convert(_OPAQUE[mode]) if mode in _OPAQUE else image)
    if mode == "1":
        pixels = pixels.astype(np.uint8)
    elif mode == "PA":
        pixels = pixels[..., 0]
    elif pixels.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # of infinity, which is no whole number either
            fractions, pixels = pixels, np.nan_to_num(pixels, nan=-1).astype(np.int64)
        if (fractions != pixels).any():
            raise DataError(f"label {path} holds fractions; give integer class ids")
    return pixels


_OPAQUE = {"RGBA": "RGB", "LA": "L", "CMYK": "RGB", "YCbCr": "RGB"}


def read_label(path: Path, table: ClassTable, decode: Decode = decode_label) -> NDArray[np.uint8]:
    """Decode one label file: an id map (8, 16 or 32 bit), a palette PNG (its indices), a mask, or colours.

    Returns:
        H×W uint8 class ids, 255 where ignored.

    Raises:
        DataError: if it can't be read or has values outside the class table.
    """
    classes, unknown = classify(decode(path), table)
    if unknown:
        jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        remedy = "export labels as PNG, JPEG changes them" if jpeg else "give a table with --classes, or a --class-map"
        raise DataError(
            f"label {path} has {'colours' if unknown[0].startswith('#') else 'ids'} that are in no class: "
            f"{abbreviate(unknown)}; there are {len(table.names)} classes ({abbreviate(table.names)}): {remedy}"
        )
    return classes


def classify(pixels: NDArray[Any], table: ClassTable) -> tuple[NDArray[np.uint8], list[str]]:
    """Classes of decoded label pixels, and the values that are in no class (255 in the result).

    Without colours in the table, an RGB label is an id map if its channels agree.
    """
    colored = pixels.ndim == 3
    if colored and table.color_ids is None and (pixels == pixels[..., :1]).all():
        pixels, colored = pixels[..., 0], False
    if colored:
        pixels = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    classes = _look_up(pixels, table.known_colors if colored else table.known_ids)
    unknown = np.unique(pixels[classes < 0]).tolist()
    found = np.where(classes < 0, IGNORE_INDEX, classes).astype(np.uint8)
    return found, [f"#{v:06x}" if colored else str(v) for v in unknown]


def _look_up(values: NDArray[Any], known: Mapping[int, int]) -> NDArray[np.int16]:
    """Class of each value, −1 for unknown ones."""
    if values.dtype == np.uint8:
        table: NDArray[np.int16] = _look_up(np.arange(256), known)[values]
        return table
    keys = np.array(sorted(known), np.int64)
    classes = np.array([known[key] for key in keys.tolist()], np.int16)
    place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    found: NDArray[np.int16] = np.where(keys[place] == values, classes[place], np.int16(-1))
    return found


def find_table(labels: Path, classes: str | Path | None = None, num_classes: int | None = None) -> ClassTable:
    """The table that is named, lies in, beside or above the labels, or follows from the number of classes.

    Raises:
        DataError: if there is none.
    """
    if classes is not None:
        return load_classes(classes)
    for folder in (labels, labels.parent, labels.parent.parent):
        for name in ("classes.json", "classes.yaml", "classes.yml"):
            if (folder / name).is_file():
                return load_classes(folder / name)
    if num_classes is None:
        raise DataError(
            f"the meaning of the values in {labels} is unknown; give a table with --classes, or --num-classes"
        )
    return ClassTable(tuple(f"class {c}" for c in range(num_classes)))
