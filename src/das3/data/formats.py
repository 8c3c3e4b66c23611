"""What is in an image file, and its samples as they are stored: any depth, any number of bands, any layout.

Nothing here changes a value. `das3.data.pixels` turns samples into what a network sees.
"""

from __future__ import annotations

import logging
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from das3.errors import DataError

__all__ = [
    "Form",
    "codec_samples",
    "file_form",
    "geo_tags",
    "names_of_bands",
    "pillow_form",
    "pillow_samples",
    "tiff_library",
    "tiff_parts",
    "tiff_samples",
]

_GEO = (33550, 33920, 33922, 34264, 34735, 34736, 34737, 50844)
"""TIFF tags of GeoTIFF: pixel scale, tie points, transform, keys of the CRS, and rational polynomials."""

_PNG_BANDS = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type → samples a pixel
_LOOKED = 32  # of so many pages it is seen whether they are copies of the first
_MOST_BANDS = 64  # an array whose last side is this short is taken for bands, not for the width of a page


@dataclass(frozen=True)
class Form:
    """What an image file holds, as its header says.

    Attributes:
        size: (height, width), upright.
        dtype: of the samples, as NumPy names it.
        bands: samples of a pixel, alpha among them.
        pages: how many pages (frames, slices) there are; one is an image.
        stack: the pages are of one size and one band each, so that they may be bands as well.
        alpha: index of the alpha band, None without one.
        names: of the bands, lower case; empty where the file says nothing.
        nodata: value that stands for no data, as GDAL's tag says.
        reader: what decodes the samples: Pillow, imagecodecs, tifffile a page, tifffile a series of pages,
            pydicom or nibabel.
        band_axis: where the bands are in the series that tifffile reads.
        orientation: EXIF's, 1 to 8.
        inverted: 0 is white.
        bits: of a sample.
        plain: an 8-bit picture, which Pillow turns to RGB.
    """

    size: tuple[int, int]
    dtype: str = "uint8"
    bands: int = 3
    pages: int = 1
    stack: bool = False
    alpha: int | None = None
    names: tuple[str, ...] = ()
    nodata: float | None = None
    reader: Literal["pillow", "codec", "page", "series", "dicom", "nifti"] = "pillow"
    band_axis: int = 0
    orientation: int = 1
    inverted: bool = False
    bits: int = 8
    plain: bool = True

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel as it is stored, of all bands."""
        return self.bands * np.dtype(self.dtype).itemsize

    @property
    def as_stack(self) -> Form:
        """The same file with its pages taken for bands."""
        return replace(self, bands=self.pages, pages=1, alpha=None, names=(), reader="series", plain=False)


def file_form(path: Path) -> Form | None:
    """The form of a TIFF, or of a PNG or JPEG 2000 of more than 8 bits, from its header; None for other files, which
    Pillow knows best.

    Raises:
        DataError: if it is of a kind that can't be used.
        Exception: of any other kind, if the header is damaged.
    """
    kind = {".tif": _tiff_form, ".tiff": _tiff_form, ".png": _png_form, ".jp2": _jp2_form}.get(path.suffix.lower())
    return kind(path) if kind else None


def pillow_form(image: Image.Image) -> Form:
    """The form of an opened image."""
    width, height = image.size
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    pages = getattr(image, "n_frames", 1) if image.format not in ("GIF", "WEBP") else 1
    if image.mode.startswith("I"):
        wide = image.mode == "I" and image.format != "PPM"  # Pillow opens PGM of 16 bits as 32 bits
        return Form(size, "int32" if wide else "uint16", 1, pages, bits=16, plain=False)
    if image.mode == "F":
        return Form(size, "float32", 1, pages, bits=32, plain=False)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        bands = 2 if image.mode == "LA" else 4
        return Form(size, bands=bands, pages=pages, alpha=bands - 1, names=names_of_bands(bands - 1))
    bands = 1 if image.mode in ("1", "L") else 3
    return Form(size, bands=bands, pages=pages, names=names_of_bands(bands))


def names_of_bands(bands: int) -> tuple[str, ...]:
    """Names of the bands of a picture."""
    return ("red", "green", "blue") if bands == 3 else ()


def pillow_samples(image: Image.Image) -> NDArray[Any]:
    """H×W×B samples of an opened image, upright, alpha included."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif not (image.mode in ("L", "LA", "F", "RGB") or image.mode.startswith("I")):
        image = image.convert("RGB")
    return _with_bands(np.array(image))


def _with_bands(samples: NDArray[Any]) -> NDArray[Any]:
    return samples[:, :, None] if samples.ndim == 2 else samples


def _png_form(path: Path) -> Form | None:
    """Pillow reads PNG of 16 bits a sample as such if it is grey alone, so these are read by libpng itself."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[24] != 16 or head[25] not in _PNG_BANDS:
        return None
    width, height = struct.unpack(">II", head[16:24])
    bands = _PNG_BANDS[head[25]]
    alpha = bands - 1 if bands in (2, 4) else None
    with Image.open(path) as image:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    names = names_of_bands(bands - (alpha is not None))
    return Form(
        _turned((height, width), orientation), "uint16", bands, alpha=alpha, names=names, reader="codec",
        orientation=orientation, bits=16, plain=False,
    )  # fmt: skip


def _jp2_form(path: Path) -> Form | None:
    """Pillow reads more than 8 bits of grey alone."""
    with path.open("rb") as file:
        head = file.read(256)
    start = head.find(b"ihdr") + 4
    if start < 4 or len(head) < start + 11:
        return None
    height, width, bands, depth = struct.unpack(">IIHB", head[start : start + 11])
    bits = (depth & 0x7F) + 1
    if depth == 0xFF or bits <= 8:
        return None
    dtype = f"{'int' if depth & 0x80 else 'uint'}{16 if bits <= 16 else 32}"
    return Form((height, width), dtype, bands, names=names_of_bands(bands), reader="codec", bits=bits, plain=False)


def codec_samples(path: Path, form: Form) -> NDArray[Any]:
    """H×W×B of a PNG or JPEG 2000 of more than 8 bits."""
    import imagecodecs

    decode = imagecodecs.png_decode if path.suffix.lower() == ".png" else imagecodecs.jpeg2k_decode
    return _upright(_with_bands(decode(path.read_bytes())), form.orientation)


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation in (5, 6, 7, 8) else size


def _upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """H×W×B as EXIF says it is to be seen."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def _tiff_form(path: Path) -> Form:
    with tiff_library().TiffFile(path) as file:
        page: Any = file.pages[0]
        series: Any = file.series[0]
        orientation = int(page.tags.valueof("Orientation", 1))
        dtype = np.dtype(page.dtype)
        form = Form(
            _turned((page.imagelength, page.imagewidth), orientation),
            str(dtype.newbyteorder("=")) if dtype != np.bool_ else "uint8",
            page.samplesperpixel,
            _count_pages(file),
            orientation=orientation,
            bits=page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0],
            nodata=_nodata(page),
            alpha=next((page.samplesperpixel - len(page.extrasamples) + i for i, kind in enumerate(page.extrasamples)
                        if kind in (1, 2)), None),
            reader="page",
        )  # fmt: skip
        if _pillow_knows(page) and not _is_array(file, series):
            named = replace(form, reader="page" if page.photometric in (1, 2) else "pillow", names=_band_names(page))
            return replace(named, stack=_is_stack(form, file, series))
        if page.photometric not in (0, 1, 2) or page.imagedepth > 1 or dtype.kind not in "buif":
            what = getattr(page.photometric, "name", page.photometric)
            raise DataError(
                f"can't read image {path}: it is a TIFF of {what}, {dtype.name}; convert it to grey, RGB or bands of "
                "integers or floats"
            )
        form = replace(form, plain=False, inverted=page.photometric == 0, names=_band_names(page))
        return _of_series(form, file, series)


def _pillow_knows(page: Any) -> bool:
    """8 bits (or 1) and up to four samples, which Pillow reads as a picture."""
    return page.dtype in (np.uint8, np.bool_) and page.samplesperpixel <= 4 and page.imagedepth == 1


def _is_array(file: Any, series: Any) -> bool:
    """Y×X×bands that tifffile has cut into Y pages of X×bands, since nothing said that the last side is bands."""
    shape = series.shape
    return bool(file.is_shaped and len(shape) == 3 and series.axes.endswith("YX") and len(file.pages) > 1) and (
        shape[2] <= _MOST_BANDS and shape[2] < min(shape[:2])
    )


def _is_stack(form: Form, file: Any, series: Any) -> bool:
    """Several pages of one size and one band each."""
    return len(series.shape) == 3 and form.bands == 1 and len(file.pages) > 1


def _count_pages(file: Any) -> int:
    """Pages that are images of their own, not smaller copies or masks of another."""
    some = [file.pages[i] for i in range(min(_LOOKED, len(file.pages)))]
    return sum(not page.subfiletype & 0b101 for page in some) + max(0, len(file.pages) - _LOOKED)


def _of_series(form: Form, file: Any, series: Any) -> Form:
    """Pages that are one image's bands, or a stack."""
    shape = series.shape
    if not _is_stack(form, file, series):
        return form
    if _is_array(file, series):
        return replace(
            form, size=_turned(shape[:2], form.orientation), bands=shape[2], pages=1, reader="series", band_axis=2
        )
    if series.axes == "CYX":
        return replace(form, bands=shape[0], pages=1, reader="series")
    return replace(form, stack=True)


def tiff_library() -> Any:
    """tifffile, which would log what it finds wrong in a file before it raises an error, or does not."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def _nodata(page: Any) -> float | None:
    """GDAL's tag."""
    text = page.tags.valueof(42113)
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def _band_names(page: Any) -> tuple[str, ...]:
    """GDAL's descriptions of the bands; red, green and blue where the file is RGB and says nothing else."""
    count = page.samplesperpixel
    item = r'<Item name="DESCRIPTION" sample="(\d+)"[^>]*>([^<]*)</Item>'
    found = {int(number): name.strip().lower() for number, name in re.findall(item, str(page.tags.valueof(42112, "")))}
    known = ("red", "green", "blue") if page.photometric == 2 else ()
    names = [found.get(i) or (known[i] if i < len(known) else "") for i in range(count)]
    return tuple(names) if any(names) else ()


def tiff_samples(path: Path, form: Form) -> NDArray[Any]:
    """H×W×B samples of a TIFF as they are stored, upright."""
    with tiff_library().TiffFile(path) as file:
        if form.reader == "series":
            samples = np.moveaxis(file.series[0].asarray(), form.band_axis, -1)
        else:
            page: Any = file.pages[0]
            samples = page.asarray()
            if samples.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
                samples = samples.transpose(1, 2, 0)
    samples = _upright(_with_bands(samples), form.orientation)
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    return _dark_is_low(samples, form)


def tiff_parts(path: Path, most: int = 16) -> NDArray[Any]:
    """N×1×B samples of a few strips or tiles of a TIFF whose bands lie together, or of some rows if it has one strip.

    Raises:
        ValueError: if they can't be had without the rest.
    """
    tifffile = tiff_library()
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        bands, native = page.samplesperpixel, page.dtype.newbyteorder("=")
        if page.is_memmappable and page.planarconfig == 1:
            rows = tifffile.memmap(path, page=0, mode="r")
            parts = [np.asarray(rows[i]) for i in _spread(len(rows), most)]
            return np.concatenate([part.reshape(-1, 1, bands) for part in parts]).astype(native)
        if page.planarconfig != 1 and bands > 1:
            raise ValueError(
                "its bands lie apart, and it is too large to be read whole; save it with its bands together"
            )
        parts = []
        for i in _spread(len(page.dataoffsets), most):
            if page.databytecounts[i]:
                file.filehandle.seek(page.dataoffsets[i])
                part = page.decode(file.filehandle.read(page.databytecounts[i]), i)[0]
                parts.append(part.reshape(-1, 1, bands))
        return np.concatenate(parts).astype(native) if parts else np.zeros((1, 1, bands), native)


def _spread(total: int, most: int) -> list[int]:
    return [int(i) for i in np.unique(np.linspace(0, total - 1, most).round())]


def _dark_is_low(samples: NDArray[Any], form: Form) -> NDArray[Any]:
    """Where 0 is white, the other way round."""
    if form.inverted and samples.dtype.kind == "u":
        samples = (2**form.bits - 1 - samples.astype(np.int64)).astype(samples.dtype)
    return samples


def geo_tags(path: Path) -> list[tuple[int, Any, int, Any, bool]]:
    """Where on earth a GeoTIFF lies, as tags that tifffile writes again; empty for any other file."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return []
    try:
        with tiff_library().TiffFile(path) as file:
            tags = [tag for tag in file.pages[0].tags if tag.code in _GEO]
            return [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in tags]
    except Exception:  # no TIFF after all, or a damaged one: whoever reads its pixels says so
        return []
