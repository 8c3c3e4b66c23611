"""Check a published data set on disk: counts, missing labels, sizes, label values, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from das3.data.class_table import ClassTable
from das3.data.image_files import ImageFiles
from das3.data.images import resize_image, resize_label
from das3.data.labels import classify, evenly_spaced
from das3.data.matching import abbreviate
from das3.data.pixels import as_rgb8
from das3.data.published import find_published
from das3.data.published.base import Files, PublishedDataset
from das3.data.visualize import overlay, palette
from das3.errors import DataError
from das3.losses import IGNORE_INDEX

__all__ = ["Report", "SplitReport", "check_dataset"]

Progress = Callable[[Iterable[int], str, int], Iterable[int]]


@dataclass
class SplitReport:
    """Findings about a split.

    Attributes:
        name: of the split, with its condition where there are some.
        images, published: how many there are, and how many there should be where that is known.
        labels: how many labels are on disk; None where the split has none at all.
        missing: labels that are not there.
        read: how many images and labels were opened.
        sizes: "height×width" → images, of those read.
        unknown: label value that is in no class → files, of those read.
        classes: class → share of the labelled pixels, of those read.
        errors: files that can't be read or don't fit.
    """

    name: str
    images: int = 0
    published: int | None = None
    labels: int | None = None
    missing: list[str] = field(default_factory=list)
    read: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    classes: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Problems, one line each."""
        found = []
        if self.published is not None and self.images != self.published:
            found.append(f"{self.images} images where {self.published} were published")
        if self.missing:
            found.append(f"{len(self.missing)} labels are missing, the first: {self.missing[0]}")
        if self.unknown:
            values = [f"{value} (in {count} files)" for value, count in self.unknown.items()]
            found.append(f"label values in no class: {abbreviate(values)}")
        return found + self.errors

    @property
    def absent(self) -> list[str]:
        """Classes that no label shows."""
        return [name for name, share in self.classes.items() if share == 0]


@dataclass
class Report:
    """Findings of `check_dataset`.

    Attributes:
        name, root: of the data set.
        splits: those that are there.
        absent: those that are not, and why.
        sheet: the contact sheet, if one was drawn.
    """

    name: str
    root: str
    splits: list[SplitReport]
    absent: dict[str, str]
    sheet: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the splits on disk have no problems."""
        return not any(split.problems for split in self.splits)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}

    def text(self) -> str:
        """A table, then the problems."""
        lines = [f"{self.name} in {self.root}", f"{'split':<16}{'images':>8}{'labels':>8}{'read':>6}  sizes"]
        for split in self.splits:
            labels = "none" if split.labels is None else split.labels
            sizes = abbreviate([f"{size} ({count})" for size, count in split.sizes.items()], 3)
            lines.append(f"{split.name:<16}{split.images:>8}{labels:>8}{split.read:>6}  {sizes}")
        lines += [f"{name:<16}  not found: {why}" for name, why in self.absent.items()]
        for split in self.splits:
            lines += [f"! {split.name}: {problem}" for problem in split.problems]
            if split.absent:
                lines.append(f"  {split.name}: no pixel of {', '.join(split.absent)} in the labels that were read")
        return "\n".join(
            [*lines, *([f"contact sheet: {self.sheet}"] if self.sheet else []), "ok" if self.ok else "not ok"]
        )


def check_dataset(
    name: str,
    root: str | Path,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    condition: str | None = None,
    classes: int | None = None,
    sample: int | None = 200,
    progress: Progress | None = None,
) -> Report:
    """Verify a published data set; what `das3 data check NAME ROOT` does.

    Args:
        name: of the data set, a key of `das3.data.published.DATASETS`.
        root: its folder.
        out: PNG file for a contact sheet: images and their labels, a row per split.
        split: check only this one; all when None.
        condition: check only this one; all when None.
        classes: how many the labels are read as.
        sample: images and labels of each split that are opened, evenly spread; all when None. Files are always counted.
        progress: wraps the iteration over what is opened (items, what, total).

    Raises:
        DataError: if the name or the root does not exist, or no split is there.
    """
    dataset = find_published(name, root, condition, classes)
    splits: list[SplitReport] = []
    absent: dict[str, str] = {}
    rows: list[list[NDArray[np.uint8]]] = []
    for chosen in (split,) if split else dataset.splits:
        for part in dataset.wanted():
            title = f"{chosen}/{part}" if part else chosen
            one = find_published(name, root, part or None, classes)
            try:
                files = one.files(chosen)
            except DataError as error:
                absent[title] = str(error)
                continue
            report, pictures = _check_split(one, chosen, title, files, sample, progress)
            splits.append(report)
            rows.append(pictures)
    if not splits:
        raise DataError(next(iter(absent.values())))
    if out is not None:
        _sheet([report.name for report in splits], rows).save(_png(out))
    return Report(dataset.name, str(root), splits, absent, str(out) if out is not None else None)


def _png(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"the contact sheet is a PNG; name it {path.with_suffix('.png')}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check_split(
    dataset: PublishedDataset, split: str, title: str, files: Files, sample: int | None, progress: Progress | None
) -> tuple[SplitReport, list[NDArray[np.uint8]]]:
    report = SplitReport(title, len(files.images), dataset.published_count(split))
    images = ImageFiles(files.images, dataset.root)
    table = dataset.table(files.form) if files.form else None
    if files.form:
        gone = files.missing
        report.missing = [str(path.relative_to(dataset.root)) for path in gone]
        report.labels = len(files.labels) - len(gone)
    chosen = evenly_spaced(len(images), sample)
    shown = set(evenly_spaced(len(chosen), 4))
    pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
    sizes: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    pictures: list[NDArray[np.uint8]] = []
    for place in progress(range(len(chosen)), f"reading {title}", len(chosen)) if progress else range(len(chosen)):
        i = chosen[place]
        try:
            sizes["{}×{}".format(*images.size(i))] += 1
            label = None
            if files.form and table and files.labels[i].is_file():
                label, odd = classify(files.form.decode(files.labels[i]), table)
                unknown.update(odd)
                pixels += np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
                if label.shape != images.size(i):
                    raise DataError(f"label {files.labels[i]} is {label.shape}, its image {images.size(i)}")
            if place in shown:
                pictures += _thumbnails(as_rgb8(images[i]), label, table)
        except DataError as error:
            report.errors.append(str(error))
    report.read, report.sizes, report.unknown = len(chosen), dict(sizes.most_common()), dict(unknown.most_common())
    if table and pixels[:IGNORE_INDEX].any():
        shares = pixels[: len(table.names)] / pixels[:IGNORE_INDEX].sum()
        report.classes = dict(zip(table.names, shares.tolist(), strict=True))
    return report, pictures


def _thumbnails(
    image: NDArray[np.uint8], label: NDArray[np.uint8] | None, table: ClassTable | None, height: int = 120
) -> list[NDArray[np.uint8]]:
    """The image, and the image under its label where there is one."""
    size = (height, max(1, round(height * image.shape[1] / image.shape[0])))
    small = resize_image(image, size)
    if label is None or table is None:
        return [small]
    colors = np.array(table.colors, np.uint8) if table.colors else palette(len(table.names))
    return [small, overlay(small, resize_label(label, size), colors)]


def _sheet(titles: Sequence[str], rows: Sequence[Sequence[NDArray[np.uint8]]], gap: int = 6) -> Image.Image:
    """Rows of pictures, each under its title."""
    width = max(sum(picture.shape[1] + gap for picture in row) for row in rows) + gap
    heights = [max((picture.shape[0] for picture in row), default=0) + 16 + gap for row in rows]
    sheet = Image.new("RGB", (max(width, 200), sum(heights) + gap), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for title, row, height in zip(titles, rows, heights, strict=True):
        draw.text((gap, top), title, fill="black")
        left = gap
        for picture in row:
            sheet.paste(Image.fromarray(picture), (left, top + 16))
            left += picture.shape[1] + gap
        top += height
    return sheet
