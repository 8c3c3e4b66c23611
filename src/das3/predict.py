"""Prediction at the image's own size, whole or in overlapping tiles, with flip and multi-scale averaging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from das3.data.images import Size, resized_shape
from das3.segmenter import Segmenter

__all__ = ["evaluation_mode", "predict_labels", "predict_probs"]

WHOLE_PIXELS = 4_200_000
"""Images of more pixels (after resizing) than this are predicted in tiles unless told otherwise."""


@contextmanager
def evaluation_mode(segmenter: Segmenter) -> Iterator[None]:
    """eval() and no gradients inside; the mode is restored."""
    was_training = segmenter.training
    segmenter.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        segmenter.train(was_training)


def predict_probs(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    *,
    size: Size = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Class probabilities of one image, predicted whole.

    Args:
        segmenter: the model, on any device.
        image: H×W×3 uint8 RGB.
        size: what the image is resized to before the network; the segmenter's own `preprocess.size` when None.
        flip: average with the mirrored image's prediction.
        scales: average over these zooms of the network's input.

    Returns:
        C×H×W float32 at the image's own size, on the segmenter's device; each pixel sums to 1.
    """
    device = next(segmenter.parameters()).device
    height, width = resized_shape(image.shape[:2], size or segmenter.preprocess.size)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255
    total: Tensor | None = None
    with evaluation_mode(segmenter):
        for scale in scales:
            shape = (max(1, round(height * scale)), max(1, round(width * scale)))
            for mirrored in (False, True) if flip else (False,):
                scaled = _zoom(pixels, shape)
                logits = segmenter(scaled.flip(-1) if mirrored else scaled).float()
                logits = logits.flip(-1) if mirrored else logits
                probs = F.interpolate(logits, size=image.shape[:2], mode="bilinear").softmax(dim=1)[0]
                total = probs if total is None else total + probs
    assert total is not None
    return total / total.sum(dim=0, keepdim=True)


def _zoom(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    if pixels.shape[-2:] == shape:
        return pixels
    return F.interpolate(pixels, size=shape, mode="bilinear", antialias=True).clamp(0, 1)


def predict_labels(
    segmenter: Segmenter,
    image: NDArray[np.uint8] | Path,
    *,
    size: Size = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    tile: int | None = None,
    overlap: float = 0.25,
) -> NDArray[np.uint8]:
    """Class ids of one image; in tiles where it is too large to be predicted whole.

    The probabilities of a band of tiles are blended with weights that fall towards the tiles' edges; only that band and
    the one-byte result are in memory.

    Args:
        segmenter: the model.
        image: H×W×3 uint8 RGB, or a file, which is decoded whole (3 bytes a pixel; the prediction is what is large).
        size: see `predict_probs`; a tile is zoomed by the factor that the whole image would be.
        flip, scales: see `predict_probs`.
        tile: side of a tile in pixels of the image; None predicts whole up to about 4 million pixels after resizing and
            in tiles of 1024 beyond.
        overlap: share of a tile that the next one covers again, in [0, 0.5].

    Returns:
        H×W uint8.
    """
    if isinstance(image, Path):
        from das3.data.images import read_image

        image = read_image(image)
    shape: tuple[int, int] = image.shape[:2]
    own = size or segmenter.preprocess.size
    target = resized_shape(shape, own)
    if tile is None:
        tile = 1024 if target[0] * target[1] > WHOLE_PIXELS else max(shape)
    if max(shape) <= tile:
        probs = predict_probs(segmenter, image, size=own, flip=flip, scales=scales)
        return probs.argmax(dim=0).to(torch.uint8).cpu().numpy()
    zoom = (target[0] / shape[0], target[1] / shape[1])
    labels = np.zeros(shape, np.uint8)
    rows = _starts(shape[0], tile, overlap)
    pending: Tensor | None = None  # weighted probabilities of rows that the next band still adds to
    for number, top in enumerate(rows):
        band = _band(segmenter, image[top : top + tile], tile, overlap, zoom, flip, scales)
        if pending is not None:
            band[:, : pending.shape[1]] += pending
        done = (rows[number + 1] if number + 1 < len(rows) else shape[0]) - top
        labels[top : top + done] = band[:, :done].argmax(dim=0).to(torch.uint8).cpu().numpy()
        pending = band[:, done:]
    return labels


def _band(
    segmenter: Segmenter,
    strip: NDArray[np.uint8],
    tile: int,
    overlap: float,
    zoom: tuple[float, float],
    flip: bool,
    scales: Sequence[float],
) -> Tensor:
    """Weighted sums of the probabilities of one row of tiles, C×h×W."""
    height, width = strip.shape[:2]
    total: Tensor | None = None
    for left in _starts(width, tile, overlap):
        piece = strip[:, left : left + tile]
        shape = (max(1, round(height * zoom[0])), max(1, round(piece.shape[1] * zoom[1])))
        probs = predict_probs(segmenter, piece, size=shape, flip=flip, scales=scales)
        if total is None:
            total = probs.new_zeros((probs.shape[0], height, width))
        window = _ramp(height, tile, overlap)[:, None] * _ramp(piece.shape[1], tile, overlap)[None]
        total[:, :, left : left + tile] += probs * window.to(probs)
    assert total is not None
    return total


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles that cover `length`, the last flush with the end."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // max(1, round(tile * (1 - overlap)))) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, tile: int, overlap: float) -> Tensor:
    """Weights that rise from the edges to 1 over the overlap; never 0, so that every pixel has one."""
    edge = max(1.0, tile * overlap)
    place = torch.arange(length) + 0.5
    return (torch.minimum(place, length - place) / edge).clamp(max=1.0)
