"""Plots of benchmark rows, fit for a paper: bars per method, a heat map of classes, curves of mIoU over steps.

Needs matplotlib, the extra `plots`. Colours are those of Okabe and Ito and of cividis, which colour-blind readers can
distinguish; bars and curves can also be distinguished in print without colours.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from das3.benchmark.rows import Row
from das3.benchmark.tables import BOUNDS, last_stages
from das3.errors import DataError, RecipeError
from das3.files import write_atomically

__all__ = ["bars", "class_map", "curves", "matplotlib_is_there", "write_plots"]


_STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # outlines that journals take and that can be searched
    "savefig.dpi": 200,
}
_BLUE, _ORANGE = "#56B4E9", "#D55E00"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_BOUND_LINES = (
    ("source", "source only", ":"),
    ("advent", "ADVENT (sees source data)", "-."),
    ("oracle", "oracle", "--"),
)


def matplotlib_is_there() -> bool:
    """Whether plots can be drawn."""
    return find_spec("matplotlib") is not None


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise RecipeError("plots need matplotlib; install it with `pip install 'das3[plots]'`") from error


def _figure(width: float, height: float) -> Any:
    """A figure of its own, in inches; pyplot's global state is left alone."""
    return _library("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def bars(rows: Iterable[Row]) -> Any:
    """Final mIoU of each method, mean ± standard deviation over seeds, between the bounds.

    Args:
        rows: as of `das3.benchmark.run_benchmark`; a panel for each suite.

    Returns:
        A matplotlib figure.

    Raises:
        DataError: if there is nothing to draw.
        RecipeError: if matplotlib is missing.
    """
    by_suite = {suite: _scores(chosen) for suite, chosen in _by(rows, "suite").items()}
    by_suite = {suite: scores for suite, scores in by_suite.items() if scores}
    if not by_suite:
        raise DataError("no method has a mIoU; there are no bars to draw")
    longest = max(len(scores) for scores in by_suite.values())
    figure = _figure(3.4 * len(by_suite), 0.8 + 0.2 * longest)
    panels = figure.subplots(1, len(by_suite), squeeze=False)[0]
    for axes, (suite, scores) in zip(panels, by_suite.items(), strict=True):
        _bars_of(axes, suite, scores)
    lines = panels[0].get_legend_handles_labels()
    if lines[0]:
        figure.legend(*lines, loc="outside lower center", ncols=2)
    return figure


def _bars_of(axes: Any, suite: str, scores: Mapping[str, Sequence[float]]) -> None:
    names = sorted((n for n in scores if n not in BOUNDS), key=lambda name: statistics.fmean(scores[name]))
    means = [statistics.fmean(scores[name]) for name in names]
    spreads = [statistics.stdev(scores[name]) if len(scores[name]) > 1 else 0.0 for name in names]
    colors = [_ORANGE if name.startswith("das3") else _BLUE for name in names]
    axes.barh(names, means, xerr=spreads, color=colors, height=0.7, error_kw={"lw": 0.8, "capsize": 2})
    for place, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        text = axes.annotate(f"{mean:.1f}", (mean + spread, place), (3, 0), textcoords="offset points", va="center")
        text.set(size=7, zorder=4, bbox={"fc": "white", "ec": "none", "pad": 0.6})
    _bound_lines(axes.axvline, scores)
    largest = max(mean + spread for mean, spread in zip(means, spreads, strict=True))
    axes.set_xlim(0, 1.14 * max([largest, *scores.get("oracle", ()), *scores.get("advent", ())]))
    axes.set(title=suite, xlabel="mIoU (%)")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _bound_lines(draw: Any, scores: Mapping[str, Sequence[float]]) -> None:
    for name, label, dash in _BOUND_LINES:
        if name in scores:
            draw(statistics.fmean(scores[name]), color="black", ls=dash, lw=1.1, label=label, zorder=3)


def class_map(rows: Iterable[Row]) -> Any:
    """IoU of each class (columns) after each method (lines) and their mean, the mean over seeds, of one suite.

    Raises:
        DataError: if there is no IoU per class, or the rows have different classes.
        RecipeError: if matplotlib is missing.
    """
    last = [row for row in last_stages(rows) if row.get("per_class_iou")]
    kinds = {tuple(row["per_class_iou"]) for row in last}
    if len(kinds) != 1:
        raise DataError(f"a heat map takes rows of one set of classes, got {len(kinds)}; draw each suite")
    classes = list(kinds.pop())
    lines = _ordered(_by(last, "method"))
    values = [
        [*(_mean_iou(chosen, c) for c in classes), _mean([row["miou"] for row in chosen])] for chosen in lines.values()
    ]
    classes.append("mIoU")
    figure = _figure(1.6 + 0.4 * len(classes), 1.1 + 0.24 * len(lines))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            text = "–" if value != value else f"{value:.0f}"
            axes.text(x, y, text, ha="center", va="center", size=6.5, color="white" if value < 55 else "black")
    axes.axvline(len(classes) - 1.5, color="white", lw=2.5)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(lines)), list(lines))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(str(last[0]["suite"]))
    figure.colorbar(image, ax=axes, label="IoU (%)", pad=0.02)
    return figure


def _mean_iou(rows: Sequence[Row], name: str) -> float:
    return _mean([row["per_class_iou"][name] for row in rows])


def _mean(values: Sequence[float | None]) -> float:
    """Over those that are known; NaN if none is."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else math.nan


def curves(rows: Iterable[Row]) -> Any:
    """mIoU on the test images over the optimiser steps of all stages, of one suite; rows without `curve` are left out.

    A line is the mean over seeds and the band around it their standard deviation; points end stages.

    Raises:
        DataError: if no row has a curve.
        RecipeError: if matplotlib is missing.
    """
    rows = list(rows)
    scores = _scores(rows)
    drawn = {name: found for name, chosen in _by(rows, "method").items() if (found := _curves_of(chosen, scores))}
    if not drawn:
        raise DataError("no row has a curve; run the benchmark with --curve N")
    figure = _figure(5.0, max(3.0, 0.6 + 0.17 * len(drawn)))
    axes = figure.subplots()
    for number, (name, found) in enumerate(drawn.items()):
        steps = sorted(set.intersection(*(set(points) for points, _ in found)))
        several = [[points[step] for points, _ in found] for step in steps]
        means = [statistics.fmean(values) for values in several]
        color, dash = _CYCLE[number % len(_CYCLE)], _DASHES[number // len(_CYCLE) % len(_DASHES)]
        ends = [place for place, step in enumerate(steps) if step in found[0][1]]
        axes.plot(steps, means, color=color, ls=dash, lw=1.3, marker="o", ms=3.5, markevery=ends, label=name)
        if len(found) > 1:
            spread = [statistics.stdev(values) for values in several]
            low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    _bound_lines(axes.axhline, {name: found for name, found in scores.items() if name not in drawn})
    axes.set(xlabel="optimiser steps", ylabel="mIoU (%)", title=str(rows[0]["suite"]))
    axes.set_xlim(left=0)
    axes.grid()
    figure.legend(loc="outside right center")
    return figure


def _curves_of(rows: Sequence[Row], scores: Mapping[str, Sequence[float]]) -> list[tuple[dict[int, float], set[int]]]:
    """For each seed the mIoU by step, counted over all stages, and the steps at which stages end."""
    found = []
    for chosen in _by([row for row in rows if row.get("curve")], "seed").values():
        points = {0: statistics.fmean(scores["source"])} if "source" in scores else {}
        ends, before = set(), 0
        for row in chosen:
            points |= {before + step: miou for step, miou in row["curve"]}
            before += row["curve"][-1][0]
            ends.add(before)
        if before:
            found.append((points, ends))
    return found


def _by(rows: Iterable[Row], name: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _ordered(groups: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """Source-only first, the other bounds last."""
    return dict(sorted(groups.items(), key=lambda item: BOUNDS.get(item[0], 1)))


def _scores(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Final mIoU of every seed, by method; failed runs are left out."""
    measured = [row for row in last_stages(rows) if row.get("miou") is not None]
    return {name: [row["miou"] for row in chosen] for name, chosen in _by(measured, "method").items()}


def write_plots(rows: Iterable[Row], folder: str | Path, name: str = "plot") -> list[Path]:
    """Write NAME-bars, NAME-classes and NAME-curve, the last two for each suite if there are several (NAME-SUITE-…).

    Each is a .pdf and a .png; plots without data are left out.

    Returns:
        The files.

    Raises:
        RecipeError: if matplotlib is missing.
    """
    rows = list(rows)
    written: list[Path] = []
    with _library("matplotlib").rc_context(_STYLE):
        if _scores(rows).keys() - set(BOUNDS):
            written += _save(bars(rows), Path(folder), f"{name}-bars")
        by_suite = _by(rows, "suite")
        for suite, chosen in by_suite.items():
            stem = f"{name}-{suite}" if len(by_suite) > 1 else name
            if any(row.get("per_class_iou") for row in chosen):
                written += _save(class_map(chosen), Path(folder), f"{stem}-classes")
            if any(row.get("curve") and row["curve"][-1][0] for row in chosen):
                written += _save(curves(chosen), Path(folder), f"{stem}-curve")
    return written


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in ("pdf", "png")]
    for path in paths:
        buffer = io.BytesIO()
        undated = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        figure.savefig(buffer, format=path.suffix[1:], metadata=undated)
        write_atomically(path, buffer.getvalue())
    return paths
