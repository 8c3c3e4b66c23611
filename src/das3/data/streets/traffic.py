"""Poles, signs, people and vehicles: what stands and moves in a street."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from das3.data.streets.classes import CAR, PERSON, POLE, SIGN
from das3.data.streets.painter import Painter, Point, dim
from das3.data.streets.styles import Color, Range
from das3.data.streets.town import PAINTS

__all__ = ["car", "person", "pole"]


def _lamp_post(p: Painter, x: float, z: float) -> None:
    high, inward = p.rng.uniform(4.5, 7.0), -1.3 if x > 0 else 1.3
    steel = p.new(POLE, (118, 121, 126), z, jitter=0.25)
    p.front(steel, x, z, 0.26, 0, high)
    p.front(steel, x + inward / 2, z, abs(inward), high - 0.16, high + 0.06)
    lamp = p.new(POLE, (255, 235, 180) if p.style.lamps else (200, 200, 190), 0.1)
    p.front(lamp, x + inward, z, 0.5, high - 0.2, high)
    p.light(x + inward, z, high - 0.2, 0.7, (255, 214, 150))
    p.shadow(x, x - p.sun * 4.0, z, z + 0.2, 0.8 if p.style.sun else 0.0)


_WARNING = ((-0.6, -0.48), (0.6, -0.48), (0.0, 0.6))


def _sign_post(p: Painter, x: float, z: float) -> None:
    rng, high = p.rng, p.rng.uniform(2.2, 3.4)
    p.front(p.new(POLE, (126, 128, 130), z, jitter=0.2), x, z, 0.2, 0, high)
    color = p.one_of(((200, 36, 40), (36, 80, 185), (236, 200, 40), (200, 36, 40)))
    plate, inner = p.new(SIGN, color, z, jitter=0.1), p.new(SIGN, (238, 238, 234), z, jitter=0.05)
    wide, shape = rng.uniform(0.8, 1.2), rng.random()
    if shape < 0.4:
        p.ellipse(plate, x, z, high, wide, wide)
        p.ellipse(inner, x, z, high, wide * 0.6, wide * (0.6 if rng.random() < 0.6 else 0.2))
    elif shape < 0.7:
        for instance, size in ((plate, wide), (inner, wide * 0.5)):
            p.outline(instance, x, z, 1.0, [(right * size, high + up * size) for right, up in _WARNING])
    else:
        p.front(plate, x, z, wide, high - wide * 0.5, high + wide * 0.5)
        p.front(inner, x, z, wide * 0.6, high - wide * 0.1, high + wide * 0.1)


def _traffic_light(p: Painter, x: float, z: float) -> None:
    high = p.rng.uniform(2.4, 3.6)
    p.front(p.new(POLE, (84, 88, 86), z, jitter=0.2), x, z, 0.22, 0, high)
    p.front(p.new(SIGN, (34, 38, 36), z, jitter=0.1), x, z, 0.6, high, high + 1.4)
    on = int(p.rng.integers(3))
    color: Color = ((60, 230, 110), (255, 190, 50), (255, 50, 40))[on]
    p.ellipse(p.new(SIGN, color, 0.1), x, z, high + 0.25 + 0.35 * on, 0.34, 0.34)
    p.light(x, z, high + 0.25 + 0.35 * on, 0.3, color)


def pole(p: Painter, x: float, z: float) -> None:
    """A lamp post, a sign or a traffic light."""
    makers = (_lamp_post, _lamp_post, _sign_post, _sign_post, _traffic_light)
    p.one_of(makers)(p, x, z)


_COATS: tuple[Color, ...] = (
    (150, 40, 45),
    (45, 60, 110),
    (52, 52, 58),
    (190, 180, 160),
    (70, 110, 80),
    (120, 85, 60),
    (205, 140, 50),
)
_SKINS: tuple[Color, ...] = ((214, 168, 138), (150, 105, 80), (96, 66, 50))
_HAIRS: tuple[Color, ...] = ((40, 32, 28), (120, 90, 50), (160, 155, 150))


def person(p: Painter, x: float, z: float) -> None:
    """A person on foot."""
    rng, size = p.rng, p.rng.uniform(1.5, 1.9)
    coat = p.new(PERSON, p.one_of(_COATS), z, jitter=0.15)
    trousers = p.new(PERSON, dim(p.one_of(_COATS), 0.7), z, jitter=0.15)
    skin, hair = p.new(PERSON, p.one_of(_SKINS), z), p.new(PERSON, p.one_of(_HAIRS), z)
    step = rng.uniform(0.02, 0.13)
    p.shadow(x - 0.25, x + 0.25, z - 0.15, z + 0.25, 0.7)
    for leg in (-step, step):
        p.outline(trousers, x, z, size, [(leg - 0.05, 0), (leg + 0.05, 0), (0.08, 0.5), (-0.08, 0.5)])
    hem = rng.uniform(0.36, 0.5)
    p.outline(coat, x, z, size, [(-0.11, hem), (0.11, hem), (0.13, 0.78), (0.07, 0.84), (-0.07, 0.84), (-0.13, 0.78)])
    swing = step * p.side()
    sleeve = p.new(PERSON, dim(p.colors[coat], 0.8), z)
    for arm in (-1, 1):
        hand = arm * 0.14 + swing
        p.outline(sleeve, x, z, size, [(arm * 0.1, 0.8), (arm * 0.15, 0.78), (hand + 0.03, 0.45), (hand - 0.03, 0.45)])
    p.ellipse(hair, x, z, 0.935 * size, 0.14 * size, 0.15 * size)
    p.ellipse(skin, x + 0.01 * size * p.side(), z, 0.91 * size, 0.11 * size, 0.12 * size)


@dataclass(frozen=True)
class _Body:
    """Measures of a vehicle in metres; the cabin's as shares of the length at its foot and its roof."""

    width: float
    length: float
    waist: float
    roof: float
    foot: Range
    top: Range


_BODIES = (
    _Body(1.75, 4.2, 0.92, 1.48, (0.02, 0.78), (0.1, 0.6)),  # hatchback
    _Body(1.8, 4.7, 0.92, 1.45, (0.16, 0.78), (0.28, 0.62)),  # saloon
    _Body(1.8, 4.4, 1.05, 1.7, (0.0, 0.8), (0.05, 0.64)),  # off-roader
    _Body(2.0, 5.2, 1.15, 2.3, (0.0, 0.92), (0.01, 0.84)),  # van
)
_BUS = _Body(2.5, 10.0, 1.3, 3.0, (0.0, 1.0), (0.0, 1.0))


def car(p: Painter, x: float, z: float) -> None:
    """A vehicle; one on the right half drives away, one on the left comes towards the camera."""
    away = x > 0
    body = _BUS if p.rng.random() < 0.07 and z > 9 else p.one_of(_BODIES)
    half, color = body.width / 2, p.one_of(PAINTS)
    paint, flank, roof = (p.new(CAR, dim(color, light), z) for light in (1.0, 0.72, 1.12))
    glass, black = p.new(CAR, (44, 50, 60), z, jitter=0.15), p.new(CAR, (24, 24, 27), z)

    def along(share: float) -> float:
        return z + body.length * (share if away else 1 - share)

    p.shadow(x - half - 0.1, x + half + 0.1, z - 0.15, z + body.length + 0.1)
    p.strip(black, x - half + 0.15, x + half - 0.15, z, z + body.length)
    _flank(p, body, x, along, flank, glass, black)
    _end(p, body, x, along, paint, roof, glass, black, away)


def _flank(
    p: Painter, body: _Body, x: float, along: Callable[[float], float], paint: int, glass: int, black: int
) -> None:
    """The side towards the camera; above the waist it leans inwards to meet the roof."""
    (foot0, foot1), (top0, top1), waist, high = body.foot, body.top, body.waist, body.roof
    inward = body.width if x < p.lane else -body.width
    edge = x + inward / 2

    def shape(instance: int, points: Sequence[Point]) -> None:
        lean = [0.1 * inward * max(0.0, (y - waist) / (high - waist)) for _, y in points]
        p.polygon(instance, [p.at(edge - by, along(share), y) for by, (share, y) in zip(lean, points, strict=True)])

    shape(paint, [(0, 0.28), (1, 0.28), (1, waist * 0.85), (foot1, waist), (foot0, waist), (0, waist * 0.95)])
    shape(paint, [(foot0, waist), (foot1, waist), (top1, high), (top0, high)])
    low, tuck = waist + 0.05, high - 0.12
    shape(glass, [(foot0 + 0.05, low), (foot1 - 0.07, low), (top1 - 0.01, tuck), (top0 + 0.03, tuck)])
    radius = 0.16 * waist + 0.17
    turn = [i * math.pi / 4 for i in range(8)]
    for hub in (along(0.2), along(0.8)):
        p.polygon(black, [p.at(edge, hub + radius * math.cos(a), radius + radius * math.sin(a)) for a in turn])


def _end(
    p: Painter,
    body: _Body,
    x: float,
    along: Callable[[float], float],
    paint: int,
    roof: int,
    glass: int,
    black: int,
    away: bool,
) -> None:
    """The roof and the end that faces the camera: the rear if the car drives away."""
    half, slim, waist, high = body.width / 2, body.width * 0.4, body.waist, body.roof
    first, last = (0, 1) if away else (1, 0)
    z, foot, top, far = along(first), along(body.foot[first]), along(body.top[first]), along(body.top[last])
    p.panel(roof, x, (slim, top, high), (slim, far, high))
    p.panel(paint, x, (half, foot, waist), (slim, top, high))
    p.panel(glass, x, (half * 0.86, foot, waist + 0.06), (slim * 0.9, top, high - 0.1))
    p.panel(roof, x, (half, z, waist * 0.85), (half, foot, waist))
    for wheel in (-1, 1):
        p.front(black, x + wheel * (half - 0.17), z, 0.24, 0.0, 0.4)
    p.front(paint, x, z, body.width, 0.28, waist * 0.9)
    p.front(black, x, z, body.width * 0.96, 0.26, 0.4)
    p.front(p.new(CAR, (225, 222, 205), z), x, z, 0.5, 0.45, 0.57)
    color, glow, size = ((200, 30, 30), (255, 60, 40), 0.22) if away else ((245, 242, 225), (255, 240, 210), 0.5)
    lamp = p.new(CAR, color, 0.1 if p.style.lamps else z)
    for corner in (-1, 1):
        p.front(lamp, x + corner * (half - 0.22), z, 0.34, waist * 0.62, waist * 0.82)
        p.light(x + corner * (half - 0.22), z, waist * 0.7, size, glow)
