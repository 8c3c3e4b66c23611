"""Ground, houses, plants and fences: what a street is lined with."""

from __future__ import annotations

import numpy as np

from das3.data.streets.classes import BUILDING, FENCE, ROAD, SIDEWALK, VEGETATION
from das3.data.streets.painter import FAR, GROUND, LEAF, STONE, Painter, dim
from das3.data.streets.styles import Color

__all__ = ["PAINTS", "backdrop", "bush", "fence", "ground", "hedge", "house", "side_street", "tree"]

PAINTS: tuple[Color, ...] = (
    (178, 32, 36),
    (232, 232, 230),
    (44, 46, 52),
    (52, 84, 150),
    (150, 155, 160),
    (92, 108, 80),
    (205, 165, 60),
    (110, 70, 60),
)


def ground(p: Painter, road: float, walk: float) -> None:
    """Meadow, pavements with kerb and joints, the carriageway with its wear and markings."""
    style, rng = p.style, p.rng
    meadow = p.new(VEGETATION, p.one_of(style.leaves), 0, LEAF, jitter=0.1)
    p.polygon(meadow, [(0, p.horizon), (p.width, p.horizon), (p.width, p.height), (0, p.height)])
    slabs = p.new(SIDEWALK, style.paving, 0, GROUND, jitter=0.08)
    p.strip(slabs, -road - walk, road + walk)
    joint = p.new(SIDEWALK, dim(p.colors[slabs], 0.86), 0, GROUND)
    for z in np.arange(2, 30, rng.uniform(1.2, 2.5)).tolist():
        p.strip(joint, -road - walk, road + walk, z, z + 0.12)
    p.strip(p.new(SIDEWALK, dim(p.colors[slabs], 1.12), 0), -road - 0.18, road + 0.18)
    asphalt = p.new(ROAD, style.asphalt, 0, GROUND, jitter=0.1)
    p.strip(asphalt, -road, road)
    worn = p.new(ROAD, dim(p.colors[asphalt], rng.uniform(0.86, 1.08)), 0, GROUND)
    for x in (-0.72, -0.3, 0.3, 0.72):
        p.strip(worn, (x - 0.06) * road, (x + 0.06) * road)
    for _ in range(int(rng.integers(4))):  # patches of another asphalt
        z, x, wide = rng.uniform(4, 20), rng.uniform(-0.8, 0.5) * road, rng.uniform(0.8, 2.0)
        p.strip(p.new(ROAD, p.colors[asphalt], 0, GROUND, jitter=0.15), x, x + wide, z, z + rng.uniform(0.7, 4))
    _markings(p, road)


def _markings(p: Painter, road: float) -> None:
    rng = p.rng
    paint = p.new(ROAD, (222, 222, 212), 0, STONE, jitter=0.08)
    if rng.random() < 0.7:
        for z in np.arange(1 + rng.uniform(0, 6), 60, 6.0).tolist():
            p.strip(paint, -0.08, 0.08, z, z + 2.8)
    if rng.random() < 0.4:
        for x in (-road + 0.35, road - 0.45):
            p.strip(paint, x, x + 0.1)
    if rng.random() < 0.3:
        z = rng.uniform(6, 16)
        for x in np.arange(-road + 0.3, road - 0.4, 1.0).tolist():
            p.strip(paint, x, x + 0.5, z, z + 2.4)


def side_street(p: Painter, side: int, road: float, near: float, far: float) -> None:
    """A street that leaves to one side."""
    for kind, color, edge in ((SIDEWALK, p.style.paving, 0.0), (ROAD, p.style.asphalt, 1.0)):
        instance = p.new(kind, color, 0, GROUND, jitter=0.05)
        outer, z0, z1 = side * 60.0, near + edge, far - edge
        p.polygon(instance, [p.at(side * road, z0), p.at(outer, z0), p.at(outer, z1), p.at(side * road, z1)])


def backdrop(p: Painter) -> None:
    """What closes the view at the end of the street: hills, woods, a town."""
    wood = p.rng.random() < 0.6
    color = p.one_of(p.style.leaves if wood else p.style.houses)
    x = -70.0
    while x < 70:
        wide = p.rng.uniform(6, 16)
        instance = p.new(VEGETATION if wood else BUILDING, color, FAR, LEAF if wood else STONE, jitter=0.1)
        high = p.rng.uniform(3, 7) if wood else p.rng.uniform(4, 14)
        if wood:
            p.ellipse(instance, x, FAR, 0, wide * 1.6, high * 2)
        else:
            p.front(instance, x, FAR, wide, 0, high)
        x += wide * p.rng.uniform(0.6, 1.0)


def house(p: Painter, side: int, x: float, near: float, far: float) -> None:
    """A terraced house: front along the street, gable towards the camera, roof, windows, its shadow."""
    style, rng = p.style, p.rng
    floors = int(rng.integers(style.floors[0], style.floors[1] + 1))
    storey = rng.uniform(2.8, 3.4)
    top = storey * floors + rng.uniform(0.3, 1.0)
    lit = 1 + style.sun * (0.25 if side == p.sun else -0.45)
    face = p.new(BUILDING, dim(p.one_of(style.houses), lit), near, STONE, jitter=0.1)
    color = p.colors[face]
    gable = p.new(BUILDING, dim(color, 0.82), near, STONE)
    outer = x + side * 12
    if rng.random() < 0.5:
        roof = p.new(BUILDING, p.one_of(style.roofs), near, STONE, jitter=0.1)
        ridge, high = x + side * 4, top + rng.uniform(1.5, 3)
        p.polygon(gable, [p.at(x, near, top), p.at(ridge, near, high), p.at(x + side * 8, near, top)])
        p.polygon(
            roof, [p.at(x, near, top - 0.4), p.at(x, far, top - 0.4), p.at(ridge, far, high), p.at(ridge, near, high)]
        )
    p.polygon(gable, [p.at(x, near), p.at(outer, near), p.at(outer, near, top), p.at(x, near, top)])
    p.wall(face, x, near, far, 0, top)
    p.wall(p.new(BUILDING, dim(color, 1.15), near, STONE), x, near, far, top - 0.3, top)
    if style.sun and side != p.sun:
        p.shadow(x, x - side * top * 0.45, near, far)
    elif style.sun:
        p.shadow(x, outer, near, far)
    if near < 45:
        _windows(p, x, near, far, floors, storey, color)


def _windows(p: Painter, x: float, near: float, far: float, floors: int, storey: float, color: Color) -> None:
    rng = p.rng
    panes = [p.new(BUILDING, shade, near, jitter=0.15) for shade in ((72, 82, 98), (110, 125, 145))]
    if p.style.lamps:
        panes.append(p.new(BUILDING, (255, 214, 130), 0.1))
    frame = p.new(BUILDING, dim(color, 1.25 if rng.random() < 0.5 else 0.7), near)
    shop = rng.random() < p.style.shop
    if shop:
        p.wall(p.new(BUILDING, p.one_of(PAINTS), near, jitter=0.1), x, near, far, 2.6, 3.2)
    count = max(1, int((far - near) / rng.uniform(2.4, 3.4)))
    step, wide, high = (far - near) / count, rng.uniform(0.36, 0.6), rng.uniform(1.2, 1.7)
    door = int(rng.integers(count))
    for column in range(count):
        middle = near + step * (column + 0.5)
        for floor in range(floors):
            pane, low, half = p.one_of(panes), storey * floor + 0.95, step * wide / 2
            if floor == 0 and shop:
                p.wall(pane, x, middle - step * 0.42, middle + step * 0.42, 0.4, 2.5)
            elif floor == 0 and column == door:
                p.wall(frame, x, middle - half, middle + half, 0, 2.2)
            else:
                p.wall(frame, x, middle - half, middle + half, low - 0.2, low)
                p.wall(pane, x, middle - half, middle + half, low, low + high)


def tree(p: Painter, x: float, z: float) -> None:
    """A tree with a crown of blobs, or a conifer."""
    rng, high = p.rng, p.rng.uniform(3.5, 8)
    color = p.one_of(p.style.leaves)
    p.round_shadow(x - 0.4 * p.sun * high if p.style.sun else x, z, high * 0.25)
    p.front(p.new(VEGETATION, (88, 72, 56), z, STONE, jitter=0.1), x, z, 0.28, 0, high * 0.65)
    wide = high * rng.uniform(0.4, 0.65)
    if rng.random() < 0.2:  # a conifer
        for i in range(4):
            leaf = p.new(VEGETATION, dim(color, 0.7 + 0.08 * i), z, LEAF)
            base, half = high * (0.15 + 0.2 * i), wide * (0.5 - 0.1 * i)
            p.polygon(leaf, [p.at(x - half, z, base), p.at(x + half, z, base), p.at(x, z, base + high * 0.35)])
        return
    for level in (0.0, 0.35, 0.7):
        leaf = p.new(VEGETATION, dim(color, 0.78 + 0.45 * level), z, LEAF, jitter=0.08)
        for _ in range(4):
            across = rng.uniform(-0.5, 0.5) * wide * (1 - level / 2) + level * 0.15 * wide * p.sun
            size = wide * rng.uniform(0.4, 0.65) * (1 - level / 3)
            p.ellipse(leaf, x + across, z, high * rng.uniform(0.6, 0.85) + 0.2 * level * high, size, size * 0.85)


def bush(p: Painter, x: float, z: float) -> None:
    """A round bush."""
    color, size = p.one_of(p.style.leaves), p.rng.uniform(0.7, 1.6)
    for shade, up in ((0.75, 0.3), (1.05, 0.55)):
        leaf = p.new(VEGETATION, dim(color, shade), z, LEAF, jitter=0.08)
        for _ in range(3):
            p.ellipse(leaf, x + p.rng.uniform(-0.6, 0.6) * size, z, up * size, size, 0.8 * size)


def hedge(p: Painter, x: float, near: float, far: float) -> None:
    """A hedge along the street."""
    high = p.rng.uniform(0.8, 1.8)
    leaf = p.new(VEGETATION, dim(p.one_of(p.style.leaves), 0.8), near, LEAF, jitter=0.1)
    p.wall(leaf, x, near, far, 0, high)
    p.front(p.new(VEGETATION, p.colors[leaf], near, LEAF, jitter=0.1), x + (0.4 if x > 0 else -0.4), near, 0.8, 0, high)


def fence(p: Painter, x: float, near: float, far: float) -> None:
    """A paling or a crash barrier along the street."""
    rng, kind = p.rng, p.rng.random()
    color = p.one_of(((150, 125, 95), (130, 135, 135), (190, 188, 180), (96, 74, 58)))
    board = p.new(FENCE, color, near, STONE, jitter=0.12)
    slat = p.new(FENCE, dim(p.colors[board], 0.72), near)
    high = rng.uniform(1.0, 1.5)
    posts = np.arange(near, far, 0.7 if kind < 0.6 else 2.0).tolist()
    if kind < 0.6:
        p.wall(board, x, near, far, 0, high)
    else:  # a crash barrier
        high = 0.85
        p.wall(board, x, near, far, 0.4, high)
        p.wall(slat, x, near, far, 0.58, 0.66)
    for z in posts:
        p.wall(slat, x, z, z + 0.14, 0, high)
