"""Predictions of a model on images, as Python code wants them: made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from das3.data.images import Images
from das3.evaluation.predict import PredictOptions, Source, predict_labels
from das3.evaluation.reading import reading, source_of
from das3.losses import IGNORE_INDEX
from das3.segmenter import Segmenter

__all__ = ["Predictions"]


class Predictions(Sequence[NDArray[np.uint8]]):
    """Labels of images, one H×W uint8 array of class ids per image at the image's own size; 255 where it has no data.

    Nothing is kept: each access predicts, so any number of images needs the memory of a few; `list(predictions)` keeps
    them all.

    Args:
        segmenter: the model; used as it is at the time of each access.
        images: read as the model needs them, see `das3.models.image_reading.fit_images`.
        autocast: makes the context in which the network runs, for mixed precision.
        **how: see `das3.evaluation.predict.PredictOptions`.

    Attributes:
        names: of the images, in the same order.
        class_names: what the ids mean.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        images: Images,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        **how: Unpack[PredictOptions],
    ) -> None:
        self.segmenter, self.images, self.autocast, self.how = segmenter, images, autocast, how
        self.names, self.class_names = list(images.names), segmenter.class_names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        """Predict image i; an IndexError ends iteration."""
        return self._labels(*source_of(self.images, range(len(self))[i]))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The same one by one, further images being read meanwhile."""
        device = next(self.segmenter.parameters()).device
        with reading(self.images, range(len(self)), device, partial(source_of, self.images)) as sources:
            for source, valid in sources:
                yield self._labels(source, valid)

    def _labels(self, source: Source, valid: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        with self.autocast():
            labels = predict_labels(self.segmenter, source, **self.how)
        return labels if valid is None else np.where(valid, labels, np.uint8(IGNORE_INDEX))

    def __repr__(self) -> str:
        return f"Predictions({len(self)} images, {self.segmenter.num_classes} classes)"
