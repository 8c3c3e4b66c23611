"""NTHU Cross-City (Chen et al., ICCV 2017)."""

from __future__ import annotations

from typing import ClassVar

from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.data.published.classes import CITYSCAPES

__all__ = ["CrossCity"]


class CrossCity(PublishedDataset):
    """`CITY/Images/Train/*`, without labels, and `CITY/Images/Test/*` with `CITY/Labels/Test/*_eval.png`."""

    name = "crosscity"
    splits = ("train", "test")
    conditions = ("Rio", "Rome", "Taipei", "Tokyo")
    class_counts = (13,)
    counts: ClassVar = {
        **{f"train/{city}": 3200 for city in conditions},
        **{f"test/{city}": 100 for city in conditions},
    }

    def part(self, split: str, condition: str) -> Part:
        """A folder per city and split; Cityscapes' label ids."""
        forms = (LabelForm((f"{condition}/Labels/Test",), "_eval.png", CITYSCAPES),) if split == "test" else ()
        return Part((f"{condition}/Images/{split.title()}",), labels=forms)
