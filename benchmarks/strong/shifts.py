"""The shifts of the context for strong models, made in memory from CamVid and IDD-Lite, and rendered ones.

All streets have IDD-Lite's 7 classes, so that two source models serve eight shifts: "half" has seen the first half of
CamVid's sequence 0016E5, "day" all of CamVid by day. What a shift adapts to ("target") and is measured on ("test") are
different images; labels of the target train the oracle alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from das3.data.class_table import ClassTable
from das3.data.images import Images
from das3.data.labels import Labelled

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
VEHICLE, MISSING = 3, (2, 4, 6)
"""The class that is rare in "shares", and living, roadside object and sky, which "missing" does not show."""
MOST = 150
"""Target images of a shift; a test has at most 80."""


class _Arrays(Images):
    def __init__(self, arrays: Sequence[NDArray[np.uint8]]) -> None:
        super().__init__([f"{i:04d}" for i in range(len(arrays))])
        self.arrays = arrays

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return self.arrays[i]


class Pairs(Labelled):
    """Images and labels that are in memory."""

    def __init__(self, pairs: Sequence[Pair], classes: Sequence[str]) -> None:
        super().__init__(_Arrays([image for image, _ in pairs]), [], ClassTable(tuple(classes)))
        self.pairs = pairs

    def label(self, i: int) -> NDArray[np.uint8]:
        """H×W class ids, 255 where ignored."""
        return self.pairs[i][1]

    def check(self, sample: int | None = None) -> None:
        """Nothing to read."""


class Shift(NamedTuple):
    """What a source model meets.

    Attributes:
        source: name of the source set.
        target: images to adapt to, with labels for the oracle.
        test: images to measure on.
        zoom: their height as a share of the height of the source's images, so that objects keep their size.
    """

    source: str
    target: Pairs
    test: Pairs
    zoom: float = 1.0


def _read(data: Path, folder: str, prefix: str = "", every: int = 1) -> list[Pair]:
    as_idd = json.loads((data / "camvid" / "classes.json").read_text())["as_idd_lite"]["map"]
    lookup = np.full(256, 255, np.uint8)
    for old, new in as_idd.items():
        lookup[int(old)] = new
    if not folder.startswith("camvid"):
        lookup = np.arange(256, dtype=np.uint8)
    paths = sorted((data / folder / "images").glob(f"{prefix}*.jpg"))[::every]
    labels = data / folder / "labels"
    return [(np.asarray(Image.open(p)), lookup[np.asarray(Image.open(labels / f"{p.stem}.png"))]) for p in paths]


class Streets:
    """CamVid and IDD-Lite, read when first asked for."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.classes = json.loads((data / "idd-lite" / "classes.json").read_text())["classes"]

    def source(self, name: str) -> Pairs:
        """ "half" or "day"."""
        half = _read(self.data, "camvid/day", "0016E5")
        return Pairs(half[: len(half) // 2] if name == "half" else _read(self.data, "camvid/day"), self.classes)

    @lru_cache(maxsize=2)  # noqa: B019
    def others(self) -> list[Pair]:
        """The other two sequences by day."""
        return _read(self.data, "camvid/day", "0006R0") + _read(self.data, "camvid/day", "Seq05VD")

    def alternate(self, source: str, pairs: Sequence[Pair], zoom: float = 1.0) -> Shift:
        """Every other image is target, the rest test."""
        return Shift(source, Pairs(pairs[::2][:MOST], self.classes), Pairs(pairs[1::2][:MOST][::2], self.classes), zoom)

    def few(self, shift: Shift, count: int) -> Shift:
        """Only so many target images, evenly spread."""
        pairs = shift.target.pairs
        chosen = [pairs[(2 * i + 1) * len(pairs) // (2 * count)] for i in range(count)]
        return shift._replace(target=Pairs(chosen, self.classes))

    def shift(self, name: str) -> Shift:
        """A shift by name."""
        if name == "none":
            half = _read(self.data, "camvid/day", "0016E5")
            return self.alternate("half", half[len(half) // 2 :])
        if name == "mild":
            return self.alternate("half", self.others())
        if name == "dusk":
            parts = [Pairs(_read(self.data, f"camvid/dusk-{part}"), self.classes) for part in ("train", "test")]
            return Shift("day", *parts)
        if name in ("idd", "hopeless"):
            target, test = _read(self.data, "idd-lite/train", every=9)[:MOST], _read(self.data, "idd-lite/val", every=3)
            if name == "hopeless":
                target, test = _spoilt(target, 1), _spoilt(test, 2)
            return Shift("day", Pairs(target, self.classes), Pairs(test, self.classes))
        if name == "few5":
            return self.few(self.shift("dusk"), 5)
        if name == "few1":
            return self.few(self.shift("mild"), 1)
        if name == "shares":
            return self.alternate("half", [p for p in self.others() if (p[1] == VEHICLE).mean() < 0.005])
        if name == "missing":
            windows = [w for pair in self.others() for w in _windows(pair)]
            return self.alternate("half", windows, 1 / 2)
        raise SystemExit(f"no shift {name}; there are: {', '.join(SHIFTS)}")


def _spoilt(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    rng = np.random.default_rng(seed)
    noisy = ((255 - image + rng.normal(0, 25, image.shape)).clip(0, 255).astype(np.uint8) for image, _ in pairs)
    return [(image, label) for image, (_, label) in zip(noisy, pairs, strict=True)]


def _windows(pair: Pair) -> list[Pair]:
    """Windows of half an image's sides, at its bottom, that show next to nothing of the missing classes."""
    image, label = pair
    height, width = (side // 2 for side in label.shape)
    places = [(slice(-height, None), slice(left, left + width)) for left in (0, width // 2, width)]
    chosen = [place for place in places if np.isin(label[place], MISSING).mean() < 0.005]
    return [(np.ascontiguousarray(image[place]), label[place]) for place in chosen]


class Rendered:
    """The shifts that `benchmarks/domains/render.py` draws."""

    def __init__(self, name: str) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "domains"))
        from render import DOMAINS

        self.name = name
        self.draw, self.classes = DOMAINS[name]

    def _pairs(self, seed: int, count: int, target: bool) -> Pairs:
        return Pairs([self.draw(np.random.default_rng((seed, i)), target) for i in range(count)], self.classes)

    def source(self, name: str) -> Pairs:
        """300 images."""
        return self._pairs(0, 300, False)

    def shift(self, name: str) -> Shift:
        """100 target images and 60 to measure on."""
        return Shift(self.name, self._pairs(1, 100, True), self._pairs(2, 60, True))


STREETS = ("none", "mild", "dusk", "idd", "hopeless", "few5", "few1", "missing", "shares")
RENDERED = ("cells", "vessels", "lesion", "aerial")
SHIFTS = STREETS + RENDERED


def open_world(name: str, data: Path) -> Streets | Rendered:
    """Where a shift or a source set is from."""
    return Rendered(name) if name in RENDERED else Streets(data)


Opener = Callable[[str], Shift]
