"""Base of all published data sets: where the files of a split are, and what the label values mean."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from das3.data.class_table import ClassTable
from das3.data.image_files import ImageFiles, find_files
from das3.data.images import Images
from das3.data.labels import Decode, Labelled, decode_label
from das3.data.matching import abbreviate
from das3.data.published.classes import SUBSETS, subset
from das3.errors import DataError

__all__ = ["Files", "LabelForm", "Part", "Polygons", "PublishedDataset"]


@dataclass(frozen=True)
class LabelForm:
    """One form in which labels are published.

    Attributes:
        folders: below the root; the first that exists holds the same tree as the images.
        ending: of a label file, suffix included, in place of the ending of the image.
        table: what the values mean, or how to find out.
        decode: how to read a file.
    """

    folders: tuple[str, ...]
    ending: str
    table: ClassTable | Callable[[], ClassTable]
    decode: Decode = decode_label


@dataclass(frozen=True)
class Part:
    """The images of one split and condition.

    Attributes:
        folders: below the root, the first that exists is searched with all its sub-folders.
        ending: that the stems of these images have, and their labels lack.
        labels: forms of their labels, the first found is used; none where the split has no labels.
    """

    folders: tuple[str, ...]
    ending: str = ""
    labels: tuple[LabelForm, ...] = ()


@dataclass
class Files:
    """What is on disk of a split.

    Attributes:
        images: image files.
        labels: where the label of each image should be; empty if no label of the split is on disk.
        form: of the labels.
    """

    images: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)
    form: LabelForm | None = None

    @property
    def missing(self) -> list[Path]:
        """Labels that should be there and are not."""
        return [path for path in self.labels if not path.is_file()]


class PublishedDataset(ABC):
    """A data set in the layout it is published in.

    Args:
        root: its folder.
        condition: one of `conditions`; None for all of them, unless the data set says otherwise.
        classes: how many, one of `class_counts`; None for the first of them.

    Attributes:
        name: in specs.
        splits: the official ones, that to train on first.
        conditions: weather, time of day, city, version; what else the data set is divided by.
        class_counts: numbers of classes that its labels can be read as.
        counts: published number of images of a split ("val") or of each condition of it ("val/night").

    Raises:
        DataError: if the root, the condition or the number of classes does not exist.
    """

    name: ClassVar[str]
    splits: tuple[str, ...] = ("train", "val", "test")
    conditions: ClassVar[tuple[str, ...]] = ()
    class_counts: ClassVar[tuple[int, ...]] = (19, 16, 13)
    counts: ClassVar[Mapping[str, int]] = {}

    def __init__(self, root: str | Path, condition: str | None = None, classes: int | None = None) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{self.name}: there is no folder {root}")
        self.condition = self._pick("condition", condition, self.conditions) if condition is not None else None
        if classes is not None and classes not in self.class_counts:
            raise DataError(f"{self.name}: classes={classes} is not among {abbreviate(self.class_counts)}")
        self.classes = classes or next(iter(self.class_counts), None)

    def _pick(self, what: str, given: str, known: tuple[str, ...]) -> str:
        found = [value for value in known if value.lower() == given.lower()]
        if not found:
            raise DataError(f"{self.name}: {what}={given} is not among {abbreviate(known, 20) or 'none at all'}")
        return found[0]

    @abstractmethod
    def part(self, split: str, condition: str) -> Part:
        """Where the images of a split and condition are ("" where there are no conditions)."""

    def belongs(self, split: str, condition: str, stem: str) -> bool:
        """Whether an image in the folder belongs to the split, for data sets that keep all in one folder."""
        return True

    def wanted(self) -> tuple[str, ...]:
        """The conditions that were asked for."""
        return (self.condition,) if self.condition is not None else self.conditions or ("",)

    def files(self, split: str) -> Files:
        """What is on disk of a split.

        Raises:
            DataError: if the split does not exist or has no images.
        """
        split = self._pick("split", split, self.splits)
        found = Files()
        for condition in self.wanted():
            self._collect(found, self.part(split, condition), split, condition)
        if not found.images:
            folders = [folder for condition in self.wanted() for folder in self.part(split, condition).folders]
            raise DataError(
                f"{self.name}: no images of split {split} in {self.root}; looked in {abbreviate(folders, 4)}"
            )
        return found

    def _collect(self, found: Files, part: Part, split: str, condition: str) -> None:
        folder = self._first(part.folders)
        if folder is None:
            return
        stems = {
            path: path.relative_to(folder).with_suffix("").as_posix().removesuffix(part.ending)
            for path in find_files(folder)
            if path.stem.endswith(part.ending) and self.belongs(split, condition, path.stem)
        }
        found.images += stems
        for form in part.labels:
            labels = self._first(form.folders)
            expected = [labels / f"{stem}{form.ending}" for stem in stems.values()] if labels else []
            if labels and any(path.is_file() for path in expected):
                if found.form and found.form.ending != form.ending:
                    forms = f"{found.form.ending} and {form.ending}"
                    raise DataError(f"{self.name}: labels of {split} come as {forms}; keep one form for all conditions")
                found.labels += expected
                found.form = form
                return

    def published_count(self, split: str) -> int | None:
        """How many images the split should have, where it is known."""
        if split in self.counts:
            return self.counts[split]
        known = [self.counts[key] for key in (f"{split}/{c}" for c in self.wanted()) if key in self.counts]
        return sum(known) if known else None

    def _first(self, folders: tuple[str, ...]) -> Path | None:
        return next((self.root / folder for folder in folders if (self.root / folder).is_dir()), None)

    def images(self, split: str) -> Images:
        """The images of a split; labels are not looked at."""
        return ImageFiles(self.files(split).images, self.root)

    def labelled(self, split: str) -> Labelled | None:
        """The images of a split with their labels; None if none of these is on disk.

        Raises:
            DataError: if some labels are there and some are not.
        """
        files = self.files(split)
        if files.form is None:
            return None
        if files.missing or len(files.labels) < len(files.images):
            without = len(files.images) - len(files.labels) + len(files.missing)
            first = f", the first: {files.missing[0]}" if files.missing else ""
            raise DataError(f"{self.name}: {without} of {len(files.images)} images of {split} have no label{first}")
        return Labelled(ImageFiles(files.images, self.root), files.labels, self.table(files.form), files.form.decode)

    def table(self, form: LabelForm) -> ClassTable:
        """What the values in labels of this form mean, for the number of classes that was asked for."""
        table = form.table() if callable(form.table) else form.table
        return subset(table, self.classes) if self.classes in SUBSETS and self.classes != 19 else table


@dataclass(frozen=True)
class Polygons:
    """Draws the polygons of a Cityscapes-style JSON file, as cityscapesscripts does, into an id map.

    Attributes:
        ids: name → id.
        background: id where nothing is drawn.
    """

    ids: Mapping[str, int]
    background: int

    def __call__(self, path: Path) -> NDArray[Any]:
        """H×W uint8 ids.

        Raises:
            DataError: if the file is broken or has an unknown name.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            picture = Image.new("L", (data["imgWidth"], data["imgHeight"]), self.background)
            draw = ImageDraw.Draw(picture)
            for shape in data["objects"]:
                number = self._id(shape["label"], path)
                points = [(x, y) for x, y in shape["polygon"]]
                if number is not None and not shape.get("deleted") and len(points) > 1:
                    draw.polygon(points, fill=number)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"can't read polygons {path} ({error}); repair or remove the file") from error
        return np.array(picture)

    def _id(self, name: str, path: Path) -> int | None:
        """None for what is not drawn; a group of something counts as that thing."""
        if name == "license plate" and name not in self.ids:
            return None
        known = name if name in self.ids else name.removesuffix("group")
        if known not in self.ids:
            raise DataError(f"polygons {path} have the name {name!r}, which is in no class")
        return self.ids[known]
