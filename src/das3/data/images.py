"""Target images from a folder tree, a list file or a dataset object, of any usual format. Nothing here knows labels."""

from __future__ import annotations

import math
import mmap
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from das3.data.formats import Form, codec_samples, file_form, pillow_form, pillow_samples, tiff_parts, tiff_samples
from das3.data.medical import (
    DICOM,
    dicom_form,
    dicom_samples,
    is_nifti,
    nifti_shape,
    nifti_slice,
    slice_names,
)
from das3.data.pixels import Pixel, Pixels, choose_bands, seen_form
from das3.data.value_ranges import find_pixels, left_out
from das3.errors import Das3Error, DataError
from das3.text_files import describe_special

__all__ = [
    "DatasetImages",
    "FittedImages",
    "ImageFiles",
    "Images",
    "VolumeSlices",
    "find_files",
    "image_files",
    "is_image_file",
    "read_image",
    "resize_image",
    "resize_label",
    "resized_shape",
]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".gif", ".jp2", *DICOM}
)

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000")
"""What Pillow may take a file for, whatever its name: its other readers are little used, and one starts Ghostscript."""

LARGEST = 2**31
"""Pixels of the largest image that is opened; aerial images exceed Pillow's own limit, broken files this one."""

LARGEST_DECODED = 3 * 2**28
"""Bytes of the largest image that is decoded at once, as 16384×16384 RGB has: decoding takes about three times that."""

Size = int | tuple[int, int] | None
"""None keeps the image's size, an int is the length of the shorter side, a tuple is (height, width)."""


def read_image(path: str | Path, pixels: Pixels | None = None) -> Pixel:
    """Decode an image of any mode, depth and number of bands.

    Pictures of 8 bits become RGB: grey, palette, CMYK and 1-bit images are converted; an alpha channel is dropped, not
    composited on anything. EXIF orientation is applied; of an animation or multi-page file the first frame is taken.
    Others are read as `pixels` says, and keep their depth.

    Args:
        path: the file.
        pixels: how the run reads its images; None is right for pictures of 8 bits, and takes others as if the file were
            the whole data set, see `das3.data.value_ranges.find_range`.

    Returns:
        H×W×3 uint8 of pictures of 8 bits, unless `pixels` says otherwise; else H×W×B float32 from 0 to 1.

    Raises:
        DataError: if the file can't be decoded or lacks the bands.
    """
    path = Path(path)
    return ImageFiles([path], path.parent, pixels)[0]


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
    with readable(path):
        refuse_special(path)
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


def refuse_special(path: str | Path, what: str = "image") -> None:
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


@contextmanager
def readable(path: str | Path, what: str = "image") -> Iterator[None]:
    """Whatever goes wrong inside is a DataError that names the file."""
    try:
        with warnings.catch_warnings():  # of damage that is an error in the end, or none
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:  # a broken file makes parsers trip in any way there is
        instead = ", or leave it out by --on-bad-image skip" if what == "image" else ""
        raise DataError(
            f"can't read {what} {path} ({_reason(error)}); repair the file or take it out{instead}"
        ) from error


@contextmanager
def opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """The file as a Pillow image; whatever goes wrong inside is a DataError that names the file."""
    with readable(path, what):
        refuse_special(path, what)
        with open_picture(path) as image:
            yield image


def open_picture(path: str | Path | IO[bytes]) -> Image.Image:
    """As Pillow opens it, of das3's formats and sizes only; the pixels are not decoded."""
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


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def resized_shape(shape: tuple[int, int], size: Size) -> tuple[int, int]:
    """(height, width) that an image of (height, width) `shape` has after `resize_image`."""
    if size is None:
        return shape
    if isinstance(size, int):
        factor = size / min(shape)
        return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
    return size


def resize_image(image: Pixel, size: Size) -> Pixel:
    """Bilinear, antialiased; H×W×B uint8 or float32 in and out."""
    height, width = resized_shape(image.shape[:2], size)
    if (height, width) == image.shape[:2]:
        return image
    if is_large((height, width), image.shape[-1] * image.itemsize):
        raise DataError(
            f"an image would be resized from {image.shape[1]}×{image.shape[0]} to {width}×{height} pixels, more than "
            "das3 keeps at once; lower --size or --scales"
        )
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    bands = [Image.fromarray(np.ascontiguousarray(image[..., b])) for b in range(image.shape[-1])]
    return np.stack([np.array(band.resize((width, height), Image.Resampling.BILINEAR)) for band in bands], axis=-1)


def resize_label(label: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Nearest neighbour; H×W uint8 in and out."""
    height, width = resized_shape(label.shape, size)
    if (height, width) == label.shape:
        return label
    return np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


class Images(Sequence[Pixel]):
    """Target images, decoded when asked for. Subclasses say where from.

    Each is H×W×3 uint8 RGB, or H×W×B uint8 or float32 from 0 to 1 where the images are deeper or the network takes
    other bands, see `das3.data.pixels.Pixels`.

    Attributes:
        names: one key per image, unique: the path below the folder without its suffix.
        pixels: how samples become bands; None for pictures of 8 bits as RGB.
        is_thread_safe: whether a thread may read them while another does, which is not asked of a user's dataset.
    """

    pixels: Pixels | None = None
    is_thread_safe: bool = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of image i."""
        height, width, _ = self[i].shape
        return height, width

    def masked(self, i: int) -> tuple[Pixel, NDArray[np.bool_] | None]:
        """Image i, and H×W where it has data; None where it has everywhere."""
        return self[i], None

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return 3 if self.pixels is None else self.pixels.channels * (1 if self.pixels.is_plain else 4)

    def fitted(self, channels: int, **how: Unpack[HowRead]) -> Images:
        """The same images with as many bands as a network takes; here, as they are.

        Raises:
            DataError: if they have another number of bands.
        """
        bands = self[0].shape[-1]
        if bands != channels:
            raise DataError(
                f"image {self.names[0]} has {bands} bands, but the network takes {channels}; give image files or a "
                "dataset object, of which bands can be chosen"
            )
        return self

    def left_out(self) -> str | None:
        """What of the images is not used (alpha, bands, pages), in one line; None if all is."""
        return None

    def only(self, chosen: Sequence[int]) -> Images:
        """Those of these indices alone."""
        return _Some(self, chosen)

    def decode(self, i: int) -> None:
        """Raise DataError if image i can't be read."""
        self.masked(i)

    def seen_bands(self) -> tuple[str, Form, list[int]]:
        """Name and form of the first image, and the bands of it that are seen."""
        size, count = self.size(0), self.pixels.channels if self.pixels else 3
        return self.names[0], Form(size, bands=count), list(range(count))

    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        return [self.size(i) for i in range(len(self))]

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every image; looked up once."""
        return self._sizes

    def verify(self) -> None:
        """Raise DataError if an image can't be opened, before anything long begins."""
        self.sizes()

    def resized(self, size: Size, *, cache_bytes: int = 0) -> Images:
        """The same images at another size, decoded once and kept in memory, as many as fit into `cache_bytes`."""
        return _Resized(self, size, cache_bytes)


class HowRead(TypedDict, total=False):
    """How a user wants image files to be read, see `das3.data.value_ranges.find_pixels`."""

    pixel_range: str | Sequence[float | str] | None
    nodata: float | None
    bands: Sequence[int | str] | None
    recorded: Pixels | None


class FittedImages(Images):
    """Images whose samples are at hand as they are stored. Unless said otherwise, a network of three channels is meant.

    Subclasses say `forms`, `stored` and `is_plain`.
    """

    def forms(self) -> Sequence[tuple[str, Form]]:
        """Name and form of all images, or of a sample where each costs a decoding."""
        raise NotImplementedError

    def stored(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """H×W×(all bands) samples of image i and its form, see `das3.data.pixels.seen_form`."""
        raise NotImplementedError

    def some(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """As `stored`, for a look at the values: parts are enough."""
        return self.stored(i, channels, bands)

    def fitted(self, channels: int, **how: Unpack[HowRead]) -> Images:
        """The same images, read for a network of so many channels.

        Raises:
            DataError: if an image does not have the bands, or can't be read.
            RecipeError: if the range of values can't be used.
        """
        changed = copy(self)
        changed.pixels = find_pixels(self, channels, **how)
        return changed

    def left_out(self) -> str | None:
        """What of the images is not used (alpha, bands, pages), in one line; None if all is."""
        return left_out(self.forms(), self.pixels)

    def seen_bands(self) -> tuple[str, Form, list[int]]:
        """Name and form of the first image, and the bands of it that are seen."""
        name, stored = self.forms()[0]
        channels, bands = (self.pixels.channels, self.pixels.bands) if self.pixels else (3, None)
        form = seen_form(stored, channels, bands)
        return name, form, choose_bands(form, channels, bands, name)

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]


class ImageFiles(FittedImages):
    """Images in files.

    Args:
        paths: the files.
        root: folder above all of them.
        pixels: how to read them; found when the first is read where None can't do.
    """

    def __init__(self, paths: Sequence[Path], root: Path, pixels: Pixels | None = None) -> None:
        self.paths = list(paths)
        self.pixels = pixels
        self.is_thread_safe = True
        self._forms: dict[int, Form] = {}
        super().__init__(unique_names([p.relative_to(root) for p in self.paths]))

    def only(self, chosen: Sequence[int]) -> ImageFiles:
        """Those of these indices alone, under the same names."""
        some = copy(self)
        some.paths, some.names = [self.paths[i] for i in chosen], [self.names[i] for i in chosen]
        some._forms = {n: self._forms[i] for n, i in enumerate(chosen) if i in self._forms}
        some.__dict__.pop("_sizes", None)
        return some

    def decode(self, i: int) -> None:
        """Raise DataError if image i can't be read; of one that is too large to be decoded, if its header can't."""
        form = self.form(i)
        if form.reader == "page" and is_large(form.size, form.pixel_bytes):
            return
        if form.plain:
            self._picture(i)
        else:
            samples_of(self.paths[i], form)

    def form(self, i: int) -> Form:
        """What the file of image i holds."""
        i = range(len(self))[i]
        if i not in self._forms:
            self._forms[i] = probe(self.paths[i])
        return self._forms[i]

    def forms(self) -> Sequence[tuple[str, Form]]:
        """Path and form of all images."""
        return [(str(path), self.form(i)) for i, path in enumerate(self.paths)]

    def stored(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """H×W×(all bands) samples of image i and its form."""
        form = seen_form(self.form(i), channels, bands)
        return samples_of(self.paths[i], form), form

    def some(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """The same, or of an image that is too large to decode at once H×W×(all bands) of parts of it."""
        form = seen_form(self.form(i), channels, bands)
        if form.reader == "page" and is_large(form.size, form.pixel_bytes):
            with readable(self.paths[i]):
                return tiff_parts(self.paths[i]), form
        return self.stored(i, channels, bands)

    def masked(self, i: int) -> tuple[Pixel, NDArray[np.bool_] | None]:
        """Image i, and H×W where it has data; None where it has everywhere."""
        if self.is_plain(i):
            return self._picture(i), None
        form, pixels = self.form(i), self.own_pixels()
        if form.plain and (pixels.channels, pixels.bands) == (3, None):
            return pixels.convert(self._picture(i), Form(form.size, nodata=form.nodata), self.paths[i])
        samples, form = self.stored(i, pixels.channels, pixels.bands)
        return pixels.convert(samples, form, self.paths[i])

    def _picture(self, i: int) -> NDArray[np.uint8]:
        refuse_large(self.paths[i], self.form(i).size)
        with opened(self.paths[i]) as image:
            return to_rgb(image)

    def is_plain(self, i: int) -> bool:
        """Whether image i is read as a picture of 8 bits, as RGB."""
        form = self.form(i)
        return self.pixels is None and form.plain and form.nodata is None

    def own_pixels(self) -> Pixels:
        """How the files are read; if nothing was said, for a network that takes RGB, see `find_pixels`."""
        if self.pixels is None:
            self.pixels = find_pixels(self, 3) or Pixels()
        return self.pixels

    def size(self, i: int) -> tuple[int, int]:
        """From the file's header; the pixels are not decoded."""
        return self.form(i).size


def image_files(paths: Sequence[Path], root: Path) -> Images:
    """Images in files: one in each, or every slice of NIfTI volumes.

    Raises:
        DataError: if there are files of both kinds.
    """
    volumes = [is_nifti(path) for path in paths]
    if not any(volumes):
        return ImageFiles(paths, root)
    if not all(volumes):
        other = paths[volumes.index(False)]
        raise DataError(f"{paths[volumes.index(True)]} is a NIfTI volume and {other} is not; give folders of one kind")
    return VolumeSlices(paths, root)


class VolumeSlices(FittedImages):
    """Every slice of NIfTI volumes as an image, named `volume/number`.

    Args:
        paths: the volumes.
        root: folder above all of them.
    """

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.slices: list[tuple[Path, int]] = []
        self.shapes: dict[Path, tuple[int, int, int, int]] = {}
        names: list[str] = []
        for path in paths:
            with readable(path):
                self.shapes[path] = nifti_shape(path)
            count = self.shapes[path][2]
            self.slices += [(path, k) for k in range(count)]
            names += slice_names(re.sub(r"\.nii(\.gz)?$", "", path.relative_to(root).as_posix(), flags=re.I), count)
        super().__init__(names)

    def only(self, chosen: Sequence[int]) -> VolumeSlices:
        """Those of these indices alone, under the same names."""
        some = copy(self)
        some.slices, some.names = [self.slices[i] for i in chosen], [self.names[i] for i in chosen]
        some.__dict__.pop("_sizes", None)
        return some

    def _form(self, i: int) -> Form:
        height, width, _, bands = self.shapes[self.slices[i][0]]
        return Form((height, width), "float32", bands, reader="nifti", bits=32, plain=False)

    def forms(self) -> Sequence[tuple[str, Form]]:
        """Name and form of all slices."""
        return [(name, self._form(i)) for i, name in enumerate(self.names)]

    def stored(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """H×W×(all bands) samples of slice i and its form."""
        path, number = self.slices[i]
        form = self._form(i)
        refuse_large(path, form.size, form.pixel_bytes)
        with readable(path):
            return nifti_slice(path, number), form

    def masked(self, i: int) -> tuple[Pixel, NDArray[np.bool_] | None]:
        """Slice i, and H×W where it has data; None where it has everywhere."""
        if self.pixels is None:
            self.pixels = find_pixels(self, 3) or Pixels()
        samples, form = self.stored(i, self.pixels.channels, self.pixels.bands)
        return self.pixels.convert(samples, form, self.names[i])

    def size(self, i: int) -> tuple[int, int]:
        """From the volume's header."""
        return self._form(i).size


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Paths without their suffix; with it where two differ in nothing else."""
    full = [p.as_posix() for p in paths]
    names = [p.with_suffix("").as_posix() for p in paths]
    while len(set(names)) < len(names):
        count = Counter(names)
        longer = [f if count[n] > 1 else n for n, f in zip(names, full, strict=True)]
        if longer == names:
            raise DataError(f"image {max(names, key=count.__getitem__)} is listed twice; list each image once")
        names = longer
    return names


class DatasetImages(FittedImages):
    """Images of a map-style dataset; whatever labels its items carry are not looked at."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.any_floats = False
        super().__init__([f"{i:06d}" for i in range(len(dataset))])

    def _item(self, i: int) -> Any:
        if not -len(self) <= i < len(self):
            raise IndexError(i)  # not every dataset does
        try:
            item = self.dataset[i]
        except Das3Error:
            raise
        except Exception as error:  # whatever the user's own object raises
            reason = f"{type(error).__name__}: {_reason(error)}"
            raise DataError(f"item {i} of the dataset can't be read ({reason}); repair it or leave it out") from error
        if isinstance(item, Mapping):
            item = next((item[key] for key in ("image", "pixel_values", "img") if key in item), None)
        elif isinstance(item, tuple | list) and item:
            item = item[0]
        return item

    def masked(self, i: int) -> tuple[Pixel, NDArray[np.bool_] | None]:
        """Image i, and H×W where it has data; None where it has everywhere."""
        if self.pixels is None:
            return _array_to_rgb(self._item(i), i), None
        samples, form = self.stored(i, self.pixels.channels, self.pixels.bands)
        return self.pixels.convert(samples, form, f"item {i} of the dataset")

    def stored(self, i: int, channels: int, bands: Sequence[int | str] | None) -> tuple[NDArray[Any], Form]:
        """H×W×(all bands) values of item i and its form."""
        item = self._item(i)
        if isinstance(item, Image.Image):
            return pillow_samples(item), pillow_form(item)
        array = _banded(item, i)
        if array.dtype.kind == "f" and not self.any_floats:
            _check_floats(array, i)
            eight = array * 255
            if np.abs(eight - eight.round()).max() < 1e-3:
                array = eight.round().astype(np.uint8)
        array = array if array.dtype.kind != "f" else array.astype(np.float32)
        return array, Form(
            (array.shape[0], array.shape[1]), str(array.dtype), array.shape[-1], plain=array.dtype == np.uint8
        )

    def forms(self) -> Sequence[tuple[str, Form]]:
        """Those of a few items: each costs a decoding."""
        some = np.unique(np.linspace(0, len(self) - 1, 8).round().astype(int)).tolist()
        return [(f"item {i} of the dataset", self.stored(i, 3, None)[1]) for i in some]

    def fitted(self, channels: int, **how: Unpack[HowRead]) -> Images:
        """The same, read for a network of so many channels; of floats beyond [0, 1] the range is to be said."""
        changed = copy(self)
        changed.any_floats = how.get("pixel_range") not in (None, "auto") or bool(how.get("recorded"))
        return super(DatasetImages, changed).fitted(channels, **how)

    def decode(self, i: int) -> None:
        """Raise DataError if item i can't be read."""
        item = self._item(i)
        if isinstance(item, Image.Image):
            with readable(f"item {i} of the dataset"):
                pillow_samples(item)
        else:
            _banded(item, i)

    def only(self, chosen: Sequence[int]) -> DatasetImages:
        """Those of these indices alone, under the same names."""
        some = copy(self)
        some.dataset, some.names = _SomeItems(self.dataset, chosen), [self.names[i] for i in chosen]
        some.__dict__.pop("_sizes", None)
        return some

    def verify(self) -> None:
        """Look at the first item alone: the others cost a decoding each."""
        item = self._item(0)
        if isinstance(item, Image.Image):
            return
        array = _banded(item, 0)
        if array.dtype.kind == "f" and not self.any_floats:
            _check_floats(array, 0)


class _SomeItems:
    """Some items of a dataset."""

    def __init__(self, dataset: Any, chosen: Sequence[int]) -> None:
        self.dataset, self.chosen = dataset, list(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[self.chosen[i]]


def _banded(item: Any, i: int) -> NDArray[Any]:
    """An item as H×W×B."""
    array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] < array.shape[-1]:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.dtype.kind not in "uif" or array.shape[-1] > max(64, *array.shape[:2]):
        raise DataError(
            f"item {i} of the dataset holds no image (a PIL image, or an array H×W×B or B×H×W, alone, first in a tuple "
            'or under "image")'
        )
    return array


def _check_floats(array: NDArray[Any], i: int) -> None:
    if not (array.min() >= 0 and array.max() <= 1):  # NaN fails as well
        raise DataError(
            f"item {i} of the dataset has values {array.min():g} to {array.max():g} of type {array.dtype}; give uint8, "
            "or floats in [0, 1] from which no mean is subtracted, or say the range with --pixel-range"
        )


def _array_to_rgb(item: Any, i: int) -> NDArray[np.uint8]:
    if isinstance(item, Image.Image):
        return to_rgb(item)
    array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or array.dtype.kind not in "uif":
        raise DataError(
            f"item {i} of the dataset holds no image (a PIL image, or an array H×W×3 or 3×H×W, alone, first in a tuple "
            'or under "image")'
        )
    if array.dtype != np.uint8:
        if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):  # NaN fails as well
            raise DataError(
                f"item {i} of the dataset has values {array.min():g} to {array.max():g} of type {array.dtype}; "
                "give uint8, or floats in [0, 1] from which no mean is subtracted"
            )
        array = (array * 255).round().astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[-1] == 1 else np.ascontiguousarray(array[..., :3])


_Masked = tuple[Pixel, NDArray[np.bool_] | None]


class _Some(Images):
    """Some of other images."""

    def __init__(self, images: Images, chosen: Sequence[int]) -> None:
        super().__init__([images.names[i] for i in chosen])
        self.images, self.chosen, self.pixels = images, list(chosen), images.pixels

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]

    def masked(self, i: int) -> _Masked:
        """Image i, and H×W where it has data; None where it has everywhere."""
        return self.images.masked(self.chosen[i])

    def size(self, i: int) -> tuple[int, int]:
        """As the images say."""
        return self.images.size(self.chosen[i])


class _Resized(Images):
    """Another size, and the memory of what was decoded, which the processes that load images have in common."""

    def __init__(self, images: Images, size: Size, cache_bytes: int) -> None:
        super().__init__(images.names)
        self.images, self.target = images, size
        self.pixels, self.is_thread_safe = images.pixels, images.is_thread_safe
        self.kept = _SharedCache(self.sizes(), self.pixel_bytes, cache_bytes) if cache_bytes else None

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]

    def masked(self, i: int) -> _Masked:
        """Image i, and H×W where it has data; None where it has everywhere."""
        if self.kept is None:
            return self._read(i)
        found = self.kept.get(i)
        if found is None:
            image, valid = self._read(i)
            found = self.kept.put(i, image, valid)
        return found

    def _read(self, i: int) -> _Masked:
        image, valid = self.images.masked(i)
        image = resize_image(image, self.target)
        if valid is not None and valid.shape != image.shape[:2]:
            valid = resize_label(valid.astype(np.uint8), (image.shape[0], image.shape[1])).astype(bool)
        return image, valid

    def size(self, i: int) -> tuple[int, int]:
        """Without decoding where it can be known."""
        return self.target if isinstance(self.target, tuple) else resized_shape(self.images.size(i), self.target)


class _SharedCache:
    """Decoded images, and where they have data, in memory that this process and its children share.

    The first ones are kept, up to a number of bytes.

    Two processes may decode an image at the same time; both then write the same bytes.

    Args:
        sizes: (height, width) of every image.
        pixel_bytes: of one pixel, 4 for a float32.
        limit: bytes of all.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], pixel_bytes: int, limit: int) -> None:
        ends = np.cumsum([0, *(pixel_bytes * height * width for height, width in sizes)])
        count = int(np.searchsorted(ends, limit, side="right")) - 1
        self.sizes, self.pixel_bytes, self.starts = list(sizes[:count]), pixel_bytes, ends[: count + 1].tolist()
        self.forms: NDArray[np.uint8] | None = None
        self._map()

    def _map(self) -> None:
        """Pages take no memory before they are written. A byte per image: 0 is none, 1 uint8, 2 float32, + 2 masked."""
        self.masks: dict[int, NDArray[np.bool_]] = {}  # few images have any, and each process finds its own
        try:
            if self.sizes:
                self.bytes = np.frombuffer(mmap.mmap(-1, self.starts[-1]), np.uint8)
                self.forms = np.frombuffer(mmap.mmap(-1, len(self.sizes)), np.uint8)
        except OSError:  # no memory: it goes without
            self.forms = None

    def get(self, i: int) -> _Masked | None:
        """Image i, a view of the memory, and its mask; None if it is not there."""
        if self.forms is None or i >= len(self.sizes) or not self.forms[i]:
            return None
        if self.forms[i] > 2 and i not in self.masks:
            return None
        dtype = np.uint8 if self.forms[i] % 2 else np.float32
        found: Pixel = self.bytes[self.starts[i] : self.starts[i + 1]].view(dtype).reshape(*self.sizes[i], -1)
        return found, self.masks.get(i)

    def put(self, i: int, image: Pixel, valid: NDArray[np.bool_] | None) -> _Masked:
        """Keep image i if there is a place for it; what `get` then returns."""
        if self.forms is None or i >= len(self.sizes) or image.nbytes != self.starts[i + 1] - self.starts[i]:
            return image, valid
        if image.shape[:2] != self.sizes[i] or image.dtype not in (np.uint8, np.float32):
            return image, valid
        self.bytes[self.starts[i] : self.starts[i + 1]] = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        if valid is not None:
            self.masks[i] = valid
        self.forms[i] = (1 if image.dtype == np.uint8 else 2) + (0 if valid is None else 2)
        return self.get(i) or (image, valid)

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not a fork decodes for itself; a copy of all pixels for each would cost more."""
        return {**self.__dict__, "bytes": None, "forms": None, "masks": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def is_image_file(path: Path) -> bool:
    """Whether a file's name is that of an image, or of a volume of them."""
    return path.suffix.lower() in SUFFIXES or is_nifti(path)


def find_files(folder: Path) -> list[Path]:
    """All files with an image's suffix in a folder tree, sorted, hidden ones left out.

    Links to folders are followed, but no folder is searched twice, by whatever ways it is reached.

    Raises:
        DataError: if a folder can't be read.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    links = [folder]  # last, so that files are found under their own names first
    while links:
        root = links.pop(0)
        for parent, folders, files in os.walk(root, onerror=_unreadable):
            if not _is_new(parent, seen):
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [link for name in folders if (link := Path(parent, name)).is_symlink()]
            found += [Path(parent, f) for f in files if not f.startswith(".") and is_image_file(Path(f))]
    return sorted(found)


def _is_new(folder: str | Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is met for the first time; notes it."""
    about = os.stat(folder)
    new = (about.st_dev, about.st_ino) not in seen
    seen.add((about.st_dev, about.st_ino))
    return new


def _unreadable(error: OSError) -> None:
    raise DataError(f"can't search {error.filename} ({error.strerror}); make it readable or take it out")
