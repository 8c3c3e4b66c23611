"""Geometry of the page's charts. The templates draw it as inline SVG, and escape all names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Chart", "Dot", "Line", "line_chart", "scatter_chart", "ticks"]

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 38  # margins around the plot, for the axes' labels


class Line(NamedTuple):
    """A curve.

    Attributes:
        name: for the legend.
        path: of the SVG.
        style: number of its colour and dashes.
        first: value where it begins.
        last: value where it ends.
        lowest: smallest value.
        highest: largest value.
    """

    name: str
    path: str
    style: int
    first: float
    last: float
    lowest: float
    highest: float


class Dot(NamedTuple):
    """A point of a scatter plot: its place, its title and the number of its style."""

    x: float
    y: float
    title: str
    style: int


@dataclass(frozen=True)
class Chart:
    """What a template needs to draw a chart.

    Attributes:
        title: what is shown.
        x_label, y_label: of the axes.
        x_ticks, y_ticks: (place, text) pairs.
        lines: curves.
        dots: points.
        rule: place on the x axis of a vertical line, None for none.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    rule: float | None = None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` of them."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / max(1, count - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def line_chart(
    title: str, curves: Mapping[str, Points], x_label: str, y_label: str, styles: Mapping[str, int] | None = None
) -> Chart | None:
    """Curves over one pair of axes; values that are not finite are left out. None if there is nothing to draw.

    Args:
        title: what is shown.
        curves: name → (x, y) pairs.
        x_label: of the x axis.
        y_label: of the y axis.
        styles: number of the style of some curves; the others are numbered from 0.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in curves.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    axes = _Axes([p for points in finite.values() for p in points])
    lines = [
        Line(
            name,
            axes.path(points),
            (styles or {}).get(name, style),
            points[0][1],
            points[-1][1],
            min(y for _, y in points),
            max(y for _, y in points),
        )
        for style, (name, points) in enumerate(finite.items())
    ]
    return Chart(title, x_label, y_label, axes.x_labels(), axes.y_labels(), lines=tuple(lines))


def scatter_chart(
    title: str,
    points: Sequence[tuple[float, float, str, int]],
    x_label: str,
    y_label: str,
    rule: float | None = None,
) -> Chart:
    """Points (x, y, title, style) over a pair of axes.

    Args:
        title: what is shown.
        points: at least one.
        x_label: of the x axis.
        y_label: of the y axis.
        rule: x of a vertical line.
    """
    axes = _Axes([(x, y) for x, y, _, _ in points])
    dots = [Dot(axes.x(x), axes.y(y), text, style) for x, y, text, style in points]
    place = None if rule is None or rule < 0 else axes.x(rule)
    return Chart(title, x_label, y_label, axes.x_labels(), axes.y_labels(), dots=tuple(dots), rule=place)


class _Axes:
    """Values to places in the picture."""

    def __init__(self, points: Points) -> None:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.x_values, self.y_values = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def x(self, value: float) -> float:
        low, high = self.x_values[0], self.x_values[-1]
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_values[0], self.y_values[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, points: Points) -> str:
        return "M" + "L".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def x_labels(self) -> list[tuple[float, str]]:
        return [(self.x(value), f"{value:.12g}".replace("-", "−")) for value in self.x_values]

    def y_labels(self) -> list[tuple[float, str]]:
        return [(self.y(value), f"{value:.12g}".replace("-", "−")) for value in self.y_values]
