"""The India Driving Dataset and IDD-Lite (Varma et al., WACV 2019)."""

from __future__ import annotations

from typing import ClassVar

from das3.data.class_table import ClassTable
from das3.data.published.base import LabelForm, Part, Polygons, PublishedDataset
from das3.data.published.classes import TRAIN_IDS, street_table
from das3.losses import IGNORE_INDEX

__all__ = ["IDD", "IDDLite"]

# IDD's label ids 0 … 39: name → Cityscapes' train id, as the authors' helpers/anue_labels.py has it (csTrainId).
_LABELS = {
    "road": 0,
    "parking": IGNORE_INDEX,
    "drivable fallback": IGNORE_INDEX,
    "sidewalk": 1,
    "rail track": IGNORE_INDEX,
    "non-drivable fallback": 9,
    "person": 11,
    "animal": IGNORE_INDEX,
    "rider": 12,
    "motorcycle": 17,
    "bicycle": 18,
    "autorickshaw": IGNORE_INDEX,
    "car": 13,
    "truck": 14,
    "bus": 15,
    "caravan": IGNORE_INDEX,
    "trailer": IGNORE_INDEX,
    "train": 16,
    "vehicle fallback": IGNORE_INDEX,
    "curb": IGNORE_INDEX,
    "wall": 3,
    "fence": 4,
    "guard rail": IGNORE_INDEX,
    "billboard": IGNORE_INDEX,
    "traffic sign": 7,
    "traffic light": 6,
    "pole": 5,
    "polegroup": IGNORE_INDEX,
    "obs-str-bar-fallback": IGNORE_INDEX,
    "building": 2,
    "bridge": IGNORE_INDEX,
    "tunnel": IGNORE_INDEX,
    "vegetation": 8,
    "sky": 10,
    "fallback background": IGNORE_INDEX,
    "unlabeled": IGNORE_INDEX,
    "ego vehicle": IGNORE_INDEX,
    "rectification border": IGNORE_INDEX,
    "out of roi": IGNORE_INDEX,
    "license plate": IGNORE_INDEX,
}
TABLE = street_table(dict(enumerate(_LABELS.values())))
POLYGONS = Polygons({name: label for label, name in enumerate(_LABELS)}, background=list(_LABELS).index("unlabeled"))

LITE = ClassTable(
    names=("drivable", "non-drivable", "living", "vehicle", "roadside object", "far object", "sky"),
    ids={c: c for c in range(7)},
    colors=(
        *((128, 64, 128), (244, 35, 232), (220, 20, 60), (0, 0, 142)),
        *((190, 153, 153), (107, 142, 35), (70, 130, 180)),
    ),
)


class IDD(PublishedDataset):
    """`leftImg8bit/SPLIT/DRIVE/*_leftImg8bit.*` with `gtFine/SPLIT/DRIVE/*_gtFine_polygons.json`, as the 19 classes.

    Label images that the authors' createLabels.py made are used where they are there: csTrainIds or ids.
    """

    name = "idd"

    def part(self, split: str, condition: str) -> Part:
        """One folder per split. The test labels are withheld."""
        folders = (f"gtFine/{split}",)
        forms = (
            LabelForm(folders, "_gtFine_labelcsTrainIds.png", TRAIN_IDS),
            LabelForm(folders, "_gtFine_labelids.png", TABLE),
            LabelForm(folders, "_gtFine_polygons.json", TABLE, POLYGONS),
        )
        return Part((f"leftImg8bit/{split}",), "_leftImg8bit", forms)


class IDDLite(PublishedDataset):
    """`leftImg8bit/SPLIT/DRIVE/*_image.jpg` with `gtFine/SPLIT/DRIVE/*_label.png`: 320×227 pixels, 7 classes."""

    name = "idd-lite"
    class_counts = (7,)
    counts: ClassVar = {"train": 1403, "val": 204, "test": 404}

    def part(self, split: str, condition: str) -> Part:
        """One folder per split, at the root or in `idd20k_lite`. The test labels are withheld."""
        form = LabelForm((f"gtFine/{split}", f"idd20k_lite/gtFine/{split}"), "_label.png", LITE)
        return Part((f"leftImg8bit/{split}", f"idd20k_lite/leftImg8bit/{split}"), "_image", (form,))
