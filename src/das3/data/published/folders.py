"""The plainest layout: `images/NAME.jpg` with `labels/NAME.png`, and a `classes.json` above them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from das3.data.labels import find_table
from das3.data.published.base import LabelForm, Part, PublishedDataset

__all__ = ["Folders"]


class Folders(PublishedDataset):
    """`SPLIT/images/NAME.*` with `SPLIT/labels/NAME.png`; without sub-folders, the root is the one split "all"."""

    name = "folders"
    class_counts = ()

    def __init__(self, root: str | Path, condition: str | None = None, classes: int | None = None) -> None:
        super().__init__(root, condition, classes)
        self.splits = tuple(sorted(p.parent.name for p in self.root.glob("*/images") if p.is_dir())) or ("all",)

    def part(self, split: str, condition: str) -> Part:
        """Classes from the nearest table."""
        folder = "." if split == "all" and split not in [p.name for p in self.root.iterdir()] else split
        table = partial(find_table, self.root / folder / "labels")
        return Part((f"{folder}/images",), labels=(LabelForm((f"{folder}/labels",), ".png", table),))
