"""Mapillary Vistas v1.2 and v2.0 (Neuhold et al., ICCV 2017), as the 19 classes of Cityscapes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import ClassVar

from das3.data.class_table import ClassTable
from das3.data.published.base import LabelForm, Part, PublishedDataset
from das3.data.published.classes import street_table
from das3.errors import DataError
from das3.losses import IGNORE_INDEX

__all__ = ["Mapillary"]

# Beginning of a class's name → train id, the longest one counts; all other classes are ignored. This is the reading of
# the domain-generalisation literature (Choi et al., RobustNet, CVPR 2021) for v1.2, carried over to the parts into
# which v2.0 divides these classes.
_TRAIN_IDS = {
    "construction--flat--road": 0,
    "construction--flat--road-shoulder": IGNORE_INDEX,
    "marking": 0,
    "marking--crosswalk-zebra": IGNORE_INDEX,
    "marking--discrete--crosswalk-zebra": IGNORE_INDEX,
    "marking-only--discrete--crosswalk-zebra": IGNORE_INDEX,
    "object--manhole": 0,
    "construction--barrier--curb": 1,
    "construction--flat--sidewalk": 1,
    "construction--structure--building": 2,
    "construction--barrier--wall": 3,
    "construction--barrier--fence": 4,
    "object--support--pole": 5,
    "object--support--pole-group": IGNORE_INDEX,
    "object--support--utility-pole": 5,
    "object--traffic-light": 6,
    "object--traffic-sign--front": 7,
    "object--traffic-sign--direction-front": 7,
    "object--traffic-sign--temporary-front": 7,
    "object--traffic-sign--information-parking": 7,
    "nature--vegetation": 8,
    "nature--terrain": 9,
    "nature--sky": 10,
    "human--person": 11,
    "human--rider": 12,
    "object--vehicle--car": 13,
    "object--vehicle--caravan": IGNORE_INDEX,
    "object--vehicle--truck": 14,
    "object--vehicle--bus": 15,
    "object--vehicle--on-rails": 16,
    "object--vehicle--motorcycle": 17,
    "object--vehicle--bicycle": 18,
}


def train_id(name: str) -> int:
    """Of a class by its name, such as `object--vehicle--car`."""
    beginnings = [key for key in _TRAIN_IDS if name.startswith(key)]
    return _TRAIN_IDS[max(beginnings, key=len)] if beginnings else IGNORE_INDEX


def read_table(config: Path) -> ClassTable:
    """The order of the classes in the data set's own config file is their id."""
    try:
        names = [str(label["name"]) for label in json.loads(config.read_text(encoding="utf-8"))["labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"mapillary: can't read the classes from {config} ({error}); restore it") from error
    return street_table({label: train_id(name) for label, name in enumerate(names)})


class Mapillary(PublishedDataset):
    """`training/images/*.jpg` with `training/labels/*.png` (v1.2) or `training/v2.0/labels/*.png`.

    What the labels mean is read from the config file at the root. The condition is their version; by default the newer
    one that is there.
    """

    name = "mapillary"
    conditions = ("v2.0", "v1.2")
    counts: ClassVar = {"train": 18000, "val": 2000, "test": 5000}

    def wanted(self) -> tuple[str, ...]:
        """One version only."""
        newer = any((self.root / folder / "v2.0").is_dir() for folder in ("training", "validation"))
        return (self.condition or ("v2.0" if newer else "v1.2"),)

    def part(self, split: str, condition: str) -> Part:
        """One folder per split, labels below it. The test labels are withheld."""
        folder = {"train": "training", "val": "validation", "test": "testing"}[split]
        if split == "test":
            return Part((f"{folder}/images",))
        config, labels = self.root / f"config_{condition}.json", [f"{folder}/{condition}/labels"]
        if condition == "v1.2":  # once the only version
            config = config if config.is_file() else self.root / "config.json"
            labels.append(f"{folder}/labels")
        return Part((f"{folder}/images",), labels=(LabelForm(tuple(labels), ".png", partial(read_table, config)),))
