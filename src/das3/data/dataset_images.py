"""Images that a dataset object of Python hands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from das3.data.decoding import readable, reason_of, to_rgb
from das3.data.formats import Form, pillow_form, pillow_samples
from das3.data.images import FittedImages, HowRead, Images
from das3.data.pixels import Masked
from das3.errors import Das3Error, DataError

__all__ = ["DatasetImages"]


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
            reason = f"{type(error).__name__}: {reason_of(error)}"
            raise DataError(f"item {i} of the dataset can't be read ({reason}); repair it or leave it out") from error
        if isinstance(item, Mapping):
            item = next((item[key] for key in ("image", "pixel_values", "img") if key in item), None)
        elif isinstance(item, tuple | list) and item:
            item = item[0]
        return item

    def masked(self, i: int) -> Masked:
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
