"""Image files decoded: only formats and sizes that das3 takes, and whatever breaks is an error that names the file."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from das3.data.formats import Form, codec_samples, file_form, pillow_form, pillow_samples, tiff_samples
from das3.data.medical import DICOM, dicom_form, dicom_samples
from das3.data.quick_forms import quick_form
from das3.errors import DataError
from das3.text_files import describe_special

__all__ = [
    "is_large",
    "open_picture",
    "opened",
    "probe",
    "readable",
    "reason_of",
    "refuse_large",
    "samples_of",
    "to_rgb",
]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000")
"""What Pillow may take a file for, whatever its name: its other readers are little used, and one starts Ghostscript."""

LARGEST = 2**31
"""Pixels of the largest image that is opened; aerial images exceed Pillow's own limit, broken files this one."""

LARGEST_DECODED = 3 * 2**28
"""Bytes of the largest image that is decoded at once, as 16384×16384 RGB has: decoding takes about three times that."""


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """H×W×3 uint8 of a Pillow image of 8 bits, see `read_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def probe(path: Path) -> Form:
    """What an image file holds, from its header.

    Raises:
        DataError: if it is no image.
    """
    if (quick := quick_form(path)) is not None:
        return quick
    with readable(path):
        _refuse_special(path)
        form = _header(path)
        if form is not None and math.prod(form.size) > LARGEST:
            raise ValueError(f"{form.size[1]}×{form.size[0]} pixels are more than das3 opens")
    if form is not None and not form.plain:
        return form
    try:
        with opened(path) as image:
            seen = pillow_form(image)
    except DataError:
        if form is None:
            raise
        return replace(form, plain=False)  # 8 bits in a layout that Pillow does not know
    if form is None:
        return seen
    return form if form.reader == "page" else replace(seen, pages=form.pages)


def _refuse_special(path: str | Path, what: str = "image") -> None:
    """Raise DataError at what is no file; opening a named pipe would wait forever."""
    if special := describe_special(path):
        raise DataError(f"can't read {what} {path}: it is {special}, not a file; take it out")


def _header(path: Path) -> Form | None:
    try:
        return dicom_form(path) if path.suffix.lower() in DICOM else file_form(path)
    except (DataError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # whatever a damaged header raises: it may be a picture to Pillow all the same
        with suppress(DataError), opened(path) as image:
            return pillow_form(image)
        raise error


def samples_of(path: Path, form: Form) -> NDArray[Any]:
    """H×W×(all bands) as they are stored.

    Raises:
        DataError: if the file can't be decoded.
    """
    refuse_large(path, form.size, form.pixel_bytes)
    if form.reader == "pillow":
        with opened(path) as image:
            return pillow_samples(image)
    with readable(path):
        read = {"codec": codec_samples, "dicom": dicom_samples}.get(form.reader, tiff_samples)
        samples = read(path, form)
        if samples.shape != (*form.size, form.bands):
            raise ValueError("its pixels are not what its header says")
    return samples


class _NoWarnings:
    """Within, nothing warns, in as many threads as there may be: filters are the process's, and no thread may put back
    those that another one had set."""

    def __init__(self) -> None:
        self.lock, self.within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.within:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
            self.within += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.within -= 1
            if not self.within:
                self.filters.__exit__(None, None, None)


_NO_WARNINGS = _NoWarnings()
_OPENING = threading.Lock()


@contextmanager
def readable(path: str | Path, what: str = "image") -> Iterator[None]:
    """Whatever goes wrong inside is a DataError that names the file."""
    try:
        with _NO_WARNINGS:  # of damage that is an error in the end, or none
            yield
    except DataError:
        raise
    except Exception as error:  # a broken file makes parsers trip in any way there is
        instead = ", or leave it out by --on-bad-image skip" if what == "image" else ""
        raise DataError(
            f"can't read {what} {path} ({reason_of(error)}); repair the file or take it out{instead}"
        ) from error


@contextmanager
def opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """The file as a Pillow image; whatever goes wrong inside is a DataError that names the file."""
    with readable(path, what):
        _refuse_special(path, what)
        with open_picture(path) as image:
            yield image


def open_picture(path: str | Path | IO[bytes]) -> Image.Image:
    """As Pillow opens it, of das3's formats and sizes only; the pixels are not decoded."""
    with _OPENING:  # the limit is the process's, and threads open images at the same time
        limit = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow warns beyond this and refuses twice as much
            return Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def is_large(size: tuple[int, int], sample_bytes: int = 3) -> bool:
    """Whether pixels of an image, (height, width), are more than `LARGEST_DECODED` bytes."""
    return math.prod(size) * sample_bytes > LARGEST_DECODED


def refuse_large(path: str | Path, size: tuple[int, int], sample_bytes: int = 3, what: str = "image") -> None:
    """Stop before an image is decoded that would take the machine's memory: damaged files and bombs say any size.

    Args:
        path: the file.
        size: (height, width) that its header says.
        sample_bytes: bytes of a pixel.
        what: the file is.

    Raises:
        DataError: if its pixels are more than `LARGEST_DECODED` bytes.
    """
    if is_large(size, sample_bytes):
        raise DataError(
            f"can't read {what} {path}: {size[1]}×{size[0]} pixels are more than das3 decodes at once; cut it into "
            "pieces, or, to predict, save it as a TIFF of strips or tiles"
        )


def reason_of(error: Exception) -> str:
    """Why a file can't be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
