"""Label image after image into files; further ones are read, and those before written, while one is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from das3.data.images import Images
from das3.data.visualize import palette
from das3.distributed import spare_cores
from das3.evaluation.predict import PredictOptions, Source, predict_labels
from das3.evaluation.prediction_files import predict_to_file, write_overlay, write_prediction
from das3.evaluation.reading import reading, source_of
from das3.losses import IGNORE_INDEX
from das3.segmenter import Segmenter
from das3.threads import behind

__all__ = ["label_file", "label_files"]

Track = Callable[[Sequence[int], str, int], Iterable[int]]


def label_file(folder: Path, name: str) -> Path:
    """Where the labels of an image of this name are written."""
    return folder / "labels" / f"{name}.png"


def label_files(
    segmenter: Segmenter,
    images: Images,
    indices: Sequence[int],
    folder: Path,
    *,
    values: Sequence[int] | None = None,
    overlays: bool = False,
    grey: bool = False,
    track: Track | None = None,
    **how: Unpack[PredictOptions],
) -> None:
    """Write labels/NAME.png of each image and, on request, the classes over it, overlays/NAME.png.

    Args:
        segmenter: the model, on the device.
        images: read as the model needs them.
        indices: of those to label, in order.
        folder: where to.
        values: see `das3.evaluation.prediction_files.write_prediction`.
        overlays: also write the labels over the images, with a legend of the classes that occur.
        grey: without a palette.
        track: wraps the iteration (items, what, total) to show its progress.
        how: see `PredictOptions`.

    Raises:
        ModelError, RecipeError, DataError: as `das3.evaluation.predict.predict_labels`.
    """
    colors = palette(segmenter.class_names)
    shown = None if grey else colors

    def write(name: str, source: Source, labels: NDArray[np.uint8]) -> None:
        if overlays:
            file = folder / "overlays" / f"{name}.png"
            write_overlay(file, source, labels, colors, segmenter.class_names, segmenter)
        write_prediction(folder, name, labels, values=values, shown=shown)

    device = next(segmenter.parameters()).device
    threads = max(1, spare_cores(device))
    tracked = track(indices, "predicting", len(indices)) if track else indices
    with (
        behind(threads, 2 * threads) as begin,
        reading(images, indices, device, partial(source_of, images)) as sources,
    ):
        for i, (source, valid) in zip(tracked, sources, strict=True):
            name = images.names[i]
            if isinstance(source, Path) and not overlays:  # too large for memory, perhaps
                predict_to_file(segmenter, source, label_file(folder, name), values=values, colors=shown, **how)
                continue
            labels = predict_labels(segmenter, source, **how)
            if valid is not None:
                labels[~valid] = IGNORE_INDEX
            if isinstance(source, Path):
                write(name, source, labels)  # one at a time in memory
            else:
                begin(write, name, source, labels)
