"""The demo, small; the whole of it is marked slow."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das3.benchmark import demo
from das3.benchmark.suites import Suite
from das3.cli import main
from das3.data.streets import CLASS_NAMES, Streets

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_summary_table_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(demo, "streets", small)
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


@pytest.mark.slow
def test_the_whole_demo_closes_half_of_the_gap(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quiet"]) == 0
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    assert summary["gap_closed"] > 0.5
