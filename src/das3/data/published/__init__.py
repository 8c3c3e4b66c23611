"""Published data sets, read from the layout they are published in: one small file per data set.

Recipes and options name them as `NAME:ROOT?split=SPLIT&condition=CONDITION&classes=COUNT`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.published.acdc import ACDC, DarkZurich
from das3.data.published.base import PublishedDataset
from das3.data.published.bdd100k import BDD100K
from das3.data.published.camvid import CamVid
from das3.data.published.cityscapes import Cityscapes, FoggyCityscapes
from das3.data.published.crosscity import CrossCity
from das3.data.published.folders import Folders
from das3.data.published.gta5 import GTA5
from das3.data.published.idd import IDD, IDDLite
from das3.data.published.mapillary import Mapillary
from das3.data.published.synthia import Synthia
from das3.errors import DataError

__all__ = ["DATASETS", "PublishedDataset", "find_published", "is_spec", "open_published", "open_spec", "spec_images"]

_ALL: tuple[type[PublishedDataset], ...] = (
    *(ACDC, BDD100K, CamVid, Cityscapes, CrossCity, DarkZurich, Folders, FoggyCityscapes, GTA5, IDD, IDDLite),
    *(Mapillary, Synthia),
)
DATASETS: dict[str, type[PublishedDataset]] = {dataset.name: dataset for dataset in _ALL}


def find_published(
    name: str, root: str | Path, condition: str | None = None, classes: int | None = None
) -> PublishedDataset:
    """The data set of this name at `root`.

    Raises:
        DataError: if the name, the root, the condition or the number of classes does not exist.
    """
    if name.lower() not in DATASETS:
        raise DataError(f"no published data set is called {name}; there are {', '.join(DATASETS)}")
    return DATASETS[name.lower()](root, condition, classes)


def open_published(
    name: str,
    root: str | Path,
    split: str | None = None,
    condition: str | None = None,
    classes: int | None = None,
) -> Labelled | Images:
    """A split with its labels; its images alone where no labels are on disk.

    Args:
        name: a key of `DATASETS`.
        root: folder of the data set.
        split: official name; the first of the data set, that to train on, when None.
        condition: weather, time of day, city or version; what None means, the data set's class says.
        classes: 19, or 16 or 13 for the protocols of SYNTHIA and Cross-City.

    Raises:
        DataError: if something does not exist, or only a part of the labels is there.
    """
    dataset = find_published(name, root, condition, classes)
    split = split or dataset.splits[0]
    labelled = dataset.labelled(split)
    return labelled if labelled is not None else dataset.images(split)


def is_spec(source: str) -> bool:
    """Whether the string is a spec: it begins with the name of a data set and a colon."""
    name, colon, _ = source.partition(":")
    return bool(colon) and name.lower() in DATASETS


def open_spec(spec: str) -> Labelled | Images:
    """`open_published` of `NAME:ROOT?split=…&condition=…&classes=…`."""
    return open_published(**_parse(spec))


def spec_images(spec: str) -> Images:
    """The images of a spec; labels are not looked at."""
    options = _parse(spec)
    split = options.pop("split", None)
    dataset = find_published(**options)
    return dataset.images(split or dataset.splits[0])


def _parse(spec: str) -> dict[str, Any]:
    name, _, rest = spec.partition(":")
    root, _, query = rest.partition("?")
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    unknown = options.keys() - {"split", "condition", "classes"}
    if unknown:
        raise DataError(f"{spec}: {', '.join(sorted(unknown))} is no option; there are split, condition and classes")
    if "classes" in options:
        if not options["classes"].isdigit():
            raise DataError(f"{spec}: classes={options['classes']} is not a number")
        options["classes"] = int(options["classes"])
    return {"name": name, "root": root, **options}
