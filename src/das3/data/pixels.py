"""From the samples of image files to the bands that a network sees: the one place that knows of value ranges.

Images are handed on as H×W×B arrays, uint8 from 0 to 255 or float32 from 0 to 1; `to_unit` makes one of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from das3.data.formats import Form
from das3.errors import DataError

__all__ = ["Pixels", "as_rgb8", "choose_bands", "seen_form", "to_unit"]

Pixel = NDArray[Any]
"""H×W×B uint8 from 0 to 255, or float32 from 0 to 1."""

Masked = tuple[Pixel, NDArray[np.bool_] | None]
"""An image, and H×W where it has data; None where it has everywhere."""

_AT_ONCE = 2**20  # values that are computed with in float64 at once, to spare memory

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601), as Pillow takes them."""


def to_unit(values: Tensor) -> Tensor:
    """Pixels of either kind as float32 from 0 to 1; uint8 is divided by 255."""
    return values.float().div_(255) if values.dtype == torch.uint8 else values.float()


def as_rgb8(image: Pixel, rgb: Sequence[int] = (0, 1, 2)) -> NDArray[np.uint8]:
    """H×W×3 uint8 for a person to look at.

    Args:
        image: H×W×B, uint8 or float32 from 0 to 1.
        rgb: which bands are shown as red, green and blue.
    """
    if image.dtype == np.uint8 and image.shape[-1] == 3 and tuple(rgb) == (0, 1, 2):
        return image
    shown = image[..., [min(band, image.shape[-1] - 1) for band in rgb]]
    return shown if shown.dtype == np.uint8 else (shown * 255).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Pixels:
    """How samples of image files become what a network sees: one rule for all images of a run.

    Attributes:
        channels: B, how many bands the network takes.
        dtype: of the samples for which the range was found, as NumPy names it.
        low: the value that becomes 0: one for all bands, or one for each.
        high: the value that becomes 1, likewise.
        bands: which bands of a file, by number from 1 or by name; None takes them as they come.
        nodata: value that stands for no data, besides NaN and what a file itself says.
        fill: what is shown where there is no data, from 0 to 1: one for all bands, or one for each.

    Raises:
        ValueError: if these can't be values of images.
    """

    channels: int = 3
    dtype: str = "uint8"
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (255.0,)
    bands: tuple[int | str, ...] | None = None
    nodata: float | None = None
    fill: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        ends = (self.low, self.high, self.fill)
        if type(self.channels) is not int or self.channels < 1 or np.dtype(self.dtype).kind not in "uif":
            raise ValueError(f"no images have {self.channels!r} bands of type {self.dtype!r}")
        if not all(len(end) in (1, self.channels) and np.isfinite(end).all() for end in ends):
            raise ValueError(f"low, high and fill must be one number each, or one per band, got {ends}")
        if not all(0 <= value <= 1 for value in self.fill):
            raise ValueError(f"fill must be from 0 to 1, got {self.fill}")
        if self.bands is not None and not all(isinstance(band, int | str) for band in (*self.bands, 0)):
            raise ValueError(f"bands must be numbers or names, got {self.bands}")
        if self.nodata is not None and not (isinstance(self.nodata, int | float) and math.isfinite(self.nodata)):
            raise ValueError(f"nodata must be a finite number, got {self.nodata!r}")
        if not np.less(self.low, self.high).all():
            raise ValueError(f"high must be above low, got {self.low} and {self.high}")

    @property
    def is_plain(self) -> bool:
        """Whether pixels stay 8-bit values as they are in the files."""
        return (self.dtype, self.low, self.high) == ("uint8", (0.0,), (255.0,))

    def convert(self, samples: NDArray[Any], form: Form, name: object) -> Masked:
        """What the network sees of an image, and where there is data.

        Args:
            samples: H×W×(all bands) as they are in the file.
            form: of the file.
            name: of the file, for errors.

        Returns:
            H×W×B uint8 if all files are pictures of 8 bits, else float32 from 0 to 1, values outside the range clipped;
            and H×W, false where no band has data, None where all have.

        Raises:
            DataError: if the file does not have the bands.
        """
        chosen = choose_bands(form, self.channels, self.bands, name)
        values = samples[..., chosen] if chosen != list(range(samples.shape[-1])) else samples
        missing = self.missing(values, form)
        valid: NDArray[np.bool_] | None = None if missing is None else np.logical_not(missing.all(axis=-1))
        if self.is_plain and values.dtype == np.uint8:
            return np.ascontiguousarray(self._mixed(values)), valid
        unit = self._unit(values)
        if missing is not None:
            unit = np.where(missing, np.asarray(self.fill, np.float32), unit)
        return np.ascontiguousarray(self._mixed(unit)), valid

    def missing(self, values: NDArray[Any], form: Form) -> NDArray[np.bool_] | None:
        """Samples without data, of the shape of `values`; None if there are none."""
        found = np.zeros(values.shape, np.bool_)
        if values.dtype.kind == "f":
            found |= ~np.isfinite(values)
        for nodata in {form.nodata, self.nodata} - {None}:
            # A float32 file holds its own rounding of the value.
            found |= values == (np.float32(nodata) if values.dtype == np.float32 else nodata)
        return found if found.any() else None

    def _unit(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """The range as 0 to 1; of pictures of 8 bits among deeper ones, their own."""
        if values.dtype == np.uint8 and self.dtype != "uint8":
            return values.astype(np.float32) / np.float32(255)
        low, high = np.asarray(self.low), np.asarray(self.high)
        unit = np.empty(values.shape, np.float32)
        rows = max(1, _AT_ONCE // max(1, values[0].size))
        with np.errstate(invalid="ignore", over="ignore"):
            for top in range(0, len(values), rows):
                part = slice(top, top + rows)
                unit[part] = (values[part].astype(np.float64) - low) / (high - low)
        return np.nan_to_num(unit, copy=False, nan=0).clip(0, 1, out=unit)

    def _mixed(self, values: Pixel) -> Pixel:
        """Colours as grey, where the network takes one band."""
        if self.channels != 1 or values.shape[-1] == 1:
            return values
        grey = values.astype(np.float32) @ np.array(LUMA, np.float32)
        grey = grey.round().astype(np.uint8) if values.dtype == np.uint8 else grey
        return grey[..., None]


def seen_form(form: Form, channels: int, bands: Sequence[int | str] | None) -> Form:
    """The form as it is read: the pages of a stack are bands where bands are named, or as many as the network takes."""
    wanted = bands is not None or (form.pages == channels and channels > 3)
    return form.as_stack if form.stack and wanted else form


def choose_bands(form: Form, channels: int, bands: Sequence[int | str] | None, name: object) -> list[int]:
    """Indices of the bands of a file that a network takes, three for its colours where it takes grey.

    Alpha is left out, but taken where the network wants as many bands as there are with it. Grey is taken three times
    by a network that wants colours.

    Args:
        form: of the file, see `seen_form`.
        channels: how many bands the network takes.
        bands: numbers from 1, or names; None takes them as they come.
        name: of the file, for errors.

    Raises:
        DataError: if there are no such bands, or another number of them than the network takes.
    """
    if bands is not None:
        chosen = [band_index(form, band, name) for band in bands]
        if len(chosen) != channels:
            raise DataError(f"--bands names {len(chosen)} bands, but the network takes {channels}")
        return chosen
    seen = [i for i in range(form.bands) if i != form.alpha]
    if len(seen) == channels:
        return seen
    if form.bands == channels:
        return list(range(channels))
    colours = [form.names.index(c) for c in ("red", "green", "blue") if c in form.names]
    if len(colours) == 3 and channels in (1, 3):
        return colours
    if len(seen) == 1 and channels == 3:
        return seen * 3
    if len(seen) > channels:
        return seen[:channels]
    raise DataError(
        f"{name} has {len(seen)} band{'s' * (len(seen) != 1)}, but the network takes {channels}; say which with "
        "--bands, where one may be named more than once, or give images with more bands"
    )


def band_index(form: Form, band: int | str, name: object) -> int:
    """Where a band named by number from 1, or by its name, is.

    Raises:
        DataError: if there is no such band.
    """
    if isinstance(band, int) and 1 <= band <= form.bands:
        return band - 1
    if isinstance(band, str) and band.lower() in form.names:
        return form.names.index(band.lower())
    known = ", ".join(filter(None, form.names)) or "without names"
    raise DataError(f"{name} has no band {band}; it has {form.bands} ({known}), numbered from 1")
