"""Procedural street scenes in two domains: data for the demo that needs no download and no licence.

A scene is laid out in metres (ground plane, objects at a depth), projected by a pinhole camera, painted far to near
into a map of instances, and only then coloured: labels are exact, and texture, light and sensor never touch them. The
two domains differ in all of it: layout, class frequencies, texture, light and sensor.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from das3.data.class_table import ClassTable
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.streets.classes import CLASS_NAMES, PALETTE
from das3.data.streets.layout import lay_out
from das3.data.streets.light import Surfaces, record, shade
from das3.data.streets.painter import ZOOM, Painter
from das3.data.streets.styles import STYLES, Domain
from das3.errors import DataError
from das3.losses import IGNORE_INDEX

__all__ = ["CLASS_NAMES", "PALETTE", "Domain", "Streets", "render"]

Scene = tuple[NDArray[np.uint8], NDArray[np.uint8]]

LARGEST_MEMORY = 2**28
"""Bytes up to which a set's scenes are kept once rendered; those of larger sets are rendered each time."""


def render(domain: Domain, rng: np.random.Generator, size: tuple[int, int] = (96, 192)) -> Scene:
    """One scene.

    Args:
        domain: "source", a wide and tidy street on a sunny day, or "target", a crowded old town between a grey
            afternoon and night, wet, through a poor camera higher up.
        rng: all that differs from scene to scene.
        size: (height, width) in pixels.

    Returns:
        H×W×3 uint8 RGB, and H×W uint8 class ids, see `CLASS_NAMES`; 255 on the own bonnet.
    """
    painter = Painter((size[0] * ZOOM, size[1] * ZOOM), STYLES[domain], rng)
    lay_out(painter)
    seen = Surfaces(painter)
    return record(shade(painter, seen), painter.style, rng), seen.labels


class Streets(Labelled):
    """A labelled data set of scenes; scene i depends on (domain, seed, i) and the size alone.

    Args:
        domain: "source" or "target", see `render`.
        count: number of scenes.
        seed: of all scenes.
        size: (height, width) in pixels.

    Raises:
        DataError: if there is no such domain, or the size is too small to hold a street.
    """

    def __init__(self, domain: Domain, count: int, seed: int = 0, size: tuple[int, int] = (96, 192)) -> None:
        if domain not in STYLES:
            raise DataError(f"no domain of streets is called {domain!r}; there are: {', '.join(STYLES)}")
        if min(size) < 16:
            raise DataError(f"streets of {size[1]}×{size[0]} pixels show nothing; render at least 16×16")
        self.domain, self.seed, self.size = domain, seed, size
        self._kept: dict[int, Scene] | None = {} if count * size[0] * size[1] * 4 <= LARGEST_MEMORY else None
        colors = tuple((int(r), int(g), int(b)) for r, g, b in PALETTE)
        super().__init__(_Pictures(self, count), (), ClassTable(CLASS_NAMES, colors=colors))

    def scene(self, i: int) -> Scene:
        """Picture, H×W×3 uint8 RGB, and labels, H×W uint8, of scene i; an IndexError ends iteration."""
        i = range(len(self))[i]
        if self._kept is not None and i in self._kept:
            return self._kept[i]
        rng = np.random.default_rng([self.seed, list(STYLES).index(self.domain), i])
        scene = render(self.domain, rng, self.size)
        if self._kept is not None:
            self._kept[i] = scene
        return scene

    def label(self, i: int) -> NDArray[np.uint8]:
        """H×W uint8 class ids, 255 where ignored."""
        return self.scene(i)[1]

    def write(self, folder: str | Path) -> None:
        """Write images/NAME.png, labels/NAME.png and classes.json, as a user's own data would lie."""
        folder = Path(folder)
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(self.images.names):
            image, label = self.scene(i)
            Image.fromarray(image).save(folder / "images" / f"{name}.png")
            Image.fromarray(label).save(folder / "labels" / f"{name}.png")
        classes = [{"name": name, "color": color} for name, color in zip(CLASS_NAMES, PALETTE.tolist(), strict=True)]
        (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": IGNORE_INDEX}))


class _Pictures(Images):
    """The pictures alone."""

    def __init__(self, streets: Streets, count: int) -> None:
        super().__init__([f"{streets.domain}_{i:05d}" for i in range(count)])
        self.streets = streets

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return self.streets.scene(i)[0]

    def size(self, i: int) -> tuple[int, int]:
        """The same for all."""
        return self.streets.size
