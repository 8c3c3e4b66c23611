"""What all target images have in common, whatever they are stored in, and resizing them. Nothing here knows labels.

Where they come from: `image_files` (files and folders), `volumes` (NIfTI), `archives` (tar files and URLs),
`dataset_images` (an object of Python), `cache` (a packed set) and `published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from das3.data.decoding import is_large
from das3.data.formats import Form
from das3.data.pixels import Masked, Pixel, Pixels, choose_bands, seen_form
from das3.data.shared_cache import Room, SharedCache
from das3.data.value_ranges import find_pixels, left_out
from das3.errors import DataError

__all__ = ["FittedImages", "HowRead", "Images", "Size", "resize_image", "resize_label", "resized_shape"]

Size = int | tuple[int, int] | None
"""None keeps the image's size, an int is the length of the shorter side, a tuple is (height, width)."""


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

    def masked(self, i: int) -> Masked:
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

    def resized(self, size: Size, *, room: Room | None = None) -> Images:
        """The same images at another size, decoded once and kept, as many as there is room for."""
        return _Resized(self, size, room)

    def close(self) -> None:
        """Give back memory and files of decoded images; they can still be read."""


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


class _Some(Images):
    """Some of other images."""

    def __init__(self, images: Images, chosen: Sequence[int]) -> None:
        super().__init__([images.names[i] for i in chosen])
        self.images, self.chosen, self.pixels = images, list(chosen), images.pixels

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]

    def masked(self, i: int) -> Masked:
        """Image i, and H×W where it has data; None where it has everywhere."""
        return self.images.masked(self.chosen[i])

    def size(self, i: int) -> tuple[int, int]:
        """As the images say."""
        return self.images.size(self.chosen[i])


class _Resized(Images):
    """Another size, and what was decoded, which the processes that load images have in common."""

    def __init__(self, images: Images, size: Size, room: Room | None) -> None:
        super().__init__(images.names)
        self.images, self.target = images, size
        self.pixels, self.is_thread_safe = images.pixels, images.is_thread_safe
        self.kept = SharedCache(self.sizes(), self.pixel_bytes, room) if room is not None else None

    def __getitem__(self, i: int) -> Pixel:  # type: ignore[override]
        return self.masked(i)[0]

    def masked(self, i: int) -> Masked:
        """Image i, and H×W where it has data; None where it has everywhere."""
        if self.kept is None:
            return self._read(i)
        found = self.kept.get(i)
        if found is None:
            image, valid = self._read(i)
            found = self.kept.put(i, image, valid)
        return found

    def close(self) -> None:
        """Give back memory and files of decoded images; they can still be read."""
        if self.kept is not None:
            self.kept.close()

    def _read(self, i: int) -> Masked:
        image, valid = self.images.masked(i)
        image = resize_image(image, self.target)
        if valid is not None and valid.shape != image.shape[:2]:
            valid = resize_label(valid.astype(np.uint8), (image.shape[0], image.shape[1])).astype(bool)
        return image, valid

    def size(self, i: int) -> tuple[int, int]:
        """Without decoding where it can be known."""
        return self.target if isinstance(self.target, tuple) else resized_shape(self.images.size(i), self.target)
