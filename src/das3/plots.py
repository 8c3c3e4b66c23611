"""Plots of benchmark rows, fit for a paper: bars per method, a heat map of classes, curves of mIoU over steps.

Needs matplotlib, the extra `plots`. Colours are those of Okabe and Ito and of cividis, which colour-blind readers can
tell apart; bars and curves can also be told apart in print without colours.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from das3.checkpoints import write_atomically
from das3.errors import DataError, RecipeError
from das3.tables import last_stages

__all__ = ["bars", "class_map", "curves", "matplotlib_is_there", "write_plots"]

Row = Mapping[str, Any]

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
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.35"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_BOUNDS = ("source", "oracle")


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
    """Final mIoU of each method, mean ± standard deviation over seeds, between source-only and oracle.

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
    return figure


def _bars_of(axes: Any, suite: str, scores: Mapping[str, Sequence[float]]) -> None:
    names = sorted((n for n in scores if n not in _BOUNDS), key=lambda name: statistics.fmean(scores[name]))
    means = [statistics.fmean(scores[name]) for name in names]
    spreads = [statistics.stdev(scores[name]) if len(scores[name]) > 1 else 0.0 for name in names]
    colors = [_ORANGE if name.startswith("das3") else _BLUE for name in names]
    axes.barh(names, means, xerr=spreads, color=colors, height=0.7, error_kw={"lw": 0.8, "capsize": 2})
    for place, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        axes.annotate(f"{mean:.1f}", (mean + spread, place), (3, 0), textcoords="offset points", va="center", size=7)
    _bound_lines(axes.axvline, scores)
    values = [value for found in scores.values() for value in found]
    low, high = min(values), max(values)
    axes.set_xlim(max(0.0, low - 0.15 * (high - low) - 1), high + 0.2 * (high - low) + 1)
    axes.set(title=suite, xlabel="mIoU (%)")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18 if len(names) < 6 else -0.1), ncols=2)


def _bound_lines(draw: Any, scores: Mapping[str, Sequence[float]]) -> None:
    for name, label, dash in (("source", "source only", ":"), ("oracle", "oracle", "--")):
        if name in scores:
            draw(statistics.fmean(scores[name]), color=_GREY, ls=dash, lw=1.1, label=label, zorder=0)


def class_map(rows: Iterable[Row]) -> Any:
    """IoU of each class (columns) after each method (lines), the mean over seeds, of one suite.

    Raises:
        DataError: if there is no IoU per class, or the rows have different classes.
        RecipeError: if matplotlib is missing.
    """
    last = [row for row in last_stages(rows) if row.get("per_class_iou")]
    kinds = {tuple(row["per_class_iou"]) for row in last}
    if len(kinds) != 1:
        raise DataError(f"a heat map takes rows of one set of classes, got {len(kinds)}; draw each suite")
    classes = list(kinds.pop())
    lines = {name: [_mean_iou(chosen, c) for c in classes] for name, chosen in _ordered(_by(last, "method")).items()}
    values = [[float("nan") if v is None else v for v in line] for line in lines.values()]
    figure = _figure(1.4 + 0.42 * len(classes), 1.1 + 0.24 * len(lines))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            text = "–" if value != value else f"{value:.0f}"
            axes.text(x, y, text, ha="center", va="center", size=6.5, color="white" if value < 55 else "black")
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(lines)), list(lines))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(str(last[0]["suite"]))
    figure.colorbar(image, ax=axes, label="IoU (%)", pad=0.02)
    return figure


def _mean_iou(rows: Sequence[Row], name: str) -> float | None:
    found = [row["per_class_iou"][name] for row in rows if row["per_class_iou"][name] is not None]
    return statistics.fmean(found) if found else None


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
    figure = _figure(5.0, 3.0)
    axes = figure.subplots()
    for number, (name, found) in enumerate(drawn.items()):
        steps = sorted(set.intersection(*(set(points) for points, _ in found)))
        several = [[points[step] for points, _ in found] for step in steps]
        means = [statistics.fmean(values) for values in several]
        color, dash = _CYCLE[number % len(_CYCLE)], _DASHES[number // len(_CYCLE) % len(_DASHES)]
        ends = [place for place, step in enumerate(steps) if step in found[0][1]]
        axes.plot(steps, means, color=color, ls=dash, lw=1.4, marker="o", ms=3.5, markevery=ends, label=name)
        if len(found) > 1:
            spread = [statistics.stdev(values) for values in several]
            low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    _bound_lines(axes.axhline, scores)
    axes.set(xlabel="optimiser steps", ylabel="mIoU (%)", title=str(rows[0]["suite"]))
    axes.set_xlim(left=0)
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
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
    """Source-only first, the oracle last."""
    return dict(sorted(groups.items(), key=lambda item: {"source": 0, "oracle": 2}.get(item[0], 1)))


def _scores(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Final mIoU of every seed, by method; failed runs are left out."""
    measured = [row for row in last_stages(rows) if row.get("miou") is not None]
    return {name: [row["miou"] for row in chosen] for name, chosen in _by(measured, "method").items()}


def write_plots(rows: Iterable[Row], folder: str | Path, name: str = "plot") -> list[Path]:
    """Write NAME-bars, and for every suite NAME-SUITE-classes and NAME-SUITE-curve, each as .pdf and .png.

    What there are no numbers for is left out.

    Returns:
        The files.

    Raises:
        RecipeError: if matplotlib is missing.
    """
    rows = list(rows)
    written: list[Path] = []
    with _library("matplotlib").rc_context(_STYLE):
        if _scores(rows).keys() - set(_BOUNDS):
            written += _save(bars(rows), Path(folder), f"{name}-bars")
        for suite, chosen in _by(rows, "suite").items():
            if any(row.get("per_class_iou") for row in chosen):
                written += _save(class_map(chosen), Path(folder), f"{name}-{suite}-classes")
            if any(row.get("curve") and row["curve"][-1][0] for row in chosen):
                written += _save(curves(chosen), Path(folder), f"{name}-{suite}-curve")
    return written


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in ("pdf", "png")]
    for path in paths:
        buffer = io.BytesIO()
        undated = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        figure.savefig(buffer, format=path.suffix[1:], metadata=undated)
        write_atomically(path, buffer.getvalue())
    return paths
