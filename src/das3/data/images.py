"""Target images from a folder tree, a list file or a dataset object, of any usual format. Nothing here knows labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from das3.errors import DataError

__all__ = [
    "DatasetImages",
    "ImageFiles",
    "Images",
    "find_files",
    "read_image",
    "resize_image",
    "resize_label",
    "resized_shape",
]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".gif", ".jp2"}
)

LARGEST = 2**31
"""Pixels of the largest image that is opened; aerial images exceed Pillow's own limit, broken files this one."""

Size = int | tuple[int, int] | None
"""None keeps the image's size, an int is the length of the shorter side, a tuple is (height, width)."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image of any mode to RGB.

    Grey, palette, CMYK and 1-bit images are converted; an alpha channel is dropped, not composited on anything. 16-bit
    images keep their high byte: the full 16-bit range becomes the full 8-bit range, whatever the picture holds (to
    16-bit RGB Pillow itself does the same). Floating values are taken to fill the smallest of the ranges 1, 255 and
    65535 that holds them. EXIF orientation is applied; of an animation or multi-page file the first frame is taken.

    Returns:
        H×W×3 uint8.

    Raises:
        DataError: if the file can't be decoded.
    """
    with opened(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """H×W×3 uint8 of a Pillow image, see `read_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow opens 16-bit files as "I;16…" or, some formats and older versions, as "I"
        values = np.asarray(image).astype(np.float64)
        return _grey_to_rgb(np.floor(values / (max(256.0, (values.max() + 1) / 256))))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        largest = next((top for top in (1.0, 255.0, 65535.0) if values.max() <= top), values.max())
        return _grey_to_rgb((values * 255 / largest).round())
    if image.mode in ("LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@contextmanager
def opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """The file as a Pillow image; whatever goes wrong inside is a DataError that names the file."""
    try:
        with _open(path) as image:
            yield image
    except Exception as error:  # a broken file makes Pillow's parsers trip in any way there is
        raise DataError(f"can't read {what} {path} ({_reason(error)}); repair the file or take it out") from error


def _open(path: str | Path) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow warns beyond this and refuses twice as much
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


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


def resize_image(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Bilinear, antialiased; H×W×3 uint8 in and out."""
    height, width = resized_shape(image.shape[:2], size)
    if (height, width) == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_label(label: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Nearest neighbour; H×W uint8 in and out."""
    height, width = resized_shape(label.shape, size)
    if (height, width) == label.shape:
        return label
    return np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


class Images(Sequence[NDArray[np.uint8]]):
    """Target images, each H×W×3 uint8 RGB, decoded when asked for. Subclasses say where from.

    Attributes:
        names: one key per image, unique: the path below the folder without its suffix.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of image i."""
        height, width, _ = self[i].shape
        return height, width

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
        """The same images at another size, decoded once and kept in memory if all fit into `cache_bytes`."""
        return _Resized(self, size, cache_bytes)


class ImageFiles(Images):
    """Images in files.

    Args:
        paths: the files.
        root: folder above all of them.
    """

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.paths = list(paths)
        super().__init__(_unique_names([p.relative_to(root) for p in self.paths]))

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return read_image(self.paths[i])

    def size(self, i: int) -> tuple[int, int]:
        """From the file's header; the pixels are not decoded."""
        with opened(self.paths[i]) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def _unique_names(paths: Sequence[Path]) -> list[str]:
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


class DatasetImages(Images):
    """Images of a map-style dataset; whatever labels its items carry are not looked at."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        super().__init__([f"{i:06d}" for i in range(len(dataset))])

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        if not -len(self) <= i < len(self):
            raise IndexError(i)  # not every dataset does
        item = self.dataset[i]
        if isinstance(item, Mapping):
            item = next((item[key] for key in ("image", "pixel_values", "img") if key in item), None)
        elif isinstance(item, tuple | list) and item:
            item = item[0]
        return _array_to_rgb(item, i)

    def verify(self) -> None:
        """Look at the first item alone: the others cost a decoding each."""
        self.size(0)


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


class _Resized(Images):
    """Another size, and the memory of what was decoded (in each process its own)."""

    def __init__(self, images: Images, size: Size, cache_bytes: int) -> None:
        super().__init__(images.names)
        self.images, self.target = images, size
        needed = sum(3 * height * width for height, width in self.sizes()) if cache_bytes else 0
        self.kept: dict[int, NDArray[np.uint8]] | None = {} if cache_bytes and needed <= cache_bytes else None

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        if self.kept is None:
            return resize_image(self.images[i], self.target)
        if i not in self.kept:
            self.kept[i] = resize_image(self.images[i], self.target)
        return self.kept[i]

    def size(self, i: int) -> tuple[int, int]:
        """Without decoding where it can be known."""
        return self.target if isinstance(self.target, tuple) else resized_shape(self.images.size(i), self.target)

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes decode for themselves; a copy of all pixels for each would cost more."""
        return {**self.__dict__, "kept": None if self.kept is None else {}}


def find_files(folder: Path) -> list[Path]:
    """All files with an image's suffix in a folder tree, sorted, hidden ones left out."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
    return sorted(found)
