"""Plain JPEG and PNG files as Pillow would give them: their form from the first bytes, and their pixels.

Of 100,000 images Pillow takes half a minute to open the JPEG files, and hours to see that no PNG file has its
orientation after its pixels, for which it decodes them. It takes longer than imagecodecs to decode a file, and keeps
all other threads waiting for a part of that time, among them the one that a GPU waits for (decision 0033). What is out
of the ordinary is left to Pillow: metadata that may turn the image, transparency, other depths, and damage, so that one
place says what is wrong.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from das3.data.formats import Form, names_of_bands

__all__ = ["quick_file", "quick_form", "quick_pixels"]

_SUFFIXES = (".jpg", ".jpeg", ".png")
_HEAD = 8192
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_LARGEST = 2**31  # pixels
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_SOS, _DQT, _APP2 = 0xDA, 0xDB, 0xE2
_IGNORED = (0xC4, 0xDD, 0xE0, 0xEE, 0xFE)  # Huffman tables, restart interval, JFIF, Adobe, comment
_SEGMENT = struct.Struct(">BBH").unpack_from
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOR, _PALETTE = 25, b"\3"  # where a PNG file says its colour type
_PNG_BANDS = {0: 1, 2: 3, 3: 3}  # colour type → bands; palettes become RGB
_HARMLESS = (b"PLTE", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"tIME", b"hIST", b"tEXt")
"""PNG chunks that have no say in what is read here."""


def quick_form(path: Path) -> Form | None:
    """The form of an ordinary JPEG or PNG file of 8 bits; None for any other file, and where Pillow has to look.

    It may be called in threads, which Pillow's reading may not: that sets the process's filters of warnings.
    """
    file = _open(path)
    if file is None:
        return None
    try:
        head = os.read(file, _HEAD)
        if head.startswith(_JPEG):
            return _jpeg_form(head)
        return _png_form(head, file) if head.startswith(_PNG) else None
    except OSError:
        return None
    finally:
        os.close(file)


def _open(path: Path) -> int | None:
    """Number of an open file; None for no file, or one by whose name it is no JPEG or PNG."""
    name = str(path)
    try:
        # Opening a named pipe would wait forever.
        ordinary = name.lower().endswith(_SUFFIXES) and stat.S_ISREG(os.stat(name).st_mode)
        return os.open(name, os.O_RDONLY | _BINARY) if ordinary else None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def quick_file(path: Path, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """As `quick_pixels`, of a file."""
    file = _open(path)
    if file is None:
        return None
    try:
        data = os.read(file, os.fstat(file).st_size)  # in few calls, each of which lets another thread run Python
    except OSError:
        return None
    finally:
        os.close(file)
    return quick_pixels(data, size)


def quick_pixels(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """H×W×3 uint8 of an ordinary JPEG or PNG file of 8 bits; None for any other file, and where Pillow has to look.

    Threads that decode hardly wait for each other.

    Args:
        data: the whole file.
        size: (height, width) that is expected; None is returned for others.
    """
    import imagecodecs

    form, is_jpeg = None, data.startswith(_JPEG)
    if is_jpeg and data.endswith(_JPEG_END):  # of a file that was cut off the rest would be grey
        form = _jpeg_form(data)
    elif data.startswith(_PNG) and data[_PNG_COLOR : _PNG_COLOR + 1] != _PALETTE:
        form = _png_form(data)
    if form is None or form.size != size:
        return None
    try:
        pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data) if is_jpeg else imagecodecs.png_decode(data)
    except (RuntimeError, ValueError, ImportError):  # damaged, or a codec that is not installed
        return None
    return np.repeat(pixels.reshape(*size, 1), 3, axis=2) if form.bands == 1 else pixels


@lru_cache(1024)
def _picture(height: int, width: int, bands: int) -> Form:
    """One object for all images of a size, which are very many."""
    return Form((height, width), bands=bands, names=names_of_bands(bands))


def _jpeg_form(head: bytes) -> Form | None:
    """Goes through the segments up to the pixels."""
    at, form, size = 2, None, len(head)
    while at + 4 <= size:
        mark, kind, length = _SEGMENT(head, at)
        end = at + 2 + length
        if mark != 0xFF or length < 2 or end > size:
            return None
        if kind == _SOS:
            return form
        if kind in _SOF and form is None:
            form = _frame(head[at + 4 : end])
            if form is None:
                return None
        elif kind not in _IGNORED and not _is_harmless(kind, head[at + 4 : end]):
            return None
        at = end
    return None


def _frame(data: bytes) -> Form | None:
    if len(data) < 6:
        return None
    bits, height, width, bands = struct.unpack_from(">BHHB", data)
    usual = bits == 8 and bands in (1, 3) and len(data) == 6 + 3 * bands and 0 < height * width <= _LARGEST
    return _picture(height, width, bands) if usual else None


def _is_harmless(kind: int, data: bytes) -> bool:
    """Whether a segment has no say in size, bands and orientation, and nothing is wrong with it."""
    if kind == _DQT:
        return len(data) % 65 == 0
    if kind == _APP2:  # may also hold further pictures
        return data.startswith(b"ICC_PROFILE\0")
    return False


def _png_form(head: bytes, file: int | None = None) -> Form | None:
    """Goes through the chunks to the last one: what turns an image may come after its pixels.

    Args:
        head: first bytes of the file, all of them where `file` is None.
        file: to read the others from.
    """
    if len(head) < 33:
        return None
    width, height, bits, color, *_ = struct.unpack_from(">IIBBBBB", head, 16)
    if head[8:16] != b"\0\0\0\rIHDR" or bits != 8 or color not in _PNG_BANDS or not 0 < height * width <= _LARGEST:
        return None
    at, pixels = 8, False
    while True:
        start = head[at : at + 8] if at + 8 <= len(head) or file is None else _read(file, at)
        if len(start) < 8:
            return None
        length, kind = struct.unpack(">I4s", start)
        end = at + 12 + length
        if kind == b"IEND":
            return _picture(height, width, _PNG_BANDS[color]) if pixels and length == 0 else None
        if kind == b"IDAT":
            pixels = True
        elif not (at == 8 or kind in _HARMLESS) or not _is_sound(head, at, end):
            return None
        at = end


def _read(file: int, at: int) -> bytes:
    os.lseek(file, at, os.SEEK_SET)
    return os.read(file, 8)


def _is_sound(head: bytes, at: int, end: int) -> bool:
    """Whether a chunk is among the first bytes, as it was written, and no text that Pillow takes for EXIF data."""
    if end > len(head) or head[at + 8 :].startswith(b"Raw profile"):
        return False
    return zlib.crc32(head[at + 4 : end - 4]) == int.from_bytes(head[end - 4 : end], "big")
