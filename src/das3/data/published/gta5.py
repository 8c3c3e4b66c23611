"""GTA5, "Playing for Data" (Richter et al., ECCV 2016)."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.data.published.classes import CITYSCAPES, street_table
from das3.errors import DataError
from das3.losses import IGNORE_INDEX

__all__ = ["GTA5"]

TABLE = street_table(
    {**(CITYSCAPES.ids or {}), 34: IGNORE_INDEX}
)  # 34 is the licence plate, which Cityscapes gives no id

# Their labels have another size than they have, and nobody uses them.
BROKEN = frozenset({"15188", "17705"})


class GTA5(PublishedDataset):
    """`images/00001.png` … with `labels/00001.png`; the field trains on all of them, the split "all".

    The official split is read from `split.mat`, which comes with the authors' `read_mapping.zip`.
    """

    name = "gta5"
    splits = ("all", "train", "val", "test")
    counts: ClassVar = {"all": 24966 - len(BROKEN)}

    def part(self, split: str, condition: str) -> Part:
        """One folder for all."""
        return Part(("images",), labels=(LabelForm(("labels",), ".png", TABLE),))

    def belongs(self, split: str, condition: str, stem: str) -> bool:
        """By the number of the image."""
        return stem not in BROKEN and (split == "all" or int(stem) in self._official[split])

    @cached_property
    def _official(self) -> dict[str, frozenset[int]]:
        path = next((p for p in (self.root / "split.mat", self.root / "read_mapping/split.mat") if p.is_file()), None)
        if path is None:
            raise DataError(f"gta5: the official split needs {self.root}/split.mat; put it there, or use split=all")
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise DataError("gta5: reading split.mat needs SciPy; `pip install scipy`, or use split=all") from error
        tables = loadmat(path)
        return {split: frozenset(tables[f"{split}Ids"].ravel().tolist()) for split in ("train", "val", "test")}
