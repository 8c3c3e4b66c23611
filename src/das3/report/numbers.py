"""Numbers as a person reads them."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["duration", "number", "percent", "points", "signed"]

_SPACE = "\u00a0"  # no line break between a number and its unit


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in percent."""
    return "–" if share is None else f"{100 * share:.{digits}f}{_SPACE}%"


def points(value: float | None) -> str:
    """A score that is in percent already."""
    return "–" if value is None else f"{value:.1f}"


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign; without one if it rounds to zero."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else f"{0:.{digits}f}"


def number(value: Any) -> str:
    """A number in four digits; anything else as it is, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    """A time in two to three digits, with its unit."""
    units = (("s", 1.0, 100), ("min", 60.0, 100), ("h", 3600.0, 48), ("days", 86400.0, math.inf))
    unit, length = next((unit, length) for unit, length, most in units if seconds < most * length)
    value = seconds / length
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
