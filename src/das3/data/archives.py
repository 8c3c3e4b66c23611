"""Images straight from tar files, as webdataset writes them, and from URLs, without unpacking or copying them first.

An index of names, places and sizes is made once, from the headers; an image is then one read of its bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from das3.data.dataset_images import DatasetImages
from das3.data.decoding import open_picture, readable, refuse_large
from das3.data.formats import pillow_form
from das3.data.image_files import SUFFIXES, unique_names
from das3.errors import DataError

__all__ = ["ArchivedImages", "is_archive", "open_archives"]

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.:-]+://")
_IMAGE_FIRST = (".jpg", ".jpeg", ".webp", ".png")
"""Which file of a sample is its image where it has several."""
_HEADER = 2**16
"""Bytes in which an image's size usually stands."""
_BLOCK = 2**14
_READ_REMOTELY = 16
"""Images of a URL whose contents a fingerprint is of; of the others it is the size."""


@dataclass(frozen=True)
class _Member:
    """Where an image lies: a file or URL, and its bytes in it."""

    file: str
    begin: int
    size: int


def is_archive(source: str | Path) -> bool:
    """Whether images are to be read from tar files or a URL: it is one, a pattern of some, or a folder of nothing else.

    Args:
        source: `set.tar`, `shards/*.tar`, `s3://bucket/folder`, `https://host/set.tar`, …
    """
    text = str(source)
    if _URL.match(text):
        return True
    if text.lower().endswith(".tar"):
        return not Path(text).is_dir()
    return Path(text).is_dir() and bool(_tars(Path(text)))


def _tars(folder: Path) -> list[Path]:
    """The tar files of a folder that holds them and no images beside them."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    tars = sorted(path for path in files if path.suffix.lower() == ".tar")
    return [] if any(path.suffix.lower() in SUFFIXES for path in files) else tars


def open_archives(source: str | Path) -> ArchivedImages:
    """The images of what `is_archive` says yes to.

    An image is named by its path in the tar file, after the tar file's name if there are several. Files whose
    names differ after the first dot alone, `key.jpg` and `key.seg.png`, are one sample, as in webdataset, and one of
    them is its image.

    Raises:
        DataError: if there are no images, or they can't be reached.
    """
    text = str(source)
    with _reachable(text):
        if not _URL.match(text):
            shards = _local_shards(text)
        else:
            system, path = _file_system(text)
            shards = _remote_shards(system, path, text)
            if not shards:
                return _remote_files(system, path, text)
        return _of_shards(shards, text)


def _local_shards(text: str) -> list[str]:
    if Path(text).is_dir():
        return [str(path) for path in _tars(Path(text))]
    if not Path(text).is_file() and has_magic(text):
        return sorted(glob(text, recursive=True))
    return [text]


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]


def _remote_shards(system: Any, path: str, url: str) -> list[str]:
    """URLs of tar files: that one, those of a pattern, or those right in a folder."""
    if has_magic(path):
        found = sorted(system.glob(path))
    elif path.lower().endswith(".tar"):
        found = [path]
    else:
        found = sorted(name for name in system.ls(path, detail=False) if str(name).lower().endswith(".tar"))
    return [_url_of(system, name, url) for name in found if str(name).lower().endswith(".tar")]


def _url_of(system: Any, path: str, url: str) -> str:
    chain = url.rpartition("::")[0]
    return f"{chain}::{system.unstrip_protocol(path)}" if chain else str(system.unstrip_protocol(path))


def _remote_files(system: Any, path: str, url: str) -> ArchivedImages:
    found = dict.fromkeys(system.glob(path)) if has_magic(path) else system.find(path, detail=True)
    names = sorted(name for name in found if PurePosixPath(name).suffix.lower() in SUFFIXES)
    if not names:
        raise DataError(f"no images found at {url}; looked for tar files and for {' '.join(sorted(SUFFIXES))}")
    members = [
        _Member(_url_of(system, name, url), 0, int((found[name] or system.info(name)).get("size") or 0))
        for name in names
    ]
    root = path.rstrip("/")
    if not all(PurePosixPath(name).is_relative_to(root) and name != root for name in names):
        root = os.path.commonpath([str(PurePosixPath(name).parent) for name in names])
    return ArchivedImages(unique_names([Path(name).relative_to(root) for name in names]), members)


def _of_shards(shards: Sequence[str], source: str) -> ArchivedImages:
    members: list[_Member] = []
    paths: list[Path] = []
    for shard in shards:
        for name, begin, size in _images_of(_index(shard), shard):
            members.append(_Member(shard, begin, size))
            paths.append(Path(PurePosixPath(shard).stem, name) if len(shards) > 1 else Path(name))
    if not members:
        raise DataError(f"no images found in {source}; tar files must hold {' '.join(sorted(SUFFIXES))}")
    return ArchivedImages(unique_names(paths), members)


_Entry = tuple[PurePosixPath, int, int]


def _index(shard: str) -> Iterator[_Entry]:
    """Name, first byte and size of the image files in a tar file; the images are not read."""
    with _opened(shard) as file, readable(shard, "tar file"), tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if not member.isreg() or member.issparse() or name.name.startswith("."):
                continue
            if name.suffix.lower() not in SUFFIXES:
                continue
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{shard} holds {member.name}, a name that leads out of a folder; pack it anew")
            yield name, member.offset_data, member.size


def _images_of(entries: Iterator[_Entry], shard: str) -> list[_Entry]:
    """Of each sample its image."""
    samples: dict[tuple[PurePosixPath, str], list[_Entry]] = {}
    for entry in entries:
        samples.setdefault((entry[0].parent, entry[0].name.partition(".")[0]), []).append(entry)

    def order(entry: _Entry) -> tuple[int, int]:
        suffix = entry[0].suffix.lower()
        return entry[0].name.count("."), _IMAGE_FIRST.index(suffix) if suffix in _IMAGE_FIRST else len(_IMAGE_FIRST)

    return [min(found, key=order) for found in samples.values()]


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    if not _URL.match(file):
        with open(file, "rb") as local:
            yield local
        return
    system, path = _file_system(file)
    with system.open(path, "rb", block_size=_HEADER) as remote:
        yield remote


@contextmanager
def _reachable(source: str) -> Iterator[None]:
    """Whatever keeps files from being read is a DataError that names them."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"can't reach {source}: {error}; for s3:// pip install 'das3[s3]'") from error
    except Exception as error:  # each kind of file system has errors of its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"can't read {source} ({reason}); check the address and that you may read it") from error


class ArchivedImages(DatasetImages):
    """Images in tar files or behind URLs."""

    def __init__(self, names: Sequence[str], members: Sequence[_Member]) -> None:
        super().__init__(_Members(list(members)))
        self.names, self.is_thread_safe = list(names), True
        self._headers: dict[int, tuple[int, int]] = {}

    def only(self, chosen: Sequence[int]) -> ArchivedImages:
        """Those of these indices alone, under the same names."""
        some = copy(self)
        some.dataset = _Members([self.dataset.members[i] for i in chosen])
        some.names, some._headers = [self.names[i] for i in chosen], {}
        some.__dict__.pop("_sizes", None)
        return some

    def size(self, i: int) -> tuple[int, int]:
        """From the image's header, mostly the first bytes of it; the pixels are not decoded."""
        i = range(len(self))[i]
        if i not in self._headers:
            self._headers[i] = self.dataset.size(i)
        return self._headers[i]

    def verify(self) -> None:
        """Look at the headers of all."""
        self.sizes()

    def digest(self, i: int, most: int) -> str:
        """Fingerprint of the bytes of image i, or of evenly spread parts where they are more than `most`.

        Of a URL, where that takes long, of a few images; of the others of the size alone.
        """
        member = self.dataset.members[i]
        found = hashlib.blake2b(str(member.size).encode(), digest_size=12)
        if _URL.match(member.file):
            few = set(np.linspace(0, len(self) - 1, min(_READ_REMOTELY, len(self))).round().astype(int).tolist())
            if i in few:
                found.update(self.dataset.read(i))
        elif member.size <= most:
            found.update(self.dataset.read(i))
        else:
            for begin in np.linspace(0, member.size - _BLOCK, most // _BLOCK).astype(np.int64).tolist():
                found.update(self.dataset.read(i, begin, _BLOCK))
        return found.hexdigest()


class _Members:
    """The images as Pillow's, decoded."""

    def __init__(self, members: list[_Member]) -> None:
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def read(self, i: int, begin: int = 0, count: int | None = None) -> bytes:
        """Bytes of image i, all of them where `count` is None."""
        member = self.members[i]
        first = member.begin + begin
        end = member.begin + (member.size if count is None else min(member.size, begin + count))
        with _reachable(member.file):
            if _URL.match(member.file):
                system, path = _file_system(member.file)  # each process has its own connection
                data = system.cat_file(path, start=first, end=end)
                if len(data) > end - first:  # of a server that sends whole files only
                    data = data[first:end]
            else:
                with open(member.file, "rb") as file:
                    file.seek(first)
                    data = file.read(end - first)
        if len(data) != end - first:
            raise DataError(f"{member.file} is shorter than it was when it was opened; restore it")
        return bytes(data)

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of image i."""
        try:
            with open_picture(io.BytesIO(self.read(i, 0, _HEADER))) as image:
                return pillow_form(image).size
        except DataError:
            raise
        except Exception:  # the header is longer
            with readable(self.members[i].file), open_picture(io.BytesIO(self.read(i))) as image:
                return pillow_form(image).size

    def __getitem__(self, i: int) -> Image.Image:
        where = f"{i} of {self.members[i].file}"
        with readable(where):
            image = open_picture(io.BytesIO(self.read(i)))
            refuse_large(where, (image.height, image.width))
            image.load()
        return image
