"""Target images from a folder tree, a list file or a dataset object, of any usual format. Nothing here knows labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from das3.errors import DataError

__all__ = ["Images", "open_images", "read_image", "resize_image", "resize_label", "resized_shape"]

SUFFIXES = frozenset(".jpg .jpeg .png .bmp .tif .tiff .webp .ppm .pgm .pbm .gif .jp2".split())

Size = int | tuple[int, int] | None
"""None keeps the image's size, an int is the length of the shorter side, a tuple is (height, width)."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image of any mode to RGB.

    Grey, palette, CMYK and 1-bit images are converted; an alpha channel is dropped; 16-bit values v become v / 257
    (the full 16-bit range becomes the full 8-bit range), 32-bit and floating images are scaled by their own maximum;
    EXIF orientation is applied; of an animation or multi-page file the first frame is taken.

    Returns:
        H×W×3 uint8.

    Raises:
        DataError: if the file can't be decoded.
    """
    try:
        with _open(path) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"can't read image {path} ({_reason(error)}); repair the file or take it out") from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """H×W×3 uint8 of a Pillow image, see `read_image`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return _grey_to_rgb((grey / 257).round())
    if image.mode in ("I", "F"):
        # Pillow opens 16-bit grey PNGs as I: their maximum is 65535 whatever the picture holds.
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if image.mode == "I" and 255 < grey.max() <= 65535 else max(float(grey.max()), 1e-12)
        return _grey_to_rgb((grey.clip(0) * 255 / top).round())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _open(path: str | Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # aerial images are large on purpose
        return Image.open(path)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
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
    height, width = resized_shape(image.shape[:2], size)  # type: ignore[arg-type]
    if (height, width) == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_label(label: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Nearest neighbour; H×W uint8 in and out."""
    height, width = resized_shape(label.shape, size)  # type: ignore[arg-type]
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

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every image."""
        return [self[i].shape[:2] for i in range(len(self))]  # type: ignore[misc]

    def verify(self) -> None:
        """Raise DataError if an image can't be opened, before anything long begins."""
        self.sizes()

    def resized(self, size: Size, *, cache_bytes: int = 0) -> Images:
        """The same images at another size, decoded once and kept in memory if all fit into `cache_bytes`."""
        return _Resized(self, size, cache_bytes)


class _Files(Images):
    """Images in files."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.paths = list(paths)
        super().__init__(_unique_names(self.paths, root))
        self._sizes: list[tuple[int, int]] | None = None

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return read_image(self.paths[i])

    def sizes(self) -> list[tuple[int, int]]:
        """From the files' headers; the pixels are not decoded."""
        if self._sizes is None:
            self._sizes = [_header_size(path) for path in self.paths]
        return self._sizes


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with _open(path) as image:
            rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = image.size
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"can't read image {path} ({_reason(error)}); repair the file or take it out") from error
    return (width, height) if rotated else (height, width)


def _unique_names(paths: Iterable[Path], root: Path) -> list[str]:
    """Paths below the root without suffix; with it where two files differ in nothing else."""
    relative = [p.relative_to(root) if p.is_relative_to(root) else Path(*p.parts[1:]) for p in paths]
    stems = [p.with_suffix("").as_posix() for p in relative]
    count: dict[str, int] = {}
    for stem in stems:
        count[stem] = count.get(stem, 0) + 1
    names = [p.as_posix().replace("..", "_") if count[s] > 1 else s for p, s in zip(relative, stems, strict=True)]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"image {twice} is listed twice; list each image once")
    return names


class _Dataset(Images):
    """Images of a map-style dataset; whatever labels its items carry are not looked at."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        super().__init__([f"{i:06d}" for i in range(len(dataset))])
        self._sizes: list[tuple[int, int]] | None = None

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        item = self.dataset[i]
        if isinstance(item, dict):
            item = next((item[key] for key in ("image", "pixel_values", "img") if key in item), None)
        elif isinstance(item, tuple | list) and item:
            item = item[0]
        return _array_to_rgb(item, i)

    def sizes(self) -> list[tuple[int, int]]:
        """By decoding every item once."""
        if self._sizes is None:
            self._sizes = super().sizes()
        return self._sizes


def _array_to_rgb(item: Any, i: int) -> NDArray[np.uint8]:
    if isinstance(item, Image.Image):
        return to_rgb(item)
    array = np.asarray(item)
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise DataError(
            f"item {i} of the dataset holds no image (a PIL image, or an array H×W×3 or 3×H×W, alone, first in a tuple "
            "or under 'image'); normalise nothing before das3"
        )
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 1:
            raise DataError(f"item {i} of the dataset: floating images must lie in [0, 1], without mean and std removed")
        array = (array * 255).round().astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[-1] == 1 else np.ascontiguousarray(array[..., :3])


class _Resized(Images):
    """Another size, and the memory of what was decoded."""

    def __init__(self, images: Images, size: Size, cache_bytes: int) -> None:
        super().__init__(images.names)
        self.images, self.size = images, size
        needed = sum(3 * height * width for height, width in self.sizes())
        self.kept: dict[int, NDArray[np.uint8]] | None = {} if needed <= cache_bytes else None

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        if self.kept is None:
            return resize_image(self.images[i], self.size)
        if i not in self.kept:
            self.kept[i] = resize_image(self.images[i], self.size)
        return self.kept[i]

    def sizes(self) -> list[tuple[int, int]]:
        """Without decoding."""
        return [resized_shape(shape, self.size) for shape in self.images.sizes()]


def open_images(source: Any) -> Images:
    """Images of a folder tree, a list file, a sequence of paths or a dataset object.

    Args:
        source: a folder, searched with all its sub-folders (hidden ones left out); a .txt file with one path a line,
            relative to the file, blank lines and # comments skipped; a sequence of paths; an `Images`; or any object
            with `__len__` and `__getitem__` whose items are images, alone, first in a tuple, or under "image".

    Raises:
        DataError: if there are no images.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, str | Path):
        return _open_path(Path(source))
    if isinstance(source, Sequence) and source and all(isinstance(p, str | Path) for p in source):
        return _files([Path(p) for p in source], Path())
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        if not len(source):
            raise DataError("the dataset of images is empty")
        return _Dataset(source)
    raise DataError(f"can't take images from {type(source).__name__}; give a folder, a .txt list, paths or a dataset")


def _open_path(path: Path) -> Images:
    if path.is_dir():
        found = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not _hidden(p.relative_to(path)) and p.is_file()
        )
        if not found:
            raise DataError(f"no images found in {path}; looked in all sub-folders for {' '.join(sorted(SUFFIXES))}")
        return _Files(found, path)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
        listed = [path.parent / line for line in lines if line]
        if not listed:
            raise DataError(f"no images listed in {path}; write one path a line, relative to the file's folder")
        return _files(listed, path.parent)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _Files([path], path.parent)
    raise DataError(f"no images at {path}; give an existing folder, or a .txt file that lists images")


def _files(paths: list[Path], root: Path) -> Images:
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} listed images do not exist, the first: {missing[0]}")
    return _Files(paths, root)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
