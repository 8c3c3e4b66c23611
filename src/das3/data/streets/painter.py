"""A pinhole camera in a street, and the map of instances that it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from das3.data.streets.classes import SKY
from das3.data.streets.styles import Color, Style

__all__ = ["FAR", "GROUND", "LEAF", "PLAIN", "STONE", "ZOOM", "Painter", "Point", "dim", "mix"]

T = TypeVar("T")
Point = tuple[float, float]
Edge = tuple[float, float, float]
"""Half its width, its depth and its height, in metres."""

ZOOM = 2  # scenes are painted at twice the size, so that edges and thin things are smooth
FAR = 90.0  # metres to where the street ends

# How strongly a surface shows the fine, leafy and patchy texture.
PLAIN, STONE, GROUND, LEAF = (0.3, 0.0, 0.2), (0.9, 0.0, 0.8), (1.0, 0.0, 1.0), (0.6, 1.0, 0.3)


def dim(color: Color, factor: float) -> Color:
    """A colour times a factor."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def mix(first: Color, second: Color, share: float) -> Color:
    """`share` of the second colour, the rest of the first."""
    return tuple(a + (b - a) * share for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


class Painter:
    """Paints instances, each with a class, a colour, a texture and a depth, and notes what casts shadow or light."""

    def __init__(self, size: tuple[int, int], style: Style, rng: np.random.Generator) -> None:
        self.height, self.width = size
        self.style, self.rng = style, rng
        self.map = Image.new("I", (self.width, self.height), 0)
        self.draw = ImageDraw.Draw(self.map)
        self.shadows = Image.new("L", (self.width, self.height), 0)
        self.shadow_draw = ImageDraw.Draw(self.shadows)
        self.classes, self.colors, self.textures, self.depths = [SKY], [(0.0, 0.0, 0.0)], [(0.0, 0.0, 0.0)], [0.0]
        self.lights: list[tuple[Point, float, Color]] = []
        self.camera = rng.uniform(*style.camera)
        self.lane = rng.uniform(*style.lane)
        self.horizon = self.height * rng.uniform(*style.horizon)
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.focal = self.width * rng.uniform(*style.view)
        self.bend = rng.normal(0, style.bend)
        self.haze, self.darkness = rng.uniform(*style.haze), rng.uniform()
        self.sun = self.side()  # the side of the street that it shines on

    def new(self, kind: int, color: Color, z: float, texture: Color = PLAIN, *, jitter: float = 0.0) -> int:
        """A new instance at depth z; the ground, whose depth is each row's own, has z = 0."""
        factor = min(max(1 + jitter * self.rng.standard_normal(), 0.5), 1.5) if jitter else 1.0
        self.classes.append(kind)
        self.colors.append(dim(color, factor))
        self.textures.append(texture)
        self.depths.append(z)
        return len(self.classes) - 1

    def side(self) -> int:
        """Left, −1, or right, 1."""
        return 1 if self.rng.random() < 0.5 else -1

    def one_of(self, things: Sequence[T]) -> T:
        """One of several."""
        return things[int(self.rng.integers(len(things)))]

    def at(self, x: float, z: float, y: float = 0.0) -> Point:
        """Pixel of a point x metres right of the street's middle, z ahead, y above the ground."""
        scale = self.focal / z
        return self.centre + scale * (x - self.lane + self.bend * z * z), self.horizon + scale * (self.camera - y)

    def polygon(self, instance: int, points: Sequence[Point]) -> None:
        """Any polygon of pixels."""
        self.draw.polygon(points, fill=instance)

    def wall(self, instance: int, x: float, near: float, far: float, low: float, high: float) -> None:
        """A rectangle along the street, in pieces so that it follows the bend."""
        pieces = 1 + int((far - near) / 5)
        depths = [near + (far - near) * i / pieces for i in range(pieces + 1)]
        self.polygon(instance, [self.at(x, z, low) for z in depths] + [self.at(x, z, high) for z in depths[::-1]])

    def front(self, instance: int, x: float, z: float, width: float, low: float, high: float) -> None:
        """A rectangle that faces the camera; at least one final pixel wide."""
        (left, bottom), (right, top) = self.at(x - width / 2, z, low), self.at(x + width / 2, z, high)
        self.draw.rectangle((left, min(top, bottom), max(right, left + ZOOM), max(top, bottom)), fill=instance)

    def panel(self, instance: int, x: float, first: Edge, second: Edge) -> None:
        """A trapezoid symmetric to x, between two edges that face the camera."""
        corners = [self.at(x + sign * half, z, y) for sign in (-1, 1) for half, z, y in (first, second)[::sign]]
        self.polygon(instance, corners)

    def outline(self, instance: int, x: float, z: float, size: float, points: Sequence[Point]) -> None:
        """A shape that faces the camera, of points (right, up) in multiples of `size`."""
        self.polygon(instance, [self.at(x + size * right, z, size * up) for right, up in points])

    def ellipse(self, instance: int, x: float, z: float, y: float, wide: float, high: float) -> None:
        """An ellipse that faces the camera."""
        cx, cy = self.at(x, z, y)
        rx, ry = self.focal * wide / z / 2, self.focal * high / z / 2
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=instance)

    def strip(self, instance: int, inner: float, outer: float, near: float = 0.8, far: float = FAR) -> None:
        """A band of the ground along the street."""
        self.polygon(instance, self._band(inner, outer, near, far))

    def shadow(self, inner: float, outer: float, near: float, far: float, strength: float = 1.0) -> None:
        """A shadow on the ground."""
        self.shadow_draw.polygon(self._band(inner, outer, max(near, 0.8), far), fill=int(255 * strength))

    def round_shadow(self, x: float, z: float, radius: float) -> None:
        """A round shadow on the ground."""
        turn = [i * math.pi / 6 for i in range(12)]
        points = [self.at(x + radius * math.cos(a), max(z + radius * math.sin(a), 0.8)) for a in turn]
        self.shadow_draw.polygon(points, fill=220)

    def _band(self, inner: float, outer: float, near: float, far: float) -> list[Point]:
        pieces = 1 + int(4 * math.log(far / near))
        depths = [near * (far / near) ** (i / pieces) for i in range(pieces + 1)]
        return [self.at(inner, z) for z in depths] + [self.at(outer, z) for z in depths[::-1]]

    def light(self, x: float, z: float, y: float, size: float, color: Color) -> None:
        """Something that glows at night; `size` in metres."""
        if self.style.lamps:
            self.lights.append((self.at(x, z, y), self.focal * size / z, color))
