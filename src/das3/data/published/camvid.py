"""CamVid (Brostow et al., 2009): the SegNet tutorial's copy, and the original with colour labels."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from das3.data.class_table import ClassTable, Color
from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.losses import IGNORE_INDEX

__all__ = ["CamVid"]

# The 11 classes of Badrinarayanan et al. (SegNet), each with the colours of the original 32 that are counted to it.
_COLORS: dict[str, tuple[Color, ...]] = {
    "sky": ((128, 128, 128),),
    "building": ((128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)),  # bridge, wall, tunnel, archway
    "pole": ((192, 192, 128), (0, 0, 64)),  # traffic cone
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # lane markings
    "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # parking block, road shoulder
    "tree": ((128, 128, 0), (192, 192, 0)),  # other vegetation
    "sign": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # text, traffic light
    "fence": ((64, 64, 128),),
    "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),  # truck, bus, train, other
    "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # child, pram, animal
    "bicyclist": ((0, 128, 192), (192, 0, 192)),  # motorcycle
}
ORIGINAL = ClassTable(
    names=tuple(_COLORS),
    colors=tuple(colors[0] for colors in _COLORS.values()),
    color_ids={color: c for c, colors in enumerate(_COLORS.values()) for color in colors},
)
TUTORIAL = replace(ORIGINAL, ids={**{c: c for c in range(11)}, 11: IGNORE_INDEX})


def split_of(stem: str) -> str:
    """The tutorial's split of the 701 images, by sequence and frame: 367 train, 101 val and 233 test."""
    sequence, _, frame = stem.partition("_")
    number = int("".join(filter(str.isdigit, frame)) or 0)
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= number <= 8159 else "train"


class CamVid(PublishedDataset):
    """`SPLIT/*.png` with `SPLITannot/*.png`, or `701_StillsRaw_full/*.png` with `LabeledApproved_full/*_L.png`.

    The condition dusk is the sequence 0001TP, day are the others.
    """

    name = "camvid"
    conditions = ("day", "dusk")
    class_counts = (11,)
    counts: ClassVar = {
        **{"train/day": 305, "train/dusk": 62, "val/day": 101},
        **{"test/day": 171, "test/dusk": 62},
    }

    def part(self, split: str, condition: str) -> Part:
        """A folder per split, or one for all."""
        if (self.root / "701_StillsRaw_full").is_dir():
            return Part(("701_StillsRaw_full",), labels=(LabelForm(("LabeledApproved_full",), "_L.png", ORIGINAL),))
        return Part((split,), labels=(LabelForm((f"{split}annot",), ".png", TUTORIAL),))

    def belongs(self, split: str, condition: str, stem: str) -> bool:
        """By sequence and frame."""
        return split_of(stem) == split and (condition == "dusk") == stem.startswith("0001TP")
