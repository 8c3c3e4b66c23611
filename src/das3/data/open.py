"""Open images, and images with labels, from a folder, a list, a data set or a Python object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from das3.data.archives import is_archive, open_archives
from das3.data.class_table import ClassTable, load_class_map
from das3.data.dataset_images import DatasetImages
from das3.data.image_files import SUFFIXES, ImageFiles, find_files, is_image_file
from das3.data.images import Images
from das3.data.labels import Labelled, decode_label, evenly_spaced, find_table
from das3.data.matching import match_labels
from das3.data.medical import is_nifti
from das3.data.published import is_spec, open_spec, spec_images
from das3.data.volumes import VolumeSlices
from das3.errors import DataError
from das3.losses import IGNORE_INDEX
from das3.text_files import read_text

__all__ = ["is_glob", "open_images", "open_labelled"]


def open_images(source: Any) -> Images:
    """Images of a folder tree, a list file, a sequence of paths or a dataset object.

    Args:
        source: a published data set, `NAME:ROOT?split=…` (see `das3.data.published`); a pattern
            (`shots/**/*.png`); a folder, searched with all its sub-folders (hidden ones left out); a tar file, a
            pattern or a folder of them, or a URL (`s3://bucket/shards/*.tar`), see `das3.data.archives`; a .txt file
            with one path a line, relative to the file's folder, blank
            lines and lines that begin with # skipped; a sequence of paths; an `Images`; or any object with `__len__`
            and `__getitem__` whose items are images (PIL, or H×W×B or B×H×W integers or floats in [0, 1], B = 3 for
            RGB), alone, first in a tuple, or under "image" or "pixel_values"; a PyTorch `DataLoader` stands for its
            dataset, since das3 makes its own batches.

    Raises:
        DataError: if there are no images.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, DataLoader):
        return _of_loader(source)
    if isinstance(source, str) and is_spec(source):
        return spec_images(source)
    if isinstance(source, str | Path):
        try:
            if is_archive(source):
                return open_archives(source)
            return _open_glob(str(source)) if is_glob(source) else _open_path(Path(source))
        except OSError as error:  # a name that is too long, links in a circle
            raise DataError(f"no images at {str(source)[:200]} ({error.strerror})") from None
    if isinstance(source, Sequence) and source and all(isinstance(p, str | Path) for p in source):
        return _listed([Path(p) for p in source])
    if isinstance(source, Image.Image) or getattr(source, "ndim", None) in (2, 3):
        raise DataError("one image is given in place of several; put it into a list: images=[image]")
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        if not len(source):
            raise DataError("there are no images: the dataset or list is empty")
        return DatasetImages(source)
    raise DataError(f"can't take images from {type(source).__name__}; give a folder, a .txt list, paths or a dataset")


def _of_loader(loader: DataLoader[Any]) -> Images:
    """Images of what a loader loads from: its batches, shuffling and workers are not das3's."""
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        raise DataError(
            "can't take images from a DataLoader whose dataset is only iterable; give a dataset with __len__ and "
            "__getitem__, a folder, a .txt list or paths"
        )
    return open_images(loader.dataset)


def is_glob(source: str | Path) -> bool:
    """Whether a name is a pattern (`shots/**/*.png`), and no file or folder is called so."""
    return has_magic(str(source)) and not Path(source).exists()


def _open_glob(pattern: str) -> Images:
    found = sorted(p for p in map(Path, glob(pattern, recursive=True)) if is_image_file(p) and p.is_file())
    if not found:
        raise DataError(f"no images match {pattern}; put quotes around it, and use ** for sub-folders of any depth")
    return _listed(found)


def _open_path(path: Path) -> Images:
    if path.is_dir():
        found = find_files(path)
        if not found:
            raise DataError(
                f"no images found in {path}; looked in all sub-folders for {' '.join(sorted(SUFFIXES))} .nii .nii.gz"
            )
        return _of_files(found, path)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in read_text(path).splitlines()]
        listed = [path.parent / line for line in lines if line and not line.startswith("#")]
        if not listed:
            raise DataError(f"no images listed in {path}; write one path a line, relative to the file's folder")
        return _listed(listed, path.parent)
    if path.is_file() and is_image_file(path):
        return _of_files([path], path.parent)
    raise DataError(f"no images at {path}; give an existing folder, or a .txt file that lists images")


def _listed(paths: Sequence[Path], root: Path | None = None) -> Images:
    """Named by their paths below `root`, or below the folder that holds them all if some are not in it."""
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} listed images do not exist, the first: {missing[0]}")
    plain = [Path(os.path.abspath(p)) for p in paths]
    root = Path(os.path.abspath(root)) if root else None
    if root is None or not all(p.is_relative_to(root) for p in plain):
        root = Path(os.path.commonpath([p.parent for p in plain]))
    return _of_files(plain, root)


def _of_files(paths: Sequence[Path], root: Path) -> Images:
    """Images in files: one in each, or every slice of NIfTI volumes.

    Raises:
        DataError: if there are files of both kinds.
    """
    volumes = [is_nifti(path) for path in paths]
    if not any(volumes):
        return ImageFiles(paths, root)
    if not all(volumes):
        other = paths[volumes.index(False)]
        raise DataError(f"{paths[volumes.index(True)]} is a NIfTI volume and {other} is not; give folders of one kind")
    return VolumeSlices(paths, root)


def open_labelled(
    images: Any,
    labels: str | Path | None = None,
    classes: ClassTable | str | Path | None = None,
    *,
    class_map: str | Mapping[int, int] | None = None,
    num_classes: int | None = None,
) -> Labelled:
    """Images and their labels, matched by file name.

    Args:
        images: see `open_images`.
        labels: folder of label files; None for a published data set. The label of `a/b.jpg` is `a/b.*`; else the one
            file that begins with `a/b` and a separator (`b_labelIds.png`, `b-mask.png`), where endings of image files
            such as `_leftImg8bit` are left out; else what is found so without the outer folders (`b.*`).
        classes: table, or its file; when None, a `classes.json` or `classes.yaml` beside or above the labels is used,
            else the values are the classes 0 … `num_classes` − 1. Without ids of their own, two classes may also be
            masks of 0 and 255.
        class_map: mapping, or `FILE.json[:key]`, from those classes to the model's.
        num_classes: of the model; needed where there is no table, and the least number of classes after a map.

    Raises:
        DataError: if labels are missing or the table can't be used.
    """
    if labels is None:
        labelled = _published(images)
    else:
        labelled = _parallel(open_images(images), Path(labels), classes, num_classes)
    if class_map is None:
        return labelled
    mapping = load_class_map(class_map) if isinstance(class_map, str) else class_map
    there = range(len(labelled.table.names))
    if odd := [c for c in mapping if c not in there and c not in (-1, IGNORE_INDEX)]:
        raise DataError(
            f"{class_map if isinstance(class_map, str) else 'the class map'} maps class {odd[0]}, but the labels have "
            f"the classes 0 to {len(there) - 1}; name the labels' table with --classes, or take that entry out"
        )
    table = labelled.table.mapped(mapping, count=num_classes or 0)
    return Labelled(labelled.images, labelled.paths, table, labelled.decode)


def _published(spec: Any) -> Labelled:
    if not isinstance(spec, str) or not is_spec(spec):
        raise DataError("labels are missing; give their folder with --labels (or --eval-labels)")
    found = open_spec(spec)
    if isinstance(found, Images):
        raise DataError(f"{spec} has no labels on disk; choose another split")
    return found


def _parallel(images: Images, root: Path, classes: ClassTable | str | Path | None, num_classes: int | None) -> Labelled:
    if not root.is_dir():
        raise DataError(f"no folder of labels at {root}")
    table = classes if isinstance(classes, ClassTable) else find_table(root, classes, num_classes)
    paths = match_labels(images.names, root)
    if len(table.names) == 2 and table.ids is None and _are_masks(paths):
        table = replace(table, ids={0: 0, 255: 1}, ignore=frozenset())
    return Labelled(images, paths, table)


def _are_masks(paths: Sequence[Path], sample: int = 32) -> bool:
    """Whether 255 means the second class: nothing but 0 and 255 occurs in a sample of the files.

    Said of all files or none: in a set of ids with 255 for ignore, single files may lack the second class.
    """
    found: set[int] = set()
    for i in evenly_spaced(len(paths), sample):
        found.update(np.unique(decode_label(paths[i])).tolist())
    return found <= {0, 255} and 255 in found
