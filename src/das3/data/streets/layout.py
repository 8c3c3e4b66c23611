"""Where everything stands in one scene."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from das3.data.streets.painter import Painter, dim
from das3.data.streets.town import PAINTS, backdrop, bush, fence, ground, hedge, house, side_street, tree
from das3.data.streets.traffic import car, person, pole
from das3.losses import IGNORE_INDEX

__all__ = ["lay_out"]

Thing = tuple[float, Callable[[], None]]
"""How far its far end is, and how it is painted."""


def lay_out(p: Painter) -> None:
    """One scene; what has its far end furthest away is painted first."""
    road, walk = p.rng.uniform(*p.style.road), p.rng.uniform(*p.style.walk)
    backdrop(p)
    ground(p, road, walk)
    things = _plots(p, road, walk) + _street_life(p, road, walk)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    _bonnet(p)


def _bonnet(p: Painter) -> None:
    """What the camera sees of its own car; never labelled, too small to see in some scenes."""
    high, middle = p.height * p.rng.uniform(*p.style.bonnet), p.width * p.rng.uniform(0.45, 0.55)
    if high > p.height * 0.02:
        bonnet, wide = p.new(IGNORE_INDEX, dim(p.one_of(PAINTS), 0.6), 0.1), p.width * 0.56
        p.draw.ellipse((middle - wide, p.height - high, middle + wide, p.height + 5 * high), fill=bonnet)


def _plots(p: Painter, road: float, walk: float) -> list[Thing]:
    """Houses, gardens and side streets along both sides."""
    rng, style = p.rng, p.style
    things: list[Thing] = []
    for side in (-1, 1):
        z, border = rng.uniform(-6, 3), road + walk
        while z < 75:
            length = rng.uniform(8, 18)
            near, far, kind = max(z, 1.2), z + length, rng.random()
            z = far + rng.uniform(0, 1.0)
            if far < 2.5:
                continue
            if kind < style.side_street and near > 8:
                far = near + rng.uniform(6, 9)
                z = far
                things.append((far + 100, partial(side_street, p, side, road, near, far)))
            elif kind < style.side_street + style.garden:
                things += _garden(p, side, border, near, far)
            else:
                things.append((far, partial(house, p, side, side * (border + rng.uniform(0, 0.8)), near, far)))
    return things


def _garden(p: Painter, side: int, border: float, near: float, far: float) -> list[Thing]:
    rng, things = p.rng, list[Thing]()
    for d in rng.uniform(near + 0.5, far + 0.5, int(rng.integers(2, 6))).tolist():
        maker = tree if rng.random() < 0.6 else bush
        things.append((d, partial(maker, p, side * (border + rng.uniform(1.0, 6)), d)))
    if rng.random() < 0.7:
        maker_along = fence if rng.random() < p.style.fence * 1.6 else hedge
        things.append((far - 0.01, partial(maker_along, p, side * (border + 0.05), near, far)))
    return things


def _street_life(p: Painter, road: float, walk: float) -> list[Thing]:
    """What stands and moves on the road and the pavements."""
    rng, style = p.rng, p.style

    def depth(near: float, far: float = 32.0) -> float:
        return float(np.exp(rng.uniform(np.log(near), np.log(far))))

    def kerb(inner: float, outer: float) -> float:
        return float(p.side() * (road + rng.uniform(inner, outer)))

    things: list[Thing] = []
    for _ in range(rng.poisson(style.poles)):
        z = depth(5)
        things.append((z, partial(pole, p, kerb(0.3, 0.8), z)))
    for _ in range(rng.poisson(style.trees)):
        z = depth(9)
        things.append((z, partial(tree, p, kerb(0.6, 1.0), z)))
    for _ in range(rng.poisson(style.people / 1.6)):
        z, x = depth(4.5, 32), kerb(0.4, walk - 0.3)
        if rng.random() < 0.25:
            x = rng.uniform(-road, road)
        for _ in range(1 + rng.poisson(0.6)):
            things.append((z, partial(person, p, x, z)))
            x, z = x + rng.uniform(0.45, 0.8), z + rng.uniform(0, 0.8)
    for side in (-1, 1):
        if rng.random() < style.fence * 0.5:
            near = rng.uniform(4, 22)
            things.append((near + 0.2, partial(fence, p, side * (road + 0.25), near, near + rng.uniform(5, 14))))
    taken: list[tuple[float, float]] = []
    for _ in range(rng.poisson(style.cars)):
        side, parked, z = p.side(), rng.random() < 0.5, depth(5.5, 50)
        x = float(side * (road - 1.0 if parked else road * 0.45))
        if all(abs(z - other) > 6 or x * there < 0 for there, other in taken):
            taken.append((x, z))
            things.append((z, partial(car, p, x, z)))
    return things
