"""Small pictures as data URLs, so that the page needs nothing but itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from das3.data.images import resize_label
from das3.report.capture import SIDE

__all__ = ["changed_picture", "heat_picture", "label_picture", "largest_that_fit", "photo_picture"]

T = TypeVar("T")

BUDGET = 4_000_000
"""Bytes of all pictures of a page, at most."""

SMALLEST = 160
"""Longer side of the smallest pictures that are made, in pixels; even of noise, which does not compress, they fit."""

_NONE = 255  # pixels that the picture leaves transparent

# Anchor colours of matplotlib's "inferno" (CC0, by Nathaniel J. Smith and Stéfan van der Walt), dark to bright.
_INFERNO = [
    "#000004",
    "#1b0c41",
    "#4a0c6b",
    "#781c6d",
    "#a52c60",
    "#cf4446",
    "#ed6925",
    "#fb9b06",
    "#f7d13d",
    "#fcffa4",
]


def largest_that_fit(make: Callable[[int], T]) -> T:
    """What `make` returns for about the largest pictures with which it stays within `BUDGET`.

    Args:
        make: longer side of the pictures in pixels → values with the pictures in them.
    """
    side = SIDE
    made = make(side)
    while (size := len(str(made))) > BUDGET and side > SMALLEST:
        side = max(SMALLEST, int(side * min(0.9, (BUDGET / size) ** 0.5)))
        made = make(side)
    return made


def _data_url(data: bytes, kind: str) -> str:
    """A file as a data URL.

    Args:
        data: the file.
        kind: its MIME type, e.g. "image/png".
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def photo_picture(jpeg: bytes, side: int) -> str:
    """Data URL of a JPEG file, made smaller if its longer side is more than `side` pixels."""
    picture = Image.open(io.BytesIO(jpeg))
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=75, optimize=True)
        jpeg = buffer.getvalue()
    return _data_url(jpeg, "image/jpeg")


def label_picture(labels: NDArray[np.uint8], colors: NDArray[np.uint8], side: int) -> str:
    """Data URL of class colours; ignored pixels (255) are transparent."""
    return _palette_png(_small(labels, side), colors, transparent=True)


def changed_picture(before: NDArray[np.uint8], after: NDArray[np.uint8], colors: NDArray[np.uint8], side: int) -> str:
    """Data URL of the pixels whose class changed, in the colour of their new class; the others are transparent."""
    changed = np.where(before == after, _NONE, after).astype(np.uint8)
    return _palette_png(_small(changed, side), colors, transparent=True)


def heat_picture(values: NDArray[np.uint8], side: int) -> str:
    """Data URL of H×W values 0 … 255 on a scale from black to bright yellow, in 32 steps, which compress better."""
    return _palette_png(_small(values, side) // 8, heat_colors(32), transparent=False)


def heat_colors(count: int) -> NDArray[np.uint8]:
    """count×3 colours from dark to bright."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _INFERNO], float)
    place = np.linspace(0, len(anchors) - 1, count)
    channels = [np.interp(place, np.arange(len(anchors)), anchors[:, k]) for k in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _small(values: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    factor = min(1.0, side / max(values.shape))
    return resize_label(values, (max(1, round(values.shape[0] * factor)), max(1, round(values.shape[1] * factor))))


def _palette_png(values: NDArray[np.uint8], colors: NDArray[np.uint8], *, transparent: bool) -> str:
    picture, buffer = Image.fromarray(values), io.BytesIO()
    picture.putpalette(np.resize(colors, (256, 3)).tobytes())
    picture.save(buffer, "PNG", **({"transparency": _NONE} if transparent else {}))
    return _data_url(buffer.getvalue(), "image/png")
