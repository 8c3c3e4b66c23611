"""Images that may be larger than memory, read from top to bottom; label images written the same way."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from das3.data.images import read_image
from das3.errors import DataError

__all__ = ["PngWriter", "Rows", "open_rows"]


class Rows(Protocol):
    """An image, a band of rows at a time.

    Attributes:
        shape: (height, width).
    """

    shape: tuple[int, int]

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Rows `top` to `bottom`, n×W×3; `top` must lie between the last call's `top` and `bottom`."""
        ...


@contextmanager
def open_rows(source: NDArray[np.uint8] | str | Path) -> Iterator[Rows]:
    """Rows of an H×W×3 array or of an image file.

    Of a TIFF, only what was asked for is in memory, and a row of its tiles, or a strip, if it is compressed. This takes
    the package tifffile, and a file of 8 or 16 bits, grey or RGB, with or without alpha, in a compression that tifffile
    knows (many more with imagecodecs). Any other file is decoded whole, 3 bytes a pixel: what reads PNG, JPEG and WebP
    can't begin in the middle.

    Raises:
        DataError: if the file can't be decoded.
    """
    if not isinstance(source, str | Path):
        yield _ArrayRows(source)
        return
    with ExitStack() as stack:
        rows: Rows | None = None
        with suppress(Exception):  # tifffile is not there, or can't read it: for Pillow to read, or to refuse
            rows = _tiff_rows(Path(source), stack)
        yield rows or _ArrayRows(read_image(source))


class _ArrayRows:
    def __init__(self, pixels: NDArray[Any]) -> None:
        self.pixels = pixels
        self.shape: tuple[int, int] = (pixels.shape[0], pixels.shape[1])

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        return _rgb(self.pixels[top:bottom])


class _TiffRows:
    """Decodes each tile or strip once, and forgets the rows above those that are asked for.

    Raises:
        DataError: if it can't be decoded.
    """

    def __init__(self, path: Path, page: Any) -> None:
        self.path = path
        self.shape = (page.imagelength, page.imagewidth)
        self.segment = min(page.imagelength, page.tilelength or page.rowsperstrip)
        self.across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        self.segments = page.segments(maxworkers=1, buffersize=2**24)
        self.first = 0
        self.kept = self._next()

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        pieces = [self.kept[top - self.first :]]
        while top + sum(map(len, pieces)) < bottom:
            pieces.append(self._next())
        self.first, self.kept = top, np.concatenate(pieces)
        return self.kept[: bottom - top]

    def _next(self) -> NDArray[np.uint8]:
        """The next row of tiles, or strip."""
        band = np.zeros((self.segment, self.shape[1], 3), np.uint8)
        for _ in range(self.across):
            try:
                pixels, (_, _, _, left, _), _ = next(self.segments)
            except Exception as error:  # whatever the decoders of a broken file raise
                raise DataError(f"can't read image {self.path} ({error}); repair or remove the file") from error
            if pixels is not None:  # a tile that the file leaves out is black
                part = _rgb(pixels[0])[: self.segment, : self.shape[1] - left]
                band[: len(part), left : left + part.shape[1]] = part
        return band


def _tiff_rows(path: Path, stack: ExitStack) -> Rows | None:
    """Rows of a TIFF that can be read in parts."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    tifffile = import_module("tifffile")
    page = stack.enter_context(tifffile.TiffFile(path)).pages[0]
    if not _is_plain(page):
        return None
    if page.is_memmappable:
        return _ArrayRows(tifffile.memmap(path, page=0, mode="r"))
    return _TiffRows(path, page)


def _is_plain(page: Any) -> bool:
    """Grey or RGB of 8 or 16 bits, upright, channels together, alpha not multiplied in."""
    in_jpeg = (page.photometric, page.compression) == (6, 7)  # YCbCr, which is decoded to RGB
    return (
        page.dtype in (np.uint8, np.uint16)
        and (page.photometric in (1, 2) or in_jpeg)
        and page.imagedepth == 1
        and (page.planarconfig == 1 or page.samplesperpixel == 1)
        and page.tags.valueof("Orientation", 1) == 1
        and 1 not in page.extrasamples
    )


def _rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """H×W or H×W×(1, 2, 3 or 4) of 8 or 16 bits to H×W×3, as `read_image` does."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype.itemsize == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)


class PngWriter:
    """An 8-bit grey PNG, written row after row; a file of that name appears when the last one is in.

    Args:
        path: of the file; folders above it are made.
        shape: (height, width).
    """

    def __init__(self, path: str | Path, shape: tuple[int, int]) -> None:
        self.path = Path(path)
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.packer = zlib.compressobj()
        self.file = self.part.open("wb")
        self.file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0))

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Append n×W values."""
        filtered = np.pad(rows, ((0, 0), (1, 0)))  # each row begins with its filter: none
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
