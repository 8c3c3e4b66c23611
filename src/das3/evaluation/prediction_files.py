"""Predictions in files: labels, coloured pictures, overlays, GeoTIFF and probabilities."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from das3.data.class_table import ClassTable
from das3.data.decoding import opened
from das3.data.formats import geo_tags, tiff_library
from das3.data.pixels import as_rgb8
from das3.data.visualize import legend, overlay
from das3.errors import DataError
from das3.evaluation.predict import Blocks, PredictOptions, Source, predicting
from das3.evaluation.tiled_io import PngWriter, open_rows
from das3.files import write_atomically
from das3.losses import IGNORE_INDEX
from das3.segmenter import Segmenter

__all__ = [
    "file_values",
    "predict_to_file",
    "without_data",
    "write_geotiff",
    "write_overlay",
    "write_prediction",
]

_BAND = 256  # rows of an overlay that are made at once


def predict_to_file(
    segmenter: Segmenter,
    image: Source,
    out: str | Path,
    *,
    values: Sequence[int] | None = None,
    colors: NDArray[np.uint8] | None = None,
    **how: Unpack[PredictOptions],
) -> Path:
    """Label an image into a PNG, row by row.

    In tiles, memory holds one band of the image, one of labels, one tile's probabilities and those of the overlap with
    the next band (C × overlap × W float32); `das3.evaluation.tiled_io.open_rows` says which files need more. An image
    that the model resizes to few pixels is not tiled by itself; it is read whole.

    Args:
        segmenter, image, how: see `predict_probs`.
        out: the file, of 8 bits.
        colors: C×3, in which a viewer shows the classes (a palette; readers of palette images see the class ids); grey
            if None, and where `values` are given.
        values: pixel value of each class in the file; the class ids when None. (0, 255) writes a mask. Where the image
            has no data, the file has 255, or 0 if 255 stands for a class.

    Returns:
        `out`.

    Raises:
        ModelError, RecipeError, DataError: as `predict_labels`.
    """
    blocks, table, shown = Blocks(segmenter, **how), _value_table(values), colors if values is None else None
    with open_rows(image, segmenter.pixels) as rows, predicting(segmenter), PngWriter(out, rows.shape, shown) as file:
        top, nothing = 0, without_data(values)
        for band in blocks.labels(rows):
            written = table[band.cpu().numpy()]
            if rows.valid is not None:
                written[~rows.valid[top : top + len(written)]] = nothing
            file.write(written)
            top += len(written)
    return Path(out)


def write_prediction(
    folder: str | Path,
    name: str,
    labels: NDArray[np.uint8],
    *,
    values: Sequence[int] | None = None,
    colors: NDArray[np.uint8] | None = None,
    image: NDArray[np.uint8] | None = None,
    probs: Tensor | None = None,
    shown: NDArray[np.uint8] | None = None,
) -> Path:
    """Write a prediction: always labels/NAME.png, the rest on request. Files are written atomically, the labels last.

    Args:
        folder: where to; sub-folders are made.
        name: of the image, as in `Images.names`; may have folders in it.
        labels: H×W uint8 class ids.
        values: pixel value of each class in the label file; the class ids when None. `file_values` of a class table
            gives those that its data set uses, e.g. Cityscapes' label ids for its server; (0, 255) writes a mask.
        colors: C×3; also write colors/NAME.png, a palette image of the class ids.
        image: H×W×3 uint8; also write overlays/NAME.png, the colours over the image. Needs `colors`.
        shown: C×3; the colours in which a viewer shows the label file, where it has no `values`; grey if None.
        probs: C×H×W; also write probs/NAME.npz, float16 under the key "probs".

    Returns:
        The label file.
    """
    folder = Path(folder)
    if probs is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, probs=probs.to(torch.float16).cpu().numpy())
        write_atomically(folder / "probs" / f"{name}.npz", buffer.getvalue())
    if colors is not None:
        picture = Image.fromarray(labels)
        picture.putpalette(colors.astype(np.uint8).tobytes())
        _save_png(folder / "colors" / f"{name}.png", picture)
        if image is not None:
            _save_png(folder / "overlays" / f"{name}.png", Image.fromarray(overlay(image, labels, colors)))
    path = folder / "labels" / f"{name}.png"
    written = _value_table(values)[labels]
    if values is not None:
        written[labels == IGNORE_INDEX] = without_data(values)
    file = Image.fromarray(written)
    if shown is not None and values is None:
        file.putpalette(np.concatenate([shown, np.zeros((256 - len(shown), 3), np.uint8)]).tobytes())
    _save_png(path, file)
    return path


def write_overlay(
    path: str | Path,
    image: Source,
    labels: NDArray[np.uint8],
    colors: NDArray[np.uint8],
    names: Sequence[str],
    segmenter: Segmenter,
) -> Path:
    """The class colours over the image, above a legend of the classes that occur, written in bands of rows.

    Args:
        path: the PNG file.
        image: H×W×K array or a file, read as the segmenter's `pixels` says.
        labels: H×W uint8.
        colors: C×3.
        names: of the classes.
        segmenter: says which bands are red, green and blue.
    """
    occurring = [c for c in np.unique(labels).tolist() if c < len(names)]
    key = legend([names[c] for c in occurring], colors[occurring], labels.shape[1])
    height, width = labels.shape
    with open_rows(image, segmenter.pixels) as rows, PngWriter(path, (height + len(key), width, 3)) as file:
        for top in range(0, height, _BAND):
            seen = as_rgb8(rows.read(top, min(top + _BAND, height)), segmenter.preprocess.rgb_bands)
            file.write(overlay(seen, labels[top : top + _BAND], colors))
        file.write(key)
    return Path(path)


def write_geotiff(labels: Path, image: Path, nodata: int) -> Path | None:
    """Beside a label PNG, the same labels as GeoTIFF where the image is one, with its transform and CRS.

    Args:
        labels: the PNG, of the image's size.
        image: file that was labelled.
        nodata: value in the labels where there is no data.

    Returns:
        The file; None if the image says nothing of where on earth it is.
    """
    tags = geo_tags(image)
    if not tags:
        return None
    path, buffer = labels.with_suffix(".tif"), io.BytesIO()
    with opened(labels, "label") as picture:
        values = np.array(picture)
    tags.append((42113, 2, 0, str(nodata), True))
    tiff_library().imwrite(
        buffer, values, photometric="minisblack", compression="zlib", tile=(256, 256), extratags=tags, metadata=None
    )
    write_atomically(path, buffer.getvalue())
    return path


def file_values(table: ClassTable) -> tuple[int, ...]:
    """Pixel value of each class in the data set's own label files; the smallest one if there are several.

    Raises:
        DataError: if the table has no value for a class.
    """
    found = {c: value for value, c in sorted(table.known_ids.items(), reverse=True)}
    without = [name for c, name in enumerate(table.names) if c not in found]
    if without:
        raise DataError(f"the class table has no id for {', '.join(without)}; labels can't be written in its ids")
    return tuple(found[c] for c in range(len(table.names)))


def without_data(values: Sequence[int] | None) -> int:
    """What label files have where the image has no data."""
    return IGNORE_INDEX if values is None or IGNORE_INDEX not in values else 0


def _value_table(values: Sequence[int] | None) -> NDArray[np.uint8]:
    table = np.arange(256, dtype=np.uint8)
    if values is not None:
        table[: len(values)] = values
    return table


def _save_png(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
