"""Images that are the slices of NIfTI volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from das3.data.decoding import readable, refuse_large
from das3.data.formats import Form
from das3.data.images import FittedImages
from das3.data.medical import nifti_shape, nifti_slice, slice_names
from das3.data.pixels import Masked, Pixels
from das3.data.value_ranges import find_pixels

__all__ = ["VolumeSlices"]


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

    def masked(self, i: int) -> Masked:
        """Slice i, and H×W where it has data; None where it has everywhere."""
        if self.pixels is None:
            self.pixels = find_pixels(self, 3) or Pixels()
        samples, form = self.stored(i, self.pixels.channels, self.pixels.bands)
        return self.pixels.convert(samples, form, self.names[i])

    def size(self, i: int) -> tuple[int, int]:
        """From the volume's header."""
        return self._form(i).size
