"""Images that may be larger than memory, read from top to bottom; label images written the same way."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from das3.data.formats import tiff_library
from das3.data.image_files import ImageFiles
from das3.data.pixels import Pixel, Pixels, seen_form
from das3.errors import DataError
from das3.files import part_of

__all__ = ["PngWriter", "Rows", "open_rows"]


class Rows(Protocol):
    """An image, a band of rows at a time.

    Attributes:
        shape: (height, width).
        valid: H×W, false where the rows that were read have no data; None if they all have.
    """

    shape: tuple[int, int]
    valid: NDArray[np.bool_] | None

    def read(self, top: int, bottom: int) -> Pixel:
        """Rows `top` to `bottom`, n×W×B; `top` must lie between the last call's `top` and `bottom`."""
        ...


@contextmanager
def open_rows(source: Pixel | str | Path, pixels: Pixels | None = None) -> Iterator[Rows]:
    """Rows of an array, H×W×B uint8 or float32 from 0 to 1, or of an image file.

    Of a TIFF, only what was asked for is in memory, and a row of its tiles, or a strip, if it is compressed. This takes
    a file whose bands lie together, in a compression that tifffile knows. Any other file is decoded whole: what reads
    PNG, JPEG and WebP can't begin in the middle.

    Args:
        source: array or file.
        pixels: how a file is read, see `das3.data.image_files.read_image`.

    Raises:
        DataError: if the file can't be decoded or lacks the bands.
    """
    if not isinstance(source, str | Path):
        yield _ArrayRows(source, lambda rows: (rows, None))
        return
    images = ImageFiles([Path(source)], Path(source).parent, pixels)
    with ExitStack() as stack:
        rows: Rows | None = None
        with suppress(Exception):  # tifffile can't read it: for Pillow to read, or to refuse
            rows = _tiff_rows(images, stack)
        if rows is None:
            image, valid = images.masked(0)
            rows = _ArrayRows(image, lambda part: (part, None))
            rows.valid = valid
        yield rows


Convert = Callable[[NDArray[Any]], tuple[Pixel, NDArray[np.bool_] | None]]
"""Rows as they are stored to rows as the network sees them, and where they have data."""


class _ArrayRows:
    def __init__(self, stored: NDArray[Any], convert: Convert) -> None:
        self.stored, self.convert = stored, convert
        self.shape: tuple[int, int] = (stored.shape[0], stored.shape[1])
        self.valid: NDArray[np.bool_] | None = None

    def read(self, top: int, bottom: int) -> Pixel:
        rows, valid = self.convert(self.stored[top:bottom])
        self.valid = _noted(self.valid, self.shape, top, valid)
        return rows


def _noted(
    known: NDArray[np.bool_] | None, shape: tuple[int, int], top: int, valid: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Where an image has data, with what is known of further rows."""
    if valid is None:
        return known
    known = np.ones(shape, np.bool_) if known is None else known
    known[top : top + len(valid)] = valid[: len(known) - top]
    return known


class _TiffRows:
    """Decodes each tile or strip once, and forgets the rows above those that are asked for.

    Raises:
        DataError: if it can't be decoded.
    """

    def __init__(self, path: Path, page: Any, convert: Convert, nothing: float = 0) -> None:
        self.path, self.page, self.convert, self.nothing = path, page, convert, nothing
        self.shape = (page.imagelength, page.imagewidth)
        self.valid: NDArray[np.bool_] | None = None
        self.decoded = 0
        self.segment = min(page.imagelength, page.tilelength or page.rowsperstrip)
        self.across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        self.segments = page.segments(maxworkers=1, buffersize=2**24)
        self.first = 0
        self.kept = self._next()

    def read(self, top: int, bottom: int) -> Pixel:
        pieces = [self.kept[top - self.first :]]
        while top + sum(map(len, pieces)) < bottom:
            pieces.append(self._next())
        self.first, self.kept = top, np.concatenate(pieces)
        return self.kept[: bottom - top]

    def _next(self) -> Pixel:
        """The next row of tiles, or strip."""
        shape = (self.segment, self.shape[1], self.page.samplesperpixel)
        band = np.full(shape, self.nothing, self.page.dtype.newbyteorder("="))
        for _ in range(self.across):
            try:
                pixels, (_, _, _, left, _), _ = next(self.segments)
            except Exception as error:  # whatever the decoders of a broken file raise
                raise DataError(f"can't read image {self.path} ({error}); repair or remove the file") from error
            if pixels is not None:  # a tile that the file leaves out is black, or has no data
                part = pixels[0][: self.segment, : self.shape[1] - left]
                band[: len(part), left : left + part.shape[1]] = part
        rows, valid = self.convert(band)
        self.valid = _noted(self.valid, self.shape, self.decoded, valid)
        self.decoded += len(rows)
        return rows


def _tiff_rows(images: ImageFiles, stack: ExitStack) -> Rows | None:
    """Rows of a TIFF that can be read in parts."""
    path = images.paths[0]
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    tifffile = tiff_library()
    form = images.form(0)
    page = stack.enter_context(tifffile.TiffFile(path)).pages[0]
    if not _in_rows(page):
        return None
    if images.is_plain(0):
        convert: Convert = lambda stored: (_rgb(stored), None)  # noqa: E731
    else:
        pixels = images.own_pixels()
        if form.reader != "page" or seen_form(form, pixels.channels, pixels.bands) != form:
            return None
        convert = lambda stored: pixels.convert(_native(stored), form, path)  # noqa: E731
    if page.is_memmappable:
        return _ArrayRows(tifffile.memmap(path, page=0, mode="r"), convert)
    return _TiffRows(path, page, convert, form.nodata or 0)


def _native(stored: NDArray[Any]) -> NDArray[Any]:
    """H×W×B in the machine's byte order."""
    stored = stored[..., None] if stored.ndim == 2 else stored
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _in_rows(page: Any) -> bool:
    """Grey, RGB or bands that lie together, upright, alpha not multiplied in."""
    in_jpeg = (page.photometric, page.compression) == (6, 7)  # YCbCr, which is decoded to RGB
    return (
        page.dtype != np.bool_
        and (page.photometric in (1, 2) or in_jpeg)
        and page.imagedepth == 1
        and (page.planarconfig == 1 or page.samplesperpixel == 1)
        and page.tags.valueof("Orientation", 1) == 1
        and 1 not in page.extrasamples
    )


def _rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """H×W or H×W×(1, 2, 3 or 4) of 8 bits to H×W×3, as `read_image` does."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)


class PngWriter:
    """A PNG of 8 bits, written row after row; a file of that name appears when the last one is in.

    Args:
        path: of the file; folders above it are made.
        shape: (height, width), or (height, width, 3) for RGB.
        colors: C×3 uint8, by which a viewer shows values below C, others black; grey if None.
    """

    def __init__(self, path: str | Path, shape: tuple[int, ...], colors: NDArray[np.uint8] | None = None) -> None:
        self.path = Path(path)
        self.part = part_of(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.row = tuple(shape[1:])
        self.packer = zlib.compressobj()
        self.file = self.part.open("wb")
        self.file.write(b"\x89PNG\r\n\x1a\n")
        kind = 2 if len(shape) == 3 else 0 if colors is None else 3
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, kind, 0, 0, 0))
        if colors is not None:
            table = np.zeros((256, 3), np.uint8)
            table[: len(colors)] = colors[:256]
            self._chunk(b"PLTE", table.tobytes())

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Append n×W values, or n×W×3."""
        if rows.shape[1:] != self.row:
            raise ValueError(f"rows of {self.row} are wanted, got {rows.shape[1:]}")
        filtered = np.pad(rows.reshape(len(rows), -1), ((0, 0), (1, 0)))  # each row begins with its filter: none
        self._chunk(b"IDAT", self.packer.compress(filtered.tobytes()))

    def _chunk(self, name: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._chunk(b"IDAT", self.packer.flush())
            self._chunk(b"IEND", b"")
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        if kind is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)
