"""Pseudo labels on disk, one small compressed file per image, written atomically."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from das3.errors import DataError
from das3.files import writing_atomically

__all__ = ["LabelStore"]


class LabelStore(Sequence[Mapping[str, NDArray[np.uint8]]]):
    """Named arrays per image. Labels compress well; they are read from disk at each access.

    Args:
        folder: where the files are; made when the first is written.
        names: the images' names, which name the files.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = Path(folder), list(names)

    def path(self, i: int) -> Path:
        """File of image i."""
        return self.folder / f"{self.names[i]}.npz"

    def __len__(self) -> int:
        return len(self.names)

    def has(self, i: int) -> bool:
        """Whether the arrays of image i have been made and can be read: a damaged file counts as not made."""
        if not self.path(i).is_file():
            return False
        try:
            return bool(self[i])
        except KeyError:
            return False

    def write(self, i: int, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Store the arrays of image i; written atomically. Threads may write at the same time."""
        # Label maps are as small at zlib's level 1, which takes a third of the time of NumPy's 6.
        with (
            writing_atomically(self.path(i)) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)

    def __getitem__(self, i: int) -> Mapping[str, NDArray[np.uint8]]:  # type: ignore[override]
        """Arrays of image i.

        Raises:
            KeyError: if they have not been made, or the file is damaged.
        """
        return self.read(i)

    def read(self, i: int, *keys: str) -> dict[str, NDArray[np.uint8]]:
        """Some arrays of image i, without the cost of the others; all when none is named.

        Raises:
            KeyError: if they have not been made.
        """
        try:
            with np.load(self.path(i), allow_pickle=False) as file:
                return {key: file[key] for key in keys or file.files}
        except Exception as error:  # a damaged archive makes its readers trip in any way there is
            raise KeyError(f"no pseudo labels of {self.names[i]} in {self.folder}") from error

    def maps(self, *keys: str) -> StoredLabelMaps:
        """The label maps of these names, as `Samples` wants them."""
        return StoredLabelMaps(self, keys)


class StoredLabelMaps:
    """Callable i → maps, that worker processes can be sent."""

    def __init__(self, store: LabelStore, keys: Sequence[str]) -> None:
        self.store, self.keys = store, tuple(keys)

    def __call__(self, i: int) -> Mapping[str, NDArray[np.uint8]]:
        try:
            return self.store.read(i, *self.keys)
        except KeyError as error:
            raise DataError(
                f"{self.store.path(i)}: the pseudo labels can't be read; delete the file and go on with --resume"
            ) from error
