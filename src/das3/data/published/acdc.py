"""ACDC (Sakaridis et al., ICCV 2021) and Dark Zurich (Sakaridis et al., ICCV 2019), which share a layout."""

from __future__ import annotations

from typing import ClassVar

from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.data.published.classes import CITYSCAPES, TRAIN_IDS

__all__ = ["ACDC", "DarkZurich"]


def _part(where: str, *, reference: bool, labels: bool) -> Part:
    """Images and labels at `where` below `rgb_anon` and `gt`, which may lie in the folders named after the archives."""
    images = (f"rgb_anon/{where}", f"rgb_anon_trainvaltest/rgb_anon/{where}")
    folders = (f"gt/{where}", f"gt_trainval/gt/{where}")
    forms = (LabelForm(folders, "_gt_labelIds.png", CITYSCAPES), LabelForm(folders, "_gt_labelTrainIds.png", TRAIN_IDS))
    return Part(images, "_rgb_ref_anon" if reference else "_rgb_anon", forms if labels else ())


class ACDC(PublishedDataset):
    """`rgb_anon/CONDITION/SPLIT/SEQUENCE/*_rgb_anon.png` with `gt/…/*_gt_labelIds.png`; the test labels are withheld.

    The splits ending in _ref are the same places in clear weather, without labels.
    """

    name = "acdc"
    splits = ("train", "val", "test", "train_ref", "val_ref", "test_ref")
    conditions = ("fog", "night", "rain", "snow")
    counts: ClassVar = {
        **{f"{split}/{condition}": 400 for condition in conditions for split in ("train", "train_ref")},
        **{f"{split}/{condition}": 100 for condition in conditions for split in ("val", "val_ref")},
        **{f"{split}/{condition}": 500 for condition in conditions for split in ("test", "test_ref")},
        **{"val/night": 106, "val_ref/night": 106},
    }

    def part(self, split: str, condition: str) -> Part:
        """A folder per condition and split."""
        return _part(f"{condition}/{split}", reference=split.endswith("_ref"), labels=split in ("train", "val"))


class DarkZurich(PublishedDataset):
    """`rgb_anon/SPLIT/CONDITION/SEQUENCE/*_rgb_anon.png`; only the 50 night images of val have labels on disk."""

    name = "dark-zurich"
    splits = ("train", "val", "test", "val_ref", "test_ref")
    conditions = ("night", "twilight", "day")
    counts: ClassVar = {
        **{"train/night": 2416, "train/twilight": 2920, "train/day": 3041},
        **{"val/night": 50, "test/night": 151, "val_ref/day": 50, "test_ref/day": 151},
    }

    def part(self, split: str, condition: str) -> Part:
        """A folder per split and condition."""
        return _part(f"{split}/{condition}", reference=split.endswith("_ref"), labels=split == "val")
