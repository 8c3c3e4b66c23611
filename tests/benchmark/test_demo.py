"""The demo, small; the whole of it is marked slow."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das3.benchmark import demo, grid, processes
from das3.benchmark.cell import Cell
from das3.benchmark.suites import Suite, streets, streets_demo
from das3.cli import main
from das3.data.streets import CLASS_NAMES, Streets
from small_benchmark import run_here


def small() -> Suite:
    """Streets of a few small scenes and steps."""
    options = {"steps": 4, "batch_size": 4, "device": "cpu"}
    size = (48, 96)
    return Suite(
        "streets",
        lambda: Streets("source", 5, 0, size),
        lambda: Streets("target", 5, 0, size),
        lambda: Streets("target", 4, 1000, size),
        model_args={"width": 8},
        source_options=options,
        oracle_options=options,
        options={"batch_size": 4, "device": "cpu"},
        steps=6,
    )


@contextmanager
def run_before(cell: Cell) -> Iterator[None]:
    """In place of a process beside, which takes seconds to start."""
    run_here(cell)
    yield


def test_the_demo_changes_nothing_of_das3() -> None:
    """Its sets, network and source training are smaller than the benchmark's; the recipe is das3's own in both."""
    small = streets_demo()
    assert (small.options, small.steps) == ({}, None)
    parts = ("source", "target", "test")
    same = {part: replace(getattr(small, part), count=0, size=(0, 0)) for part in parts}
    assert same == {part: replace(getattr(streets(), part), count=0, size=(0, 0)) for part in parts}


def test_summary_table_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(demo, "streets_demo", small)
    monkeypatch.setattr(grid, "beside", run_before)
    out = tmp_path / "demo"
    given = ["demo", "--out", str(out), "--quiet"]
    assert main(given) == 0
    summary = json.loads((out / "summary.json").read_text())
    stages = summary["stages"]
    assert [row["name"] for row in stages] == ["source", "align", "selftrain", "propagate", "oracle"]
    for row in stages:
        assert set(row["per_class_iou"]) == set(CLASS_NAMES)
        assert 0 <= row["miou"] <= 100
        assert row["seconds"] >= 0
    low, last, high = (stages[i]["miou"] for i in (0, 3, 4))
    wanted = (last - low) / (high - low) if high > low else None
    assert summary["gap_closed"] == (pytest.approx(wanted, abs=1e-4) if wanted is not None else None)
    assert summary["seed"] == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*CLASS_NAMES, "mIoU", "oracle"))
    assert f"{stages[3]['miou']:.1f}" in printed
    for name in ("domains.png", "before_after.png"):
        pixels = np.asarray(Image.open(out / name))
        assert pixels.shape[1] > 4 * 96
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert (out / "das3/model/das3.json").exists()
    monkeypatch.setattr("das3.training.phases.train", lambda *args, **options: 1 / 0)
    assert "mIoU" in (out / "das3/report.html").read_text()
    monkeypatch.setattr("das3.training.phases.train", lambda *args, **options: 1 / 0)
    assert main(given) == 0  # finished, it is not run again
    assert json.loads((out / "summary.json").read_text()) == summary


def test_an_oracle_that_fails_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def broken(cell: Cell, *, quiet: bool = True) -> list[dict[str, object]]:
        if cell.kind == "oracle":
            raise ValueError("out of\nluck")
        return []

    monkeypatch.setattr(demo, "streets_demo", small)
    monkeypatch.setattr(grid, "beside", run_before)
    monkeypatch.setattr(grid, "run_cell", broken)
    monkeypatch.setattr(processes, "run_cell", broken)
    assert main(["demo", "--out", str(tmp_path), "--quiet"]) == 2
    assert "the oracle could not be trained: ValueError: out of luck" in capsys.readouterr().err


def test_a_cell_beside_ends_with_the_block_or_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    over, seen = threading.Event(), []

    class Process:
        terminate = staticmethod(over.set)

    def run(cell: str, threads: int, alive: set[Process]) -> None:
        alive.add(process := Process())
        seen.append("begun")
        started.set()
        assert over.wait(60)
        seen.append("over")
        alive.discard(process)

    monkeypatch.setattr(processes, "in_process", run)
    started = threading.Event()
    with processes.beside("cell"):  # type: ignore[arg-type]
        started.wait(60)
        over.set()
    assert seen == ["begun", "over"]
    started.clear()
    over.clear()

    def interrupted() -> None:
        with processes.beside("cell"):  # type: ignore[arg-type]
            started.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["begun", "over"] * 2


@pytest.mark.slow
def test_the_whole_demo_closes_half_of_the_gap(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quiet"]) == 0
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    assert summary["gap_closed"] > 0.5
