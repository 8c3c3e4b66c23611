"""Prediction at the image's own size, whole or in overlapping tiles, averaged over mirrored and scaled inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from das3.data.images import Size
from das3.data.pixels import Pixel
from das3.errors import ModelError, RecipeError
from das3.evaluation.tiled_io import Rows, open_rows
from das3.evaluation.tta import TestTimeAugmentation
from das3.losses import IGNORE_INDEX, most_likely
from das3.segmenter import Segmenter, evaluating

__all__ = [
    "Blocks",
    "PredictOptions",
    "Source",
    "label_tensor",
    "predict_batch",
    "predict_labels",
    "predict_probs",
    "predicting",
]

WHOLE_PIXELS = 4_200_000
"""Images of more pixels (of the network's input) than this are predicted in tiles by default."""

TILE = 1536
"""Side of those tiles, in pixels of the network's input: no more than half of the largest whole image. With 1024, 0.10
to 0.14 % of the pixels of an image of 20,000² got another label than in tiles elsewhere or whole, with 1536 0.02 to
0.03 % (benchmarks/large_image.py)."""

TILE_ALIGNMENT = 32
"""Tiles begin at multiples of this, so that a network's strides fall on the same pixels in all of them."""

_SMALLEST = 2 * TILE_ALIGNMENT
_VALUES = 2**24  # probabilities that are made at once when an image is predicted whole: 64 MiB

Source = Pixel | str | Path
Block = tuple[int, int, Tensor]  # top, left and probabilities C×n×m of a part of an image


class PredictOptions(TypedDict, total=False):
    """How an image is predicted.

    Attributes:
        size: what the image is resized to before the network; the segmenter's own `preprocess.size` when None, the
            default. A tile is scaled by the factor that the whole image would be.
        flip: average with the mirrored image's prediction.
        scales: average over these scales of the network's input; (1.0,) by default.
        tile: side of a tile in pixels of the image, 64 at least, rounded up to a multiple of 32. None, the default:
            whole up to `WHOLE_PIXELS`, in tiles beyond.
        overlap: least share of a tile that the next one covers again, in [0, 0.5]; 0.25 by default. The outer quarter
            of the overlap does not count, then a tile's weight rises linearly.
    """

    size: Size
    flip: bool
    scales: Sequence[float]
    tile: int | None
    overlap: float


@contextmanager
def predicting(segmenter: Segmenter) -> Iterator[None]:
    """In evaluation mode, without gradients."""
    # Not torch.inference_mode: tensors that a network keeps between calls (position tables) could not be trained with.
    with evaluating(segmenter), torch.no_grad():
        yield


def predict_batch(
    segmenter: Segmenter,
    images: Sequence[Pixel],
    *,
    size: Size = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Class probabilities of images of equal size, predicted whole in one batch.

    Args:
        segmenter: the model, on any device; predicts in evaluation mode, each layer's own mode is restored.
        images: B images H×W×K, uint8 or float32 in [0, 1]; K = 3 for RGB.
        size, flip, scales: see `PredictOptions`.

    Returns:
        B×C×H×W float32 at the images' own size, on the segmenter's device; the mean of the views' softmax of bilinearly
        upsampled logits, so each pixel sums to 1.

    Raises:
        ValueError: if the images differ in size.
        RecipeError: if a scale is not positive.
    """
    shapes = {image.shape[:2] for image in images}
    if len(shapes) != 1:
        raise ValueError(f"a batch needs images of one size, got {sorted(shapes)}")
    (shape,) = shapes
    views = TestTimeAugmentation(segmenter, size, flip, scales)
    with predicting(segmenter):
        return views.probs(views.logits(images, views.input_shape(shape)), shape, 0, shape[0])


def predict_probs(segmenter: Segmenter, image: Source, **how: Unpack[PredictOptions]) -> Tensor:
    """Class probabilities of one image.

    Args:
        segmenter: the model, on any device; predicts in evaluation mode, each layer's own mode is restored.
        image: H×W×K, uint8 or float32 in [0, 1] (K = 3 for RGB), or a file, read as the segmenter's `pixels` says.
        how: see `PredictOptions`.

    Returns:
        C×H×W float32 at the image's own size, on the segmenter's device; each pixel sums to 1.

    Raises:
        RecipeError: if a scale, the tile or the overlap can't be used.
        DataError: if the file can't be read.
    """
    blocks = Blocks(segmenter, **how)
    with open_rows(image, segmenter.pixels) as rows, predicting(segmenter):
        found = torch.empty((segmenter.num_classes, *rows.shape), device=blocks.device)
        for top, left, probs in blocks.of(rows):
            found[:, top : top + probs.shape[1], left : left + probs.shape[2]] = probs
    return found


def predict_labels(segmenter: Segmenter, image: Source, **how: Unpack[PredictOptions]) -> NDArray[np.uint8]:
    """Most probable class of each pixel; the probabilities of the whole image are never in memory at once.

    Args and errors are those of `predict_probs`.

    Returns:
        H×W uint8; 255 where a file has no data.

    Raises:
        ModelError: if there are more than 256 classes.
    """
    return label_tensor(segmenter, image, **how).cpu().numpy()


def label_tensor(segmenter: Segmenter, image: Source, **how: Unpack[PredictOptions]) -> Tensor:
    """`predict_labels`, left on the segmenter's device."""
    blocks = Blocks(segmenter, **how)
    with open_rows(image, segmenter.pixels) as rows, predicting(segmenter):
        labels = torch.cat(list(blocks.labels(rows)))
        if rows.valid is not None:
            labels[torch.from_numpy(~rows.valid).to(labels.device)] = IGNORE_INDEX
        return labels


@dataclass(frozen=True)
class Blocks(TestTimeAugmentation):
    """An image's prediction, one block after the other; `PredictOptions` says what the fields are."""

    tile: int | None = None
    overlap: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overlap <= 0.5:
            raise RecipeError(f"the overlap of tiles must be a share in [0, 0.5], got {self.overlap}")
        if self.tile is not None and self.tile < _SMALLEST:
            raise RecipeError(f"--tile must be {_SMALLEST} pixels or more, got {self.tile}")

    def labels(self, rows: Rows) -> Iterator[Tensor]:
        """Labels n×W uint8 from top to bottom."""
        if (classes := self.segmenter.num_classes) > 256:
            raise ModelError(f"labels are written in 8 bits; the model has {classes} classes, more than 256")
        pieces: list[Tensor] = []
        for _, left, probs in self.of(rows):
            pieces.append(most_likely(probs, 0).to(torch.uint8))
            if left + probs.shape[2] == rows.shape[1]:
                yield torch.cat(pieces, dim=1)
                pieces = []

    def of(self, rows: Rows) -> Iterator[Block]:
        """Blocks that make up the image, from left to right, from top to bottom."""
        side = self._side(rows.shape)
        if side is None or side >= max(rows.shape):
            return self._whole(rows)
        return self._tiled(rows, side)

    def _side(self, shape: tuple[int, int]) -> int | None:
        """Side of a tile, None where the image is small enough to be predicted whole."""
        tile = self.tile
        if tile is None:
            height, width = self.input_shape(shape)
            if height * width * max(self.scales) ** 2 <= WHOLE_PIXELS:
                return None
            tile = max(_SMALLEST, round(TILE * (shape[0] * shape[1] / (height * width)) ** 0.5))
        return -(-tile // TILE_ALIGNMENT) * TILE_ALIGNMENT

    def _whole(self, rows: Rows) -> Iterator[Block]:
        height, width = rows.shape
        logits = self.logits([rows.read(0, height)], self.input_shape(rows.shape))
        step = max(1, _VALUES // (self.segmenter.num_classes * width))
        for top in range(0, height, step):
            yield top, 0, self.probs(logits, rows.shape, top, min(top + step, height))[0]

    def _tiled(self, rows: Rows, tile: int) -> Iterator[Block]:
        """Blocks as soon as no further tile reaches into them; sums of the rest are carried on."""
        height, width = rows.shape
        target = self.input_shape(rows.shape)
        zoom = (target[0] / height, target[1] / width)
        tops, lefts = _spans(height, tile, self.overlap), _spans(width, tile, self.overlap)
        above: Tensor | None = None  # what tiles higher up have given to this band's first rows
        for top, bottom, done, row_weights in tops:
            strip = rows.read(top, bottom)
            below = torch.zeros((self.segmenter.num_classes, bottom - done, width), device=self.device)
            beside: Tensor | None = None  # what tiles further left in this band have given to the next one's columns
            for left, right, finished, column_weights in lefts:
                piece = strip[:, left:right]
                shape = piece.shape[:2]
                logits = self.logits([piece], (max(1, round(shape[0] * zoom[0])), max(1, round(shape[1] * zoom[1]))))
                part = self.probs(logits, shape, 0, shape[0])[0]
                part *= (row_weights[:, None] * column_weights).to(part)
                if beside is not None:
                    part[..., : beside.shape[-1]] += beside
                block, beside = part[..., : finished - left], part[..., finished - left :]
                if above is not None:
                    block[:, : above.shape[1]] += above[..., left:finished]
                below[..., left:finished] = block[:, done - top :]
                ready = block[:, : done - top]
                yield top, left, ready / ready.sum(dim=0)
            above = below


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int, int, Tensor]]:
    """Tiles along a side: (first pixel, end, first pixel of the next tile, weights)."""
    step = max(TILE_ALIGNMENT, int(tile * (1 - overlap)) // TILE_ALIGNMENT * TILE_ALIGNMENT)
    count = max(0, -(-(length - tile) // step)) + 1
    starts = [
        int(i * max(0, length - tile) / max(1, count - 1)) // TILE_ALIGNMENT * TILE_ALIGNMENT for i in range(count)
    ]
    starts = sorted(set(starts))
    nexts, stops = [*starts[1:], length], [*(start + tile for start in starts[:-1]), length]
    return [
        (start, stop, after, _weights(stop - start, tile - step, start > 0, stop < length))
        for start, stop, after in zip(starts, stops, nexts, strict=True)
    ]


def _weights(length: int, overlap: int, first: bool, last: bool) -> Tensor:
    """1, but towards sides where other tiles follow falling to 0, which it is on the outer quarter of the overlap.

    There the network sees its own padding instead of the image.
    """
    place, far = torch.arange(length) + 0.5, torch.full((length,), torch.inf)
    inside = torch.minimum(place if first else far, length - place if last else far)
    margin = overlap / 4
    return ((inside - margin) / max(1.0, overlap - 2 * margin)).clamp(0, 1)
