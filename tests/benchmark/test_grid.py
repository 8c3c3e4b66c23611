"""The benchmark on a tiny suite: its rows, what is never run twice, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from das3.benchmark import cell as cell_module
from das3.benchmark import grid as grid_module
from das3.errors import RecipeError
from das3.models import load_segmenter
from das3.training import phases
from small_benchmark import METHODS, run_grid, weights

KEYS = {"suite", "method", "stage", "seed", "miou", "gap_closed", "seconds", "peak_mib", "commit", "per_class_iou"}

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def copied(grid, tmp_path):
    """A copy of the finished grid, to be changed."""
    suite, out, rows = grid
    shutil.copytree(out, tmp_path / "out")
    return suite, tmp_path / "out", rows


def forbidden(*args, **options):
    raise AssertionError("a finished cell was run again")


def test_a_row_for_every_stage(grid):
    _, out, rows = grid
    assert [(row["method"], row["stage"]) for row in rows] == [
        ("source", "source"),
        ("oracle", "oracle"),
        ("bn", "bn"),
        *(("das3", stage) for stage in ("align", "selftrain", "propagate")),
        *(("align+selftrain", stage) for stage in ("align", "selftrain")),
    ]
    low, high = rows[0]["miou"], rows[1]["miou"]
    assert low < high
    for row in rows:
        assert set(row) >= KEYS
        assert (row["suite"], row["seed"]) == ("tiny", 0)
        assert row["miou"] == pytest.approx(np.mean(list(row["per_class_iou"].values())), abs=1e-3)
        assert row["gap_closed"] == pytest.approx((row["miou"] - low) / (high - low), abs=1e-4)
        assert row["seconds"] >= 0
        assert row["peak_mib"] > 100
        assert row["peak_gpu_mib"] is None or torch.cuda.is_available()
    assert json.loads((out / "tiny.json").read_text()) == rows
    result = load_segmenter(out / "0" / "das3")
    assert [*result.class_names] == ["sky", "road", "box"]


def test_curves_end_with_the_miou_of_the_stage_and_change_nothing(copied):
    suite, out, rows = copied
    for row in rows[3:]:
        assert [step for step, _ in row["curve"]] == ([1] if row["stage"] == "align" else [2, 4, 5])
        assert row["curve"][-1][1] == row["miou"]
    assert "curve" not in rows[0]
    for cell in ("das3", "align+selftrain"):
        shutil.rmtree(out / "0" / cell)
        (out / "0" / f"{cell}.json").unlink()
    plain = run_grid(suite, out)
    assert [row["miou"] for row in plain] == [row["miou"] for row in rows]
    with pytest.raises(RecipeError, match="measure_every"):
        run_grid(suite, out, measure_every=1)


def test_a_finished_cell_is_not_run_again(grid, monkeypatch):
    suite, out, rows = grid
    for name in ("adapt", "train_supervised"):
        monkeypatch.setattr(cell_module, name, forbidden)
    monkeypatch.setattr(grid_module, "_packed", forbidden)
    assert run_grid(suite, out, measure_every=2) == rows


def test_stages_that_methods_share_are_run_once(grid, copied, tmp_path, monkeypatch):
    suite, out, rows = grid
    by_name = {(row["method"], row["stage"]): row for row in rows}
    for stage in ("align", "selftrain"):
        mine, shared = by_name["align+selftrain", stage], by_name["das3", stage]
        assert {**mine, "method": "das3", "peak_mib": 0} == {**shared, "peak_mib": 0}
    trained = []
    train = phases.train

    def counted(fabric, segmenter, stage, *args, **options):
        trained.append(stage.name)
        return train(fabric, segmenter, stage, *args, **options)

    monkeypatch.setattr("das3.training.phases.train", counted)
    (row,) = [r for r in run_grid(suite, copied[1], [*METHODS, "propagate.mix=false"]) if r["stage"] == "propagate"][1:]
    assert trained == ["propagate"]
    for part in ("source", "source.json"):  # alone, it runs all three stages to the same weights
        (shutil.copytree if part == "source" else shutil.copy)(out / "0" / part, at(tmp_path / "alone" / "0" / part))
    alone = run_grid(suite, tmp_path / "alone", ["propagate.mix=false"])[-1]
    assert trained[1:] == ["align", "selftrain", "propagate"] or trained[2:] == ["align", "selftrain", "propagate"]
    assert alone["miou"] == row["miou"]
    one, other = (weights(folder / "0/propagate.mix=false") for folder in (copied[1], tmp_path / "alone"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def at(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_was_made_with_something_else_is_refused_or_redone(copied, monkeypatch):
    suite, out, rows = copied
    changed = {"selftrain": {"top_fraction": 0.7}}
    with pytest.raises(
        RecipeError, match=r"das3 was made with recipe\.selftrain\.top_fraction=0\.3, not 0\.7 .*--redo"
    ):
        run_grid(suite, out, options=changed)
    assert (out / "0/das3.json").exists()
    monkeypatch.setattr(cell_module, "train_supervised", forbidden)
    again = run_grid(suite, out, options=changed, redo=True)
    assert again[:3] == rows[:3]
    assert again[3]["miou"] == rows[3]["miou"]
    assert again[4]["miou"] != rows[4]["miou"]


def test_an_option_that_is_off_is_as_one_that_was_not_there_yet(copied, monkeypatch):
    suite, out, rows = copied
    file = out / "0/das3.json"
    cell = json.loads(file.read_text())

    def record(**changes):
        selftrain = {**cell["made_with"]["recipe"]["selftrain"], **changes}
        selftrain = {key: value for key, value in selftrain.items() if value != "missing"}
        recipe = {**cell["made_with"]["recipe"], "selftrain": selftrain}
        file.write_text(json.dumps({**cell, "made_with": {**cell["made_with"], "recipe": recipe}}))

    with monkeypatch.context() as finished:
        finished.setattr(grid_module, "_packed", forbidden)  # which is called where a cell is to be run
        for same in ({"pairwise_weight": "missing"}, {"gone": 0}, {"gone": False}):
            record(**same)
            assert run_grid(suite, out) == rows
    for other, said in (({"top_fraction": "missing"}, "top_fraction=None, not 0.3"), ({"gone": 2}, "gone=2, not None")):
        record(**other)
        with pytest.raises(RecipeError, match=said):
            run_grid(suite, out)
    record(pairwise_weight="missing")
    shutil.rmtree(out / "0/align+selftrain")
    (out / "0/align+selftrain.json").unlink()
    monkeypatch.setattr("das3.training.phases.train", forbidden)  # its stages are das3's
    assert run_grid(suite, out)[-1]["miou"] == rows[-1]["miou"]


def test_other_data_are_other_cells(copied, tmp_path):
    suite, out, rows = copied
    moved = shutil.copytree(suite.parent, tmp_path / "moved")
    assert run_grid(moved / "tiny.yaml", out) == rows  # the same data elsewhere
    image = moved / "test/images/0.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    with pytest.raises(RecipeError, match=r"test='\w+', not '\w+' \(and 4 more cells\)"):
        run_grid(moved / "tiny.yaml", out)
