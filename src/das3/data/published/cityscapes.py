"""Cityscapes (Cordts et al., CVPR 2016) and its foggy version (Sakaridis et al., IJCV 2018)."""

from __future__ import annotations

from typing import ClassVar

from das3.data.published.base import LabelForm, Part, Polygons, PublishedDataset
from das3.data.published.classes import CITYSCAPES, CITYSCAPES_NAMES, TRAIN_IDS

__all__ = ["Cityscapes", "FoggyCityscapes"]

POLYGONS = Polygons({name: label for label, name in enumerate(CITYSCAPES_NAMES)}, background=0)


def label_forms(split: str) -> tuple[LabelForm, ...]:
    """Labels of a split: fine ones, or coarse ones of the extra images. Those of the test split are dummies."""
    kind = {"test": "", "train_extra": "gtCoarse"}.get(split, "gtFine")
    folders = (f"{kind}/{split}",)
    return (
        (
            LabelForm(folders, f"_{kind}_labelIds.png", CITYSCAPES),
            LabelForm(folders, f"_{kind}_labelTrainIds.png", TRAIN_IDS),
            LabelForm(folders, f"_{kind}_polygons.json", CITYSCAPES, POLYGONS),
        )
        if kind
        else ()
    )


class Cityscapes(PublishedDataset):
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` with `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`, or polygons."""

    name = "cityscapes"
    splits = ("train", "val", "test", "train_extra")
    counts: ClassVar = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}

    def part(self, split: str, condition: str) -> Part:
        """One folder per split."""
        return Part((f"leftImg8bit/{split}",), "_leftImg8bit", label_forms(split))


class FoggyCityscapes(PublishedDataset):
    """`leftImg8bit_foggyDBF/SPLIT/CITY/*_leftImg8bit_foggy_beta_0.02.png` beside Cityscapes' `gtFine`.

    The condition is the attenuation coefficient; by default the densest fog, on which the field reports.
    """

    name = "foggy-cityscapes"
    conditions = ("0.02", "0.01", "0.005")
    counts: ClassVar = {"train": 2975, "val": 500, "test": 1525}

    def wanted(self) -> tuple[str, ...]:
        """The same scenes in three densities are never mixed."""
        return (self.condition or "0.02",)

    def part(self, split: str, condition: str) -> Part:
        """One folder per split, all densities in it."""
        folders = (f"leftImg8bit_foggyDBF/{split}", f"leftImg8bit_foggy/{split}")
        return Part(folders, f"_leftImg8bit_foggy_beta_{condition}", label_forms(split))
