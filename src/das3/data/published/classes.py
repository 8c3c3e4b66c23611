"""The 19 classes of Cityscapes, on which the published street data sets agree, and the field's subsets of them.

Source: Cordts et al., CVPR 2016, and cityscapesscripts/helpers/labels.py, with which a test compares this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from das3.data.class_table import ClassTable, Color
from das3.losses import IGNORE_INDEX

__all__ = ["CITYSCAPES", "CITYSCAPES_NAMES", "SUBSETS", "TRAIN_IDS", "street_table", "subset"]

# train id: (label id, name, colour)
_CLASSES: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

# Names of all label ids 0 … 33, as polygons use them.
CITYSCAPES_NAMES: tuple[str, ...] = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
    *("bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)

_16 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
_13 = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
SUBSETS: dict[int, tuple[int, ...]] = {19: tuple(range(19)), 16: _16, 13: _13}
"""Number of classes → which of the 19: 16 and 13 are the protocols of SYNTHIA, 13 is that of Cross-City as well."""


def street_table(ids: Mapping[int, int]) -> ClassTable:
    """Table of the 19 classes for labels with these values (value → train id, or 255)."""
    return ClassTable(
        names=tuple(name for _, name, _ in _CLASSES), ids=ids, colors=tuple(color for _, _, color in _CLASSES)
    )


def subset(table: ClassTable, count: int) -> ClassTable:
    """The table with `count` of the 19 classes, numbered anew in their order; the others are ignored."""
    return table.mapped({c: new for new, c in enumerate(SUBSETS[count])})


_LABEL_IDS = {label: c for c, (label, _, _) in enumerate(_CLASSES)}

CITYSCAPES = street_table({label: _LABEL_IDS.get(label, IGNORE_INDEX) for label in range(len(CITYSCAPES_NAMES))})
"""For label ids, `*_labelIds.png`."""

TRAIN_IDS = street_table({c: c for c in range(19)})
"""For train ids, `*_labelTrainIds.png`."""
