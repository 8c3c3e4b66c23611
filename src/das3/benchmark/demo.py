"""The demo: a model trained on sunny streets fails at dusk, is adapted without its source data, and recovers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from das3 import __version__
from das3.benchmark.grid import packed_suite, run_seed
from das3.benchmark.suites import streets_demo
from das3.data.labels import Labelled
from das3.data.streets import PALETTE
from das3.data.visualize import colorize, grid
from das3.evaluation.predict import predict_labels
from das3.files import write_atomically
from das3.models import load_segmenter
from das3.report import write_report

__all__ = ["print_table", "run_demo"]


def run_demo(out: Path, *, seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Train a source model on rendered streets, adapt it to the other domain without them, and compare with an oracle.

    Args:
        out: folder; gets source/, das3/ (the adaptation's run folder, with report.html) and oracle/, domains.png,
            before_after.png, summary.json and the rendered streets, in data/. An interrupted demo goes on where it
            stopped.
        seed: of the source model and the adaptation.
        quiet: show no progress.

    Returns:
        Contents of summary.json: rows source, align, selftrain, propagate and oracle, and the gap closed.
    """
    if not (quiet or (out / "data").exists()):
        print("rendering streets")
    suite = packed_suite(streets_demo(), out / "data")  # rendered once, for both processes and the pictures
    rows = run_seed(suite, seed, out, quiet=quiet)
    stages = [{"name": r["stage"], **{k: r[k] for k in ("miou", "per_class_iou", "seconds")}} for r in rows]
    summary = {"stages": stages, "gap_closed": rows[-2]["gap_closed"], "seed": seed, "das3": __version__}
    write_atomically(out / "summary.json", json.dumps(summary, indent=1))
    _draw(out, suite.source(), suite.test())  # type: ignore[misc]
    before, after = (load_segmenter(out / kind) for kind in ("source", "das3"))
    target: Labelled = suite.target()  # type: ignore[assignment]
    write_report(out / "das3", incoming=before, adapted=after, images=target.images)
    return summary


def print_table(summary: dict[str, Any], console: Console | None = None) -> None:
    """IoU per class and stage, in percent, and the gap closed."""
    stages: Sequence[dict[str, Any]] = summary["stages"]
    table = Table("class", *(row["name"] for row in stages), title="IoU in percent on unseen target images")
    for name in stages[0]["per_class_iou"]:
        table.add_row(name, *(_cell(row["per_class_iou"][name]) for row in stages))
    table.add_section()
    table.add_row("mIoU", *(_cell(row["miou"]) for row in stages), style="bold")
    console = console or Console()
    console.print(table)
    if summary["gap_closed"] is not None:
        console.print(f"gap closed: {100 * summary['gap_closed']:.0f} % of the way from source-only to the oracle")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _draw(out: Path, source: Labelled, test: Labelled) -> None:
    examples = [(s.image(i), colorize(s.label(i), PALETTE)) for i in range(4) for s in (source, test)]
    rows = [[*examples[i], *examples[i + 1]] for i in range(0, len(examples), 2)]
    _save(out / "domains.png", rows, ["source domain", "its labels", "target domain", "its labels"])
    before, after = (load_segmenter(out / kind) for kind in ("source", "das3"))
    rows = []
    for i in range(4):
        image = test.image(i)
        guesses = [colorize(predict_labels(s, image), PALETTE) for s in (before, after)]
        rows.append([image, *guesses, colorize(test.label(i), PALETTE)])
    _save(out / "before_after.png", rows, ["target image", "before", "after das3", "truth"])


def _save(path: Path, rows: Sequence[Sequence[Any]], titles: Sequence[str]) -> None:
    buffer = io.BytesIO()
    grid(rows, titles, scale=2).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
