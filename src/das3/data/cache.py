"""Images and labels decoded once into flat files, which many processes then read as if they were memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.class_table import ClassTable
from das3.data.images import Images, Size, resize_image, resized_shape
from das3.data.labels import Labelled, evenly_spaced
from das3.data.shared_cache import Room
from das3.files import write_atomically

__all__ = ["fingerprint", "open_packed", "pack"]

LARGEST = 8 * 2**30
"""Bytes of the largest set that is packed."""


def fingerprint(data: Images | Labelled) -> str:
    """Fingerprint of a set of images: all names, and shape, mean colour and classes of three of them."""
    images = data.images if isinstance(data, Labelled) else data
    known: list[Any] = [images.names]
    for i in evenly_spaced(len(images), 3):
        image = images[i]
        known.append(
            [image.shape, (image.mean(axis=(0, 1)) * (255 if image.dtype.kind == "f" else 1)).round().tolist()]
        )
        if isinstance(data, Labelled):
            known.append([data.class_names, np.unique(data.label(i)).tolist()])
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def pack(data: Images | Labelled, folder: Path, size: Size = None) -> bool:
    """Write images, at `size`, and labels, at their own size, into `folder`; files that exist already are kept.

    Returns:
        Whether it was done; sets that are very large, larger than half of the free disk space, or of images other than
        8-bit RGB are not cached.
    """
    mark = {"fingerprint": fingerprint(data), "size": size}
    index = folder / "index.json"
    if index.exists() and json.loads(index.read_text())["mark"] == json.loads(json.dumps(mark)):
        return True
    images = data.images if isinstance(data, Labelled) else data
    if images[0].dtype != np.uint8 or images.pixels is not None:
        return False
    shapes = [resized_shape(shape, size) for shape in images.sizes()]
    needed = sum(3 * height * width for height, width in [*shapes, *images.sizes()])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if needed > min(LARGEST, shutil.disk_usage(folder).free // 2):
        return False
    with ExitStack() as stack:
        pixels = stack.enter_context((folder / "images.bin").open("wb"))
        labels = stack.enter_context((folder / "labels.bin").open("wb")) if isinstance(data, Labelled) else None
        for i in range(len(images)):
            pixels.write(resize_image(images[i], size).tobytes())
            if labels is not None and isinstance(data, Labelled):
                labels.write(data.label(i).tobytes())
    about: dict[str, Any] = {"mark": mark, "names": images.names, "shapes": shapes}
    if isinstance(data, Labelled):
        about |= {"label_shapes": images.sizes(), "classes": data.class_names, "colors": data.table.colors}
    write_atomically(index, json.dumps(about))
    return True


def open_packed(folder: Path) -> Images | Labelled:
    """What `pack` wrote. Images may be smaller than their labels: for training, not for measuring."""
    about = json.loads((folder / "index.json").read_text())
    images = _PackedImages(about["names"], _Flat(folder / "images.bin", [(*shape, 3) for shape in about["shapes"]]))
    if "classes" not in about:
        return images
    colors = tuple((r, g, b) for r, g, b in about["colors"]) if about["colors"] else None
    labels = _Flat(folder / "labels.bin", [tuple(shape) for shape in about["label_shapes"]])
    return _PackedLabelled(images, labels, ClassTable(tuple(about["classes"]), colors=colors))


class _Flat:
    """uint8 arrays of any shapes, one after the other in a file."""

    def __init__(self, path: Path, shapes: Sequence[tuple[int, ...]]) -> None:
        self.path, self.shapes = path, list(shapes)
        self.starts = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes)]).tolist()
        self.bytes: NDArray[np.uint8] | None = None

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        i = range(len(self.shapes))[i]
        if self.bytes is None:
            self.bytes = np.memmap(self.path, np.uint8, "r")
        found: NDArray[np.uint8] = np.array(self.bytes[self.starts[i] : self.starts[i + 1]]).reshape(self.shapes[i])
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the file for themselves."""
        return {**self.__dict__, "bytes": None}


class _PackedImages(Images):
    """Images of a packed set."""

    def __init__(self, names: Sequence[str], flat: _Flat) -> None:
        super().__init__(names)
        self.flat = flat

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return self.flat[i]

    def size(self, i: int) -> tuple[int, int]:
        """Known."""
        height, width, _ = self.flat.shapes[i]
        return height, width

    def resized(self, size: Size, *, room: Room | None = None) -> Images:
        """Itself where that is its size: the file is cache enough."""
        fits = all(resized_shape(shape, size) == shape for shape in self.sizes())
        return self if fits else super().resized(size, room=room)


class _PackedLabelled(Labelled):
    """A packed set with labels."""

    def __init__(self, images: Images, labels: _Flat, table: ClassTable) -> None:
        super().__init__(images, (), table)
        self.flat = labels

    def label(self, i: int) -> NDArray[np.uint8]:
        """H×W uint8 class ids, 255 where ignored."""
        return self.flat[i]
