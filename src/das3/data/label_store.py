"""Pseudo labels on disk: a zip file of arrays per image, many of them in one uncompressed zip file, a pack.

A pack is written atomically, so that there is a whole one or none. Of a killed run the labels since the last pack are
lost, which is about a minute's work at most.
"""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from das3.data.array_files import read_arrays, write_zstd
from das3.errors import DataError
from das3.files import writing_atomically

__all__ = ["LabelStore", "PackWriter", "StoredLabelMaps", "find_labels", "name_in_pack"]

PACK_IMAGES = 1000
PACK_BYTES = 64 * 2**20
PACK_SECONDS = 60.0
"""A pack is written once it holds so much, or so long after the one before."""
_PACKS = "[0-9]*-*.zip"
_DAMAGED = (OSError, ValueError, NotImplementedError, zipfile.BadZipFile)
"""What a damaged pack may make its reader trip over."""
_LOCAL_HEADER = 30
"""Bytes of a zip entry's own header before its name, and the lengths of name and extra field at its end."""


def name_in_pack(name: str) -> str:
    """An image's name as a zip file may hold it: file systems have names that are no text."""
    return name.encode("utf-8", "backslashreplace").decode()


class LabelStore(Sequence[Mapping[str, NDArray[np.uint8]]]):
    """Named arrays per image. Labels compress well; they are read from disk at each access.

    Args:
        folder: where the packs are; made when the first is written.
        names: the images' names.
        writer: number of the process, which the packs that it writes are named after.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, writer: int = 0) -> None:
        self.folder, self.names, self.writer = Path(folder), list(names), writer
        self.refresh()

    def __len__(self) -> int:
        return len(self.names)

    def refresh(self) -> None:
        """Find what other processes have written."""
        self.packs: list[Path] = []
        self.places = np.full((len(self.names), 3), -1, np.int64)  # number of the pack, first byte, length
        for pack in sorted(self.folder.glob(_PACKS)):
            # Of one that is damaged the labels are made anew, in another pack.
            with suppress(*_DAMAGED):
                self.add(pack)

    def add(self, pack: Path) -> None:
        """Read the images of this pack from it."""
        entries = [entry for entry in _entries(pack) if entry.image < len(self)]
        self.packs.append(pack)
        for entry in entries:
            self.places[entry.image] = len(self.packs) - 1, entry.start, entry.length

    def has(self, i: int) -> bool:
        """Whether the arrays of image i have been made and can be read: damaged ones count as not made."""
        try:
            return bool(self[i])
        except KeyError:
            return False

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
            return read_arrays(self._bytes(i), *keys)
        except (OSError, KeyError) as error:
            raise KeyError(f"no pseudo labels of {self.names[i]} in {self.folder}") from error

    def pack(self, i: int) -> Path:
        """The file that holds the arrays of image i.

        Raises:
            KeyError: if they have not been made.
        """
        if self.places[i][0] < 0:
            raise KeyError(i)
        return self.packs[int(self.places[i][0])]

    def _bytes(self, i: int) -> bytes:
        _, start, length = self.places[i].tolist()
        with self.pack(i).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def maps(self, *keys: str) -> StoredLabelMaps:
        """The label maps of these names, as `Samples` wants them."""
        return StoredLabelMaps(self, keys)

    def writing(self) -> PackWriter:
        """What new labels are handed to, and are in the store when its block ends."""
        return PackWriter(self)


class PackWriter:
    """Collects the labels of images and writes them pack by pack; threads may add to it at the same time."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self.lock = threading.Lock()
        self.waiting: dict[int, bytes] = {}
        self.bytes, self.since = 0, time.monotonic()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """What was interrupted goes on after the last image."""
        if self.waiting:
            self._write(self._take())

    def add(self, i: int, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Compress the arrays of image i, and write the pack if it is full."""
        buffer = io.BytesIO()
        write_zstd(buffer, arrays)
        with self.lock:
            self.waiting[i] = buffer.getvalue()
            self.bytes += len(self.waiting[i])
            late = time.monotonic() - self.since > PACK_SECONDS
            if not late and len(self.waiting) < PACK_IMAGES and self.bytes < PACK_BYTES:
                return
            full = self._take()
            self._write(full)

    def _take(self) -> dict[int, bytes]:
        full, self.waiting = self.waiting, {}
        self.bytes, self.since = 0, time.monotonic()
        return full

    def _write(self, files: Mapping[int, bytes]) -> None:
        store = self.store
        path = store.folder / f"{_next_number(store.folder):05d}-{store.writer}.zip"
        with writing_atomically(path) as file, zipfile.ZipFile(file, "w") as pack:
            for i, data in sorted(files.items()):
                entry = zipfile.ZipInfo(f"{name_in_pack(store.names[i])}.zip")
                entry.comment = str(i).encode()
                pack.writestr(entry, data)
        store.add(path)


def _next_number(folder: Path) -> int:
    """After those of all packs there are: what is written anew is read in place of what it replaces."""
    return 1 + max((int(path.name.split("-")[0]) for path in folder.glob(_PACKS)), default=-1)


class _Entry(NamedTuple):
    """Where a pack has the labels of an image."""

    image: int
    name: str
    start: int
    length: int


def _entries(path: Path) -> list[_Entry]:
    found = []
    with zipfile.ZipFile(path) as pack, path.open("rb") as file:
        for entry in pack.infolist():
            file.seek(entry.header_offset + _LOCAL_HEADER - 4)
            start = entry.header_offset + _LOCAL_HEADER + int(np.frombuffer(file.read(4), "<u2").sum())
            found.append(_Entry(int(entry.comment), entry.filename[: -len(".zip")], start, entry.file_size))
    return found


def find_labels(folder: Path) -> LabelStore:
    """The labels in a folder, whose images may not be there any more; an image without labels has no name."""
    names: dict[int, str] = {}
    for pack in sorted(folder.glob(_PACKS)):
        with suppress(*_DAMAGED):
            names.update((entry.image, entry.name) for entry in _entries(pack))
    return LabelStore(folder, [names.get(i, "") for i in range(max(names, default=-1) + 1)])


class StoredLabelMaps:
    """Callable i → maps, that worker processes can be sent."""

    def __init__(self, store: LabelStore, keys: Sequence[str]) -> None:
        self.store, self.keys = store, tuple(keys)

    def __call__(self, i: int) -> Mapping[str, NDArray[np.uint8]]:
        """Label maps of image i."""
        try:
            return self.store.read(i, *self.keys)
        except KeyError as error:
            store = self.store
            where = store.pack(i) if store.places[i][0] >= 0 else store.folder
            raise DataError(
                f"{where}: the pseudo labels of {store.names[i]} can't be read; delete the file and go on with --resume"
            ) from error
