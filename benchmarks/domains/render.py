"""Renders four shifts that are not streets: `python render.py OUT` writes OUT/NAME/NAME.yaml for `das3 benchmark`.

Defaults chosen on streets alone turned out to hurt where classes are two or structures thin; here that shows. Stained
cells (2 classes), vessels of a retina (2), a lesion on skin (2) and land seen from the air (5); the target differs in
light, colour, haze, blur and noise, and in how much there is of each class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIZE = 96
Array = NDArray[np.float64]
Labels = NDArray[np.uint8]
Random = np.random.Generator
YS, XS = np.mgrid[:SIZE, :SIZE]


def texture(rng: Random, scale: float) -> Array:
    """Smooth noise H×W×1 of variance 1."""
    noise: Array = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), scale, mode="wrap")[..., None]
    noise /= noise.std()
    return noise


def blob(rng: Random, centre: Array, radii: Array, wobble: float) -> NDArray[np.bool_]:
    """A bumpy ellipse, turned at random."""
    turn, (y, x) = rng.uniform(0, np.pi), (YS - centre[0], XS - centre[1])
    u = (x * np.cos(turn) + y * np.sin(turn)) / radii[0]
    v = (y * np.cos(turn) - x * np.sin(turn)) / radii[1]
    angle = np.arctan2(v, u)
    bumps = (wobble * rng.normal() / n * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    inside: NDArray[np.bool_] = np.hypot(u, v) < 1 + sum(bumps)
    return inside


class Camera(NamedTuple):
    """What becomes of a scene on its way into the image: gain and tint of light, haze, blur in pixels, noise."""

    gain: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.02
    blur: float = 0.0
    haze: float = 0.0

    def take(self, scene: Array, rng: Random) -> NDArray[np.uint8]:
        """An image of a scene of 0 to 255."""
        light = scene.clip(0, 255) / 255 * self.gain * np.array(self.tint)
        light = light * (1 - self.haze) + 0.8 * self.haze
        light = ndimage.gaussian_filter(light, (self.blur, self.blur, 0))
        light += rng.normal(0, self.noise, light.shape)
        image: NDArray[np.uint8] = (light.clip(0, 1) * 255).astype(np.uint8)
        return image


def cells(rng: Random, target: bool) -> tuple[NDArray[np.uint8], Labels]:
    """Dark nuclei in pale tissue, and debris that is none; the target has more and smaller ones."""
    label = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(8, 20) if target else rng.integers(4, 10)):
        radius = rng.uniform(3, 7) if target else rng.uniform(4, 8)
        label |= blob(rng, rng.uniform(0, SIZE, 2), radius * np.array([1, rng.uniform(0.6, 1)]), 0.12)
    tissue = (225, 170, 205) + texture(rng, 6) * (6, 14, 8) + texture(rng, 1.5) * (4, 8, 5)
    nuclei = (105, 60, 140) + texture(rng, 1) * 12 + rng.normal(0, 8, 3)
    image = np.where(label[..., None] > 0, nuclei, tissue)
    for _ in range(rng.integers(0, 4)):
        image[blob(rng, rng.uniform(0, SIZE, 2), np.array([2.0, 2.0]), 0.3)] = (150, 40, 60)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0))
    other = Camera(0.8, (0.8, 0.95, 1.05), noise=0.05, blur=0.8, haze=0.1)
    return (other if target else Camera()).take(image, rng), label


def vessels(rng: Random, target: bool) -> tuple[NDArray[np.uint8], Labels]:
    """Thin branching lines that cross a ground brighter in one place, and a bright disc."""
    label = np.zeros((SIZE, SIZE), np.uint8)

    def grow(y: float, x: float, heading: float, width: float, left: float) -> None:
        while left > 0 and -5 < y < SIZE + 5 and -5 < x < SIZE + 5:
            label[(YS - y) ** 2 + (XS - x) ** 2 < width**2] = 1
            heading += rng.normal(0, 0.12)
            y, x, left = y + np.sin(heading), x + np.cos(heading), left - 1
            if width > 1 and rng.random() < 0.02:
                grow(y, x, heading + rng.choice([-0.7, 0.7]), 0.75 * width, 0.6 * left)

    for _ in range(rng.integers(2, 5)):
        from_left = rng.random() < 0.5
        heading = rng.uniform(-0.6, 0.6) + (0 if from_left else np.pi)
        grow(rng.uniform(0, SIZE), 0 if from_left else SIZE - 1, heading, rng.uniform(1.3, 2.8), 110)
    lit, disc = rng.uniform(20, SIZE - 20, 2), rng.uniform(15, SIZE - 15, 2)
    shade = np.exp(-((YS - lit[0]) ** 2 + (XS - lit[1]) ** 2) / (2 * 40**2))[..., None]
    image = np.array((150, 70, 35)) * (0.6 + 0.7 * shade) + texture(rng, 5) * 6
    image = np.where(label[..., None] > 0, image * (0.72, 0.55, 0.6), image)
    image[(np.hypot(YS - disc[0], XS - disc[1]) < 8) & (label == 0)] += (70, 70, 40)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0))
    other = Camera(0.75, (1.0, 1.25, 1.5), noise=0.035, blur=0.7, haze=0.12)
    return (other if target else Camera(1.1, noise=0.015)).take(image, rng), label


def lesion(rng: Random, target: bool) -> tuple[NDArray[np.uint8], Labels]:
    """One dark spot with a soft edge under hairs; the target darkens towards its corners."""
    label = blob(rng, rng.uniform(25, SIZE - 25, 2), rng.uniform(8, 26, 2), 0.15).astype(np.uint8)
    skin = (225, 175, 150) + rng.normal(0, 10, 3) + texture(rng, 10) * 6 + texture(rng, 1) * 4
    spot = (140, 90, 75) + rng.normal(0, 18, 3) + texture(rng, 2) * 14
    soft = ndimage.gaussian_filter(label.astype(float), 2)[..., None]
    image = skin * (1 - soft) + spot * soft
    for _ in range(rng.integers(0, 8)):
        y, x, heading = *rng.uniform(0, SIZE, 2), rng.uniform(0, 2 * np.pi)
        for _ in range(60):
            if 0 <= y < SIZE and 0 <= x < SIZE:
                image[int(y), int(x)] *= 0.4
            heading += rng.normal(0, 0.05)
            y, x = y + np.sin(heading), x + np.cos(heading)
    if not target:
        return Camera().take(image, rng), label
    corners = 1.1 - 0.6 * (np.hypot(YS - SIZE / 2, XS - SIZE / 2) / (0.7 * SIZE)) ** 2
    other = Camera(0.75, (1.0, 0.85, 0.75), noise=0.05, blur=0.6)
    return other.take(image * corners[..., None], rng), label


def aerial(rng: Random, target: bool) -> tuple[NDArray[np.uint8], Labels]:
    """Fields, forest and water in patches, roads and buildings upon them; the target is dry."""
    centres = rng.uniform(0, SIZE, (14, 2))
    patch = ((YS[..., None] - centres[:, 0]) ** 2 + (XS[..., None] - centres[:, 1]) ** 2).argmin(axis=-1)
    kinds = rng.choice(3, len(centres), p=(0.55, 0.3, 0.15) if target else (0.45, 0.35, 0.2))
    label = kinds[patch].astype(np.uint8)
    green, dry = [(150, 165, 90), (50, 85, 45), (50, 80, 120)], [(190, 165, 100), (85, 80, 45), (60, 85, 95)]
    jitter = rng.normal(0, 12, (len(centres), 3)) * np.where(kinds == 2, 0.2, 1)[:, None]
    image = np.array(dry if target else green, float)[label] + jitter[patch]
    rows = np.sin(1.3 * (XS * np.cos(rng.uniform(0, 3)) + YS * np.sin(rng.uniform(0, 3))))[..., None]
    image += np.where(label[..., None] == 0, 10 * rows, 0) + np.where(label[..., None] == 1, 18 * texture(rng, 1), 0)
    for _ in range(rng.integers(1, 3)):
        turn, (y, x) = rng.uniform(0, np.pi), rng.uniform(20, SIZE - 20, 2)
        across = (YS - y) * np.cos(turn) - (XS - x) * np.sin(turn) + 2 * np.sin(XS / 15)
        road = np.abs(across) < rng.uniform(1.2, 2.2)
        label[road], image[road] = 3, (150, 148, 145)
    roofs = np.array([(190, 90, 70), (200, 195, 190), (120, 70, 60)])
    for _ in range(rng.integers(2, 9)):
        (y, x), (height, width) = rng.integers(4, SIZE - 10, 2), rng.integers(4, 9, 2)
        house = slice(y, y + height), slice(x, x + width)
        if (label[house] != 2).all():
            label[house], image[house] = 4, roofs[rng.integers(3)] + rng.normal(0, 8, 3)
            image[y + height : y + height + 2, x + 1 : x + width + 1] *= 0.5
    image = ndimage.gaussian_filter(image, (0.4, 0.4, 0)) + rng.normal(0, 4, image.shape)
    other = Camera(0.8, (1.05, 0.95, 0.85), noise=0.05, blur=0.7, haze=0.15)
    return (other if target else Camera()).take(image, rng), label


DOMAINS: dict[str, tuple[Callable[[Random, bool], tuple[NDArray[np.uint8], Labels]], list[str]]] = {
    "cells": (cells, ["tissue", "nucleus"]),
    "vessels": (vessels, ["ground", "vessel"]),
    "lesion": (lesion, ["skin", "lesion"]),
    "aerial": (aerial, ["field", "forest", "water", "road", "building"]),
}
"""Name → (random numbers, whether of the target → image H×W×3 and class ids H×W), classes."""

PARTS = {"source": 300, "target": 150, "test": 80}

FOLDERS = """\
source: {images: source/images, labels: source/labels}
target: {images: target/images, labels: target/labels}
test: {images: test/images, labels: test/labels}
classes: classes.json
network: das3:small
"""
SUITE = (
    FOLDERS
    + """\
source_options: {steps: 300, lr: 3.0e-3}
oracle_options: {steps: 200, lr: 2.0e-3}
"""
)


def write(name: str, folder: Path) -> None:
    """Render one domain into a folder, with NAME.yaml in it for `das3 benchmark --suite`."""
    draw, classes = DOMAINS[name]
    for seed, (part, count) in enumerate(PARTS.items()):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, label = draw(np.random.default_rng((seed, i)), part != "source")
            Image.fromarray(image).save(folder / part / "images" / f"{i:03d}.png")
            Image.fromarray(label).save(folder / part / "labels" / f"{i:03d}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": classes}) + "\n")
    (folder / f"{name}.yaml").write_text(SUITE)


if __name__ == "__main__":
    for name in DOMAINS:
        write(name, Path(sys.argv[1]) / name)
        print(f"{sys.argv[1]}/{name}/{name}.yaml")
