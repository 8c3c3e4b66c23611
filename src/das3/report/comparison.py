"""Several runs side by side in one page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.visualize import palette
from das3.errors import ModelError, RecipeError
from das3.files import write_atomically
from das3.report.capture import Capture
from das3.report.charts import Chart, line_chart
from das3.report.findings import Findings, compare_captures, points_to_check
from das3.report.headline import Headline, headline
from das3.report.pictures import heat_picture, label_picture, largest_that_fit, photo_picture
from das3.report.provenance import flat_options
from das3.report.report import Report
from das3.report.run_folder import RunFolder, class_ious
from das3.report.statistics import shares

__all__ = ["write_comparison"]

_PICTURES = 12
_VISIBLE = 1e-3


@dataclass(frozen=True)
class _Side:
    """One of the runs that are compared."""

    name: str
    run: RunFolder
    before: Capture
    after: Capture
    findings: Findings
    headline: Headline
    points: list[str]

    @property
    def seconds(self) -> float:
        return sum(row.get("seconds") or 0.0 for row in self.run.stages)


def write_comparison(runs: Sequence[str | Path], out: str | Path) -> Report:
    """Write one page about several runs of models with the same classes.

    Args:
        runs: run folders, two or more, each with the predictions that `write_report` leaves there.
        out: the HTML file.

    Returns:
        The page.

    Raises:
        RecipeError: if there are fewer than two, or one is no run or has no predictions.
        ModelError: if the models' classes differ.
    """
    from das3.report.page import render  # jinja2 is needed only now

    if len(runs) < 2:
        raise RecipeError("a comparison needs two runs or more; for one there is `das3 report RUN`")
    sides = [_side(name, Path(run)) for name, run in zip(_names(runs), runs, strict=True)]
    names = sides[0].after.info.class_names
    for side in sides[1:]:
        if len(side.after.info.class_names) != len(names):
            raise ModelError(
                f"{side.run.folder} has other classes than {sides[0].run.folder}; runs of one task compare"
            )
    page = render("compare.html.j2", title="das3: runs compared", names=names, **_context(sides, names))
    write_atomically(Path(out), page)
    return Report(Path(out))


def _names(runs: Sequence[str | Path]) -> list[str]:
    """What the runs are called: their folders' names, their paths where those are equal."""
    short = [Path(run).absolute().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _side(name: str, folder: Path) -> _Side:
    run = RunFolder.open(folder)
    for place in (run.incoming, run.adapted):
        if not Capture.is_complete(place):
            raise RecipeError(
                f"{folder} keeps no predictions of the {place.name} model; make them with: das3 report {folder}"
            )
    before, after = Capture(run.incoming), Capture(run.adapted)
    findings = compare_captures(before, after)
    unchanged = before.info.weights == after.info.weights
    points = points_to_check(findings, after.info.class_names)
    return _Side(name, run, before, after, findings, headline(run, unchanged=unchanged), points)


def _context(sides: Sequence[_Side], names: Sequence[str]) -> dict[str, Any]:
    colors = palette(names)
    comparable = all(side.after.info.names == sides[0].after.info.names for side in sides)
    same = _agreements(sides) if comparable else np.zeros((0, len(sides), len(sides)))
    return {
        "sides": sides,
        "colors": colors.tolist(),
        "comparable": comparable,
        "same_incoming": len({side.before.info.weights for side in sides}) == 1,
        "options": _different_options(sides),
        "rows": _class_table(sides, names),
        "agreements": same.mean(axis=0).tolist() if comparable else None,
        "cards": largest_that_fit(lambda side: _cards(sides, same, colors, side)),
        "charts": _charts(sides),
    }


def _different_options(sides: Sequence[_Side]) -> list[tuple[str, list[Any]]]:
    """(option, its value in each run) of the options in which the runs differ."""
    flat = [flat_options(side.run.recipe) for side in sides]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = [(key, [one.get(key) for one in flat]) for key in keys if key != "out"]
    return [(key, values) for key, values in found if any(value != values[0] for value in values)]


def _class_table(sides: Sequence[_Side], names: Sequence[str]) -> list[dict[str, Any]]:
    """Shares and IoU per class: of the first run's incoming model, then of each run's adapted one."""
    incoming, _ = shares(sides[0].findings.matrix)
    after = [shares(side.findings.matrix)[1] for side in sides]
    measured_rows = [sides[0].run.incoming_row, *(side.run.returned() for side in sides)]
    ious = [class_ious(row, len(names)) for row in measured_rows]
    rows = []
    for c in range(len(names)):
        measured = [one[c] for one in ious]
        known = [value for value in measured if value is not None]
        rows.append(
            {
                "id": c,
                "shares": [float(incoming[c]), *(float(one[c]) for one in after)],
                "ious": measured,
                "best": max(known, default=None),
            }
        )
    return sorted(rows, key=lambda row: -max(row["shares"]))


def _agreements(sides: Sequence[_Side]) -> NDArray[np.float64]:
    """N×R×R shares of the pixels of N images on which each two of the R runs agree."""
    same = np.zeros((len(sides[0].after), len(sides), len(sides)))
    for i in range(len(same)):
        labels = [side.after[i]["labels"] for side in sides]
        for a, b in itertools.product(range(len(sides)), repeat=2):
            same[i, a, b] = (labels[a] == labels[b]).mean() if labels[a].shape == labels[b].shape else 0.0
    return same


def _cards(
    sides: Sequence[_Side], same: NDArray[np.float64], colors: NDArray[np.uint8], side: int
) -> list[dict[str, Any]]:
    """The images on which the runs differ most, pictures of this longer side in pixels."""
    chosen = np.argsort(same.mean(axis=(1, 2)), kind="stable")[:_PICTURES]
    return [_card(int(i), sides, colors, side) | {"differs": 1 - float(same[i].min())} for i in chosen]


def _card(i: int, sides: Sequence[_Side], colors: NDArray[np.uint8], side: int) -> dict[str, Any]:
    """One image: the photograph, and what the incoming model and each run make of it."""
    first = sides[0].before[i]
    predictions = [("incoming", first), *((one.name, one.after[i]) for one in sides)]
    height, width = first["labels"].shape
    return {
        "name": sides[0].before.info.names[i],
        "ratio": f"{width} / {height}",
        "photo": photo_picture(first["photo"].tobytes(), side),
        "classes": _classes_in([one["labels"] for _, one in predictions]),
        "views": [
            {
                "title": title,
                "labels": label_picture(one["labels"], colors, side),
                "heat": heat_picture(one["entropy"], side),
            }
            for title, one in predictions
        ],
    }


def _classes_in(predictions: Sequence[NDArray[np.uint8]]) -> dict[int, list[float]]:
    """Class id → its share of the pixels in each prediction, of the classes that are seen in one."""
    counts = np.array([np.bincount(labels.ravel(), minlength=256) / labels.size for labels in predictions])
    return {int(c): counts[:, c].tolist() for c in np.flatnonzero(counts.max(axis=0) >= _VISIBLE)}


def _charts(sides: Sequence[_Side]) -> list[Chart]:
    """Each stage's losses and signals, a curve per run."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for side in sides:
        for stretch in side.run.stretches():
            for key, points in {**stretch.losses, **stretch.signals}.items():
                curves.setdefault(f"{stretch.name}: {key}", {})[side.name] = points
    made = [line_chart(title, lines, "step", title.split(": ", 1)[1]) for title, lines in curves.items()]
    return [chart for chart in made if chart is not None]
