"""Fingerprints of what a run is given: two that are equal mean the same contents, wherever the files lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from das3.data.archives import ArchivedImages
from das3.data.image_files import ImageFiles
from das3.data.images import Images
from das3.files import os_error
from das3.many_files import map_files

__all__ = ["bytes_per_file", "file_digest", "file_digests", "image_digests", "weights_hash"]

_BUDGET = 2 * 2**30
"""Bytes that are read of a set of files: all of a small set, parts of every file of a large one."""
_LEAST = 2**18
"""Bytes that are read of a file at least."""
_BLOCK = 2**14
_DECODED = 16  # images of a dataset object that are looked at: each costs a decoding


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a network's parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def bytes_per_file(count: int) -> int:
    """How much is read of each of so many files, so that all of them cost no more than a few seconds."""
    return max(_LEAST, _BUDGET // max(1, count))


def file_digest(path: Path, most: int) -> str:
    """Digest of a file's contents; of a file of more than `most` bytes, of its size and evenly spread parts.

    Times are left out: a copy has new ones. A compressed image that was edited differs nearly everywhere.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=12)
        if size <= most:
            while block := file.read(min(size + 1, 2**20)):  # memory of a MiB takes longer than reading a small file
                digest.update(block)
        else:
            for begin in np.linspace(0, size - _BLOCK, most // _BLOCK).astype(np.int64).tolist():
                file.seek(begin)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def file_digests(names: Sequence[str], paths: Sequence[Path], most: int) -> dict[str, str]:
    """Name → digest of each file, see `file_digest`; of one that can't be read, why.

    Args:
        names: of the files, unique.
        paths: the files, as many.
        most: bytes to read of each.
    """

    def digest(path: Path) -> str:
        try:
            return file_digest(path, most)
        except OSError as error:
            return f"not readable: {(os_error(error) or error).strerror}"

    return dict(zip(names, map_files(digest, paths), strict=True))


def image_digests(images: Images, most: int) -> Mapping[str, str]:
    """Name → digest of each image: of its file, or of the pixels of a few where there are no files."""
    if isinstance(images, ImageFiles):
        return file_digests(images.names, images.paths, most)
    if isinstance(images, ArchivedImages):
        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            digests = pool.map(lambda i: images.digest(i, most), range(len(images)))
            return dict(zip(images.names, digests, strict=True))
    found = dict.fromkeys(images.names, "")
    for i in sorted({int(i) for i in np.linspace(0, len(images) - 1, min(_DECODED, len(images))).round()}):
        pixels = np.ascontiguousarray(images[i])
        about = f"{pixels.shape} {pixels.dtype}".encode()
        found[images.names[i]] = hashlib.blake2b(about + pixels.tobytes(), digest_size=12).hexdigest()
    return found
