"""BDD100K, the 10,000 images with semantic labels (Yu et al., CVPR 2020)."""

from __future__ import annotations

from typing import ClassVar

from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.data.published.classes import TRAIN_IDS

__all__ = ["BDD100K"]


class BDD100K(PublishedDataset):
    """`images/10k/SPLIT/*.jpg` with `labels/sem_seg/masks/SPLIT/*.png`, or the older `seg/images` and `seg/labels`."""

    name = "bdd100k"
    counts: ClassVar = {"train": 7000, "val": 1000, "test": 2000}

    def part(self, split: str, condition: str) -> Part:
        """One folder per split; train ids in both layouts. The test labels are withheld."""
        newer = LabelForm((f"labels/sem_seg/masks/{split}", f"bdd100k/labels/sem_seg/masks/{split}"), ".png", TRAIN_IDS)
        older = LabelForm((f"seg/labels/{split}", f"bdd100k/seg/labels/{split}"), "_train_id.png", TRAIN_IDS)
        images = ("images/10k", "bdd100k/images/10k", "seg/images", "bdd100k/seg/images")
        return Part(tuple(f"{folder}/{split}" for folder in images), labels=(newer, older))
