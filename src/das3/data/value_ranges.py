"""Which values of image files are dark and which are bright: found in a sample of a data set, or as a user says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from das3.data.formats import Form
from das3.data.pixels import Pixels, choose_bands, seen_form
from das3.errors import RecipeError

__all__ = ["Range", "Source", "described", "find_pixels", "find_range", "left_out", "read_rule"]

Range = tuple[tuple[float, ...], tuple[float, ...]]
"""Low and high: one value each for all bands, or one for each band."""

_TAILS = (0.1, 99.9)
"""Percentiles between which values fill the range, where a few others lie far outside."""

_OUTLIERS = 1.25  # minimum and maximum are taken if they are at most this many times as far apart as the percentiles
_IMAGES, _PIXELS = 32, 50_000  # how many images are looked at, and how many pixels of each
_APART = 16  # bands get ranges of their own if one of them fills less than this part of the common one


def read_rule(text: str | Sequence[float | str]) -> tuple[str, tuple[float, float]]:
    """What `--pixel-range` says: ("auto" or "dtype", …), ("values", (low, high)) or ("percentile", (low, high)).

    Raises:
        RecipeError: if it says something else.
    """
    plain = text if isinstance(text, str) else ",".join(str(part) for part in text)
    kind, _, rest = plain.rpartition(":")
    try:
        if not kind and rest in ("auto", "dtype"):
            return rest, (0.0, 0.0)
        low, high = (float(part) for part in rest.split(","))
        share = kind == "percentile" and 0 <= low < high <= 100
        if share or (not kind and low < high and math.isfinite(high - low)):
            return kind or "values", (low, high)
    except ValueError:
        pass
    raise RecipeError(
        f"--pixel-range {plain}: give auto, dtype, two values such as 0,4095, or percentiles such as percentile:1,99"
    )


def find_range(values: NDArray[np.float64], dtype: str, rule: str | Sequence[float | str] = "auto") -> Range:
    """The range of a data set.

    Args:
        values: N×B, a sample of the values of its images; NaN where there is no data.
        dtype: of its files.
        rule: as `--pixel-range` says. "auto" is 0 to 255 for 8 bits; 0 to 2^b − 1 for other unsigned integers, b being
            the bits that all but 1 of 1000 values need; 0 to 1 for fractions in it; else minimum and maximum, without
            1 of 1000 values on either side if these lie far outside. Bands get ranges of their own where one of them
            fills less than 1/16 of what all of them take.

    Raises:
        RecipeError: if the rule can't be read.
    """
    kind, (low, high) = read_rule(rule)
    if kind == "values":
        return (low,), (high,)
    kinds = np.dtype(dtype)
    if kind == "dtype":
        whole = np.iinfo(kinds) if kinds.kind in "iu" else None
        return ((float(whole.min),), (float(whole.max),)) if whole else ((0.0,), (1.0,))
    found = values[np.isfinite(values)]
    if not found.size:
        return (0.0,), (1.0,)
    if kind == "percentile":
        return _apart(np.percentile(found, (low, high)))
    if dtype == "uint8":
        return (0.0,), (255.0,)
    common = _automatic(found, kinds.kind == "u")
    if values.shape[1] > 3:
        bands = [_automatic(band[np.isfinite(band)], kinds.kind == "u") for band in values.T]
        spans = [high[0] - low[0] for low, high in bands]
        if min(spans) * _APART < common[1][0] - common[0][0]:
            return tuple(low[0] for low, _ in bands), tuple(high[0] for _, high in bands)
    return common


def _automatic(values: NDArray[np.float64], unsigned: bool) -> Range:
    if not values.size:
        return (0.0,), (1.0,)
    low, high = np.percentile(values, _TAILS)
    if unsigned:
        return (0.0,), (float(2 ** max(1, int(high).bit_length()) - 1),)
    if values.min() >= 0 and values.max() <= 1 and high > 0.25:
        return (0.0,), (1.0,)
    if values.max() - values.min() <= _OUTLIERS * (high - low):
        low, high = values.min(), values.max()
    return _apart(np.array([low, high]))


def _apart(ends: NDArray[np.float64]) -> Range:
    low, high = (float(end) for end in ends)
    return (low,), (high if high > low else low + max(1.0, 1e-3 * abs(low)),)


class Source(Protocol):
    """Images whose samples can be had as they are stored."""

    def forms(self) -> Sequence[tuple[str, Form]]:
        """Name and form of all images, or of a sample where each costs a decoding."""
        ...

    def some(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """H×W×(all bands) samples of image i, or of parts of it, and its form, see `das3.data.pixels.seen_form`."""
        ...

    def __len__(self) -> int: ...


def find_pixels(
    source: Source,
    channels: int,
    *,
    pixel_range: str | Sequence[float | str] | None = None,
    nodata: float | None = None,
    bands: Sequence[int | str] | None = None,
    recorded: Pixels | None = None,
) -> Pixels | None:
    """How the images of a run are to be read.

    Args:
        source: the images.
        channels: how many bands the network takes.
        pixel_range: see `find_range`; what is recorded when None, else "auto".
        nodata, bands: see `Pixels`; what is recorded when None.
        recorded: what the model was trained or adapted with, if it says; a range of integers does not count for floats,
            nor one of floats for integers.

    Returns:
        None for pictures of 8 bits as they are, for a network that takes RGB.

    Raises:
        DataError: if an image does not have the bands, or can't be read.
        RecipeError: if the range can't be read.
    """
    bands = tuple(bands) if bands is not None else recorded.bands if recorded else None
    nodata = nodata if nodata is not None else recorded.nodata if recorded else None
    forms = [(name, seen_form(form, channels, bands)) for name, form, _ in _distinct(source.forms())]
    plain = all(form.plain and form.nodata is None for _, form in forms)
    if plain and channels == 3 and recorded is None and all(o is None for o in (pixel_range, nodata, bands)):
        return None
    for name, form in forms:
        choose_bands(form, channels, bands, name)
    dtype = str(np.result_type(*({form.dtype for _, form in forms} - {"uint8"} or {"uint8"})))
    if recorded and pixel_range is None and recorded.channels == channels and _alike(recorded.dtype, dtype):
        return replace(recorded, bands=bands, nodata=nodata)
    pixels = Pixels(channels, dtype, bands=bands, nodata=nodata)
    values = _sample(source, pixels)
    low, high = find_range(values, dtype, "auto" if pixel_range is None else pixel_range)
    pixels = replace(pixels, low=low, high=high)
    return replace(pixels, fill=_middle(values, pixels))


def _distinct(forms: Sequence[tuple[str, Form]]) -> list[tuple[str, Form, int]]:
    """Each form with the first image that has it, and with how many have: of very many images, a few objects."""
    counts = Counter(id(form) for _, form in forms)
    return [(name, form, counts.pop(id(form))) for name, form in forms if id(form) in counts]


def _alike(known: str, new: str) -> bool:
    """Whether a range found for files of one type makes sense for another; pictures of 8 bits have their own in any."""
    if "uint8" in (known, new):
        return new == "uint8"
    return (np.dtype(known).kind == "f") == (np.dtype(new).kind == "f")


def _sample(source: Source, pixels: Pixels) -> NDArray[np.float64]:
    """N×B values of some pixels of some images; NaN where there is no data."""
    found = [np.zeros((0, pixels.channels))]
    for i in np.unique(np.linspace(0, len(source) - 1, _IMAGES).round().astype(int)).tolist():
        samples, form = source.some(i, pixels.channels, pixels.bands)
        if form.dtype == "uint8" and pixels.dtype != "uint8":  # they have a range of their own
            continue
        values = samples[..., choose_bands(form, pixels.channels, pixels.bands, f"image {i}")]
        flat = values.reshape(-1, values.shape[-1])
        flat = flat[:: -(-len(flat) // _PIXELS)]
        missing = pixels.missing(flat, form)
        some = flat.astype(np.float64) if missing is None else np.where(missing, np.nan, flat.astype(np.float64))
        found.append(some.reshape(-1, pixels.channels))
    return np.concatenate(found)


def _middle(values: NDArray[np.float64], pixels: Pixels) -> tuple[float, ...]:
    """Median of each band, from 0 to 1: what is shown where there is no data, so that it changes little."""
    unit = (values - np.asarray(pixels.low)) / (np.asarray(pixels.high) - np.asarray(pixels.low))
    medians = [float(np.median(known)) if (known := band[np.isfinite(band)]).size else 0.5 for band in unit.T]
    return tuple(round(min(max(median, 0.0), 1.0), 4) for median in medians)


def left_out(forms: Sequence[tuple[str, Form]], pixels: Pixels | None) -> str | None:
    """What of the images is not used, in one line; None if all is."""
    channels, bands = (pixels.channels, pixels.bands) if pixels else (3, None)
    found: Counter[str] = Counter()
    for name, stored, count in _distinct(forms):
        form = seen_form(stored, channels, bands)
        used = set(choose_bands(form, channels, bands, name)) if pixels or form.bands != 2 else {0}  # as Pillow does
        if form.alpha is not None and form.alpha not in used:
            found["alpha"] += count
        rest = [i + 1 for i in range(form.bands) if i not in used and i != form.alpha]
        if rest and bands is None:
            found[f"band{'s' * (len(rest) > 1)} {_listed(rest)} of {form.bands}"] += count
        if form.pages > 1:
            found["pages after the first"] += count
    if not found:
        return None
    parts = [f"{what} ({count} of {len(forms)} images)" for what, count in found.most_common()]
    return f"not used: {', '.join(parts)}; --bands says which bands (or pages) are"


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def described(pixels: Pixels) -> str:
    """How values are read, in one line."""
    ends = [", ".join(f"{end:g}" for end in ends) for ends in (pixels.low, pixels.high)]
    bands = f", bands {', '.join(map(str, pixels.bands))}" if pixels.bands else ""
    what = f"images of {pixels.channels} band{'s' * (pixels.channels > 1)}, {pixels.dtype}{bands}"
    return f"{what}: values from {ends[0]} to {ends[1]} are dark to bright (--pixel-range says otherwise)"
