"""Images in files, one in each: found in a folder tree, named, and decoded when they are asked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.decoding import is_large, opened, probe, readable, refuse_large, samples_of, to_rgb
from das3.data.formats import Form, tiff_parts
from das3.data.images import FittedImages
from das3.data.medical import DICOM, is_nifti
from das3.data.pixels import Masked, Pixel, Pixels, seen_form
from das3.data.quick_forms import quick_file, quick_form
from das3.data.value_ranges import find_pixels
from das3.errors import DataError
from das3.many_files import map_files

__all__ = ["SUFFIXES", "ImageFiles", "find_files", "is_image_file", "read_image", "unique_names"]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".gif", ".jp2", *DICOM}
)


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
        super().__init__(unique_names(_below(root, self.paths)))

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
        found = self._forms.get(i)
        if found is None:
            i = range(len(self))[i]
            found = self._forms[i] = self._forms.get(i) or probe(self.paths[i])
        return found

    def forms(self) -> Sequence[tuple[str, Form]]:
        """Path and form of all images."""
        self._look_ahead()
        return [(str(path), self.form(i)) for i, path in enumerate(self.paths)]

    def _look_ahead(self) -> None:
        """Find the forms of ordinary images, with as little ado as very many need."""
        missing = [i for i in range(len(self)) if i not in self._forms]
        found = map_files(quick_form, [self.paths[i] for i in missing])
        self._forms.update((i, form) for i, form in zip(missing, found, strict=True) if form is not None)

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

    def masked(self, i: int) -> Masked:
        """Image i, and H×W where it has data; None where it has everywhere."""
        if self.is_plain(i):
            return self._picture(i), None
        form, pixels = self.form(i), self.own_pixels()
        if form.plain and (pixels.channels, pixels.bands) == (3, None):
            return pixels.convert(self._picture(i), Form(form.size, nodata=form.nodata), self.paths[i])
        samples, form = self.stored(i, pixels.channels, pixels.bands)
        return pixels.convert(samples, form, self.paths[i])

    def _picture(self, i: int) -> NDArray[np.uint8]:
        path, form = self.paths[i], self.form(i)
        refuse_large(path, form.size)
        if (quick := quick_file(path, form.size)) is not None:
            return quick
        with opened(path) as image:
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


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """Paths without their suffix, with / between folders; with the suffix where two differ in nothing else."""
    full = [str(path) if os.sep == "/" else Path(path).as_posix() for path in paths]
    names = [_without_suffix(path) for path in full]
    while len(set(names)) < len(names):
        count = Counter(names)
        longer = [f if count[n] > 1 else n for n, f in zip(names, full, strict=True)]
        if longer == names:
            raise DataError(f"image {max(names, key=count.__getitem__)} is listed twice; list each image once")
        names = longer
    return names


def _without_suffix(path: str) -> str:
    """As `Path.with_suffix("")` does, in a tenth of the time."""
    stem, suffix = os.path.splitext(path)
    return stem if len(suffix) > 1 else path


def _below(root: Path, paths: Sequence[Path]) -> Sequence[str | Path]:
    """The paths relative to the root, which is above all of them."""
    above = os.path.join(root, "")
    whole = [str(path) for path in paths]
    if all(path.startswith(above) for path in whole):
        return [path[len(above) :] for path in whole]
    return [path.relative_to(root) for path in paths]


def is_image_file(path: str | Path) -> bool:
    """Whether a file's name is that of an image, or of a volume of them."""
    return os.path.splitext(path)[1].lower() in SUFFIXES or is_nifti(path)


def find_files(folder: Path) -> list[Path]:
    """All files with an image's suffix in a folder tree, sorted, hidden ones left out.

    Links to folders are followed, but no folder is searched twice, by whatever ways it is reached.

    Raises:
        DataError: if a folder can't be read.
    """
    found: list[str] = []
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
            found += [os.path.join(parent, f) for f in files if not f.startswith(".") and is_image_file(f)]
    return [Path(path) for path in sorted(found, key=_by_folders)]


def _by_folders(path: str) -> str:
    """Sorts as paths do, folder by folder: between folders there is what comes before any character of a name."""
    return os.path.normcase(path).replace(os.sep, "\0")


def _is_new(folder: str | Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is met for the first time; notes it."""
    about = os.stat(folder)
    new = (about.st_dev, about.st_ino) not in seen
    seen.add((about.st_dev, about.st_ino))
    return new


def _unreadable(error: OSError) -> None:
    raise DataError(f"can't search {error.filename} ({error.strerror}); make it readable or take it out")
