"""Plots show the numbers they are given."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das3.benchmark.plots import bars, class_map, curves, matplotlib_is_there, write_plots
from das3.errors import DataError, RecipeError

pytest.importorskip("matplotlib")

FINAL = {"source": (20.0, 22.0), "bn": (30.0, 33.0), "das3": (40.0, 44.0), "oracle": (50.0, 54.0)}


def row(method: str, stage: str, seed: int, miou: float | None, suite: str = "dusk", **more: object) -> dict:
    classes = None if miou is None else {"road": miou + 10, "pole": None if method == "bn" else miou - 10}
    return {
        "suite": suite,
        "method": method,
        "stage": stage,
        "seed": seed,
        "miou": miou,
        "per_class_iou": classes,
        **more,
    }


def rows(suite: str = "dusk") -> list[dict]:
    found = []
    for seed in range(2):
        for method, scores in FINAL.items():
            if method == "das3":
                curve = [[10, 31.0 + seed], [20, 35.0 + seed]]
                found.append(row("das3", "align", seed, 35.0 + seed, suite, curve=curve))
                found.append(
                    row("das3", "propagate", seed, scores[seed], suite, curve=[[10, 38.0], [30, scores[seed]]])
                )
            else:
                curve = {"curve": [[0, scores[seed]]]} if method == "bn" else {}
                found.append(row(method, method, seed, scores[seed], suite, **curve))
    return found


def test_bars_are_the_methods_last_stages_between_the_bounds() -> None:
    (axes,) = bars([*rows(), row("tent", "tent", 0, None, error="it failed")]).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert dict(zip(names, [bar.get_width() for bar in axes.patches], strict=True)) == {"bn": 31.5, "das3": 42.0}
    assert axes.get_xlim()[0] == 0
    assert {line.get_label(): line.get_xdata()[0] for line in axes.lines if "only" in line.get_label()} == {
        "source only": 21.0
    }
    assert any(line.get_label() == "oracle" and line.get_xdata()[0] == 52.0 for line in axes.lines)
    (whiskers,) = [c for c in axes.collections if len(c.get_segments()) == 2]
    spread = [segment[1][0] - segment[0][0] for segment in whiskers.get_segments()]
    assert spread == pytest.approx([2 * np.std(FINAL[name], ddof=1) for name in names])
    assert "mIoU" in axes.get_xlabel()


def test_each_suite_has_its_panel_of_bars() -> None:
    figure = bars([*rows(), *rows("idd")])
    assert [axes.get_title() for axes in figure.axes] == ["dusk", "idd"]
    with pytest.raises(DataError, match="no bars"):
        bars([row("tent", "tent", 0, None)])


def test_the_heat_map_is_the_mean_over_seeds() -> None:
    axes = class_map(rows()).axes[0]
    (image,) = axes.images
    nan = np.nan
    wanted = [[31, 11, 21], [41.5, nan, 31.5], [52, 32, 42], [62, 42, 52]]
    np.testing.assert_allclose(np.asarray(image.get_array().filled(nan)), wanted)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["source", "bn", "das3", "oracle"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["road", "pole", "mIoU"]
    assert "–" in [text.get_text() for text in axes.texts]
    with pytest.raises(DataError, match="one set of classes"):
        class_map([*rows(), row("bn", "bn", 0, 1.0, suite="x") | {"per_class_iou": {"sky": 1.0}}])


def test_a_curve_goes_through_all_stages_from_the_source_model_on() -> None:
    (axes,) = curves(rows()).axes
    line = next(line for line in axes.lines if line.get_label() == "das3")
    np.testing.assert_allclose(line.get_xydata(), [[0, 21], [10, 31.5], [20, 35.5], [30, 38], [50, 42]])
    assert "bn" not in [line.get_label() for line in axes.lines]
    assert {line.get_label(): line.get_ydata()[0] for line in axes.lines[1:]} == {"source only": 21.0, "oracle": 52.0}
    (band,) = axes.collections
    assert set(band.get_paths()[0].vertices[:, 0]) == {0, 10, 20, 30, 50}
    with pytest.raises(DataError, match="--curve"):
        curves([row("bn", "bn", 0, 1.0)])


def test_files_for_papers_and_for_screens(tmp_path: Path) -> None:
    written = write_plots(rows(), tmp_path / "deep", "dusk")
    stems = ("dusk-bars", "dusk-classes", "dusk-curve")
    assert sorted(p.name for p in written) == sorted(f"{s}.{e}" for s in stems for e in ("pdf", "png"))
    for path in written:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
        else:
            pixels = np.asarray(Image.open(path).convert("L"))
            assert min(pixels.shape) > 200
            assert 0.01 < (pixels < 250).mean() < 0.9
    several = write_plots([*rows(), row("bn", "bn", 0, 3.0, suite="idd")], tmp_path, "all")
    assert {p.stem for p in several} == {"all-bars", "all-dusk-classes", "all-dusk-curve", "all-idd-classes"}
    assert write_plots([row("source", "source", 0, None)], tmp_path, "none") == []


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert matplotlib_is_there()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RecipeError, match=r"pip install 'das3\[plots\]'"):
        write_plots(rows(), tmp_path)
    assert not list(tmp_path.iterdir())
