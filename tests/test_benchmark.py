"""The bench on a tiny suite: rows, what is never run twice, what fails alone, what changed, what users bring."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import worlds
from benches import write_suite
from das3 import benchmark, cells
from das3.benchmark import run_benchmark
from das3.cli import main
from das3.data.images import open_images
from das3.data.labels import Labelled, open_labelled
from das3.data.packed import fingerprint, open_packed, pack
from das3.errors import DataError, RecipeError
from das3.methods import ABLATION, all_methods, find_methods, method_recipe, total_steps, variants
from das3.models import load_segmenter
from das3.recipe import Recipe
from das3.report import BEGIN, END, put_into, read_rows, summary
from das3.stages import stage_types
from das3.suite_file import find_suite, load_suite
from das3.suites import SUITES
from data import trees

METHODS = ["bn", "das3", "align+selftrain"]
KEYS = {"suite", "method", "stage", "seed", "miou", "gap_closed", "seconds", "peak_mib", "commit", "per_class_iou"}
README = Path(__file__).parents[1] / "benchmarks" / "README.md"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def here(cell, threads, alive):
    """In place of a process for every cell, which takes seconds to start."""
    if cell.rows() is None:
        benchmark._attempt(cell)


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    if "processes" not in request.fixturenames:
        monkeypatch.setattr(benchmark, "_in_process", here)


@pytest.fixture
def processes():
    """Asked for by tests in which cells have processes of their own."""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A finished grid: its suite, its folder, its rows."""
    root = tmp_path_factory.mktemp("grid")
    suite = write_suite(root / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_in_process", here)
        rows = bench(suite, root / "out", measure_every=2)
    return suite, root / "out", rows


def bench(suite, out, methods=METHODS, seeds=(0,), **more):
    return run_benchmark(str(suite), out, methods=methods, seeds=seeds, say=lambda line: None, **more)


@pytest.fixture
def copied(grid, tmp_path):
    """The same, to be changed."""
    suite, out, rows = grid
    shutil.copytree(out, tmp_path / "out")
    return suite, tmp_path / "out", rows


def forbidden(*args, **options):
    raise AssertionError("a finished cell was run again")


def weights(folder):
    return load_segmenter(folder).model.state_dict()


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


def test_curves_end_with_the_stage_s_miou_and_change_nothing(copied):
    suite, out, rows = copied
    for row in rows[3:]:
        assert [step for step, _ in row["curve"]] == ([2, 3] if row["stage"] == "align" else [2, 4])
        assert row["curve"][-1][1] == row["miou"]
    assert "curve" not in rows[0]
    for cell in ("das3", "align+selftrain"):
        shutil.rmtree(out / "0" / cell)
        (out / "0" / f"{cell}.json").unlink()
    plain = bench(suite, out)
    assert [row["miou"] for row in plain] == [row["miou"] for row in rows]
    with pytest.raises(RecipeError, match="measure_every"):
        bench(suite, out, measure_every=1)


def test_a_finished_cell_is_not_run_again(grid, monkeypatch):
    suite, out, rows = grid
    for name in ("adapt", "train_supervised"):
        monkeypatch.setattr(cells, name, forbidden)
    monkeypatch.setattr(benchmark, "_packed", forbidden)
    assert bench(suite, out, measure_every=2) == rows


def test_stages_that_methods_share_are_run_once(grid, copied, tmp_path, monkeypatch):
    suite, out, rows = grid
    by_name = {(row["method"], row["stage"]): row for row in rows}
    for stage in ("align", "selftrain"):
        mine, shared = by_name["align+selftrain", stage], by_name["das3", stage]
        assert {**mine, "method": "das3", "peak_mib": 0} == {**shared, "peak_mib": 0}
    trained = []
    train = cells.adapt.__globals__["run_phases"].__globals__["train"]

    def counted(fabric, segmenter, stage, *args, **options):
        trained.append(stage.name)
        return train(fabric, segmenter, stage, *args, **options)

    monkeypatch.setattr("das3.runs.train", counted)
    (row,) = [r for r in bench(suite, copied[1], [*METHODS, "propagate.mix=false"]) if r["stage"] == "propagate"][1:]
    assert trained == ["propagate"]
    for part in ("source", "source.json"):  # alone, it runs all three stages to the same weights
        (shutil.copytree if part == "source" else shutil.copy)(out / "0" / part, at(tmp_path / "alone" / "0" / part))
    alone = bench(suite, tmp_path / "alone", ["propagate.mix=false"])[-1]
    assert trained[1:] == ["align", "selftrain", "propagate"] or trained[2:] == ["align", "selftrain", "propagate"]
    assert alone["miou"] == row["miou"]
    one, other = (weights(folder / "0/propagate.mix=false") for folder in (copied[1], tmp_path / "alone"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def at(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_was_made_with_something_else_is_refused_or_redone(copied, monkeypatch):
    suite, out, rows = copied
    changed = {"selftrain": {"share": 0.7}}
    with pytest.raises(RecipeError, match=r"das3 was made with recipe\.selftrain\.share=0\.3, not 0\.7 .*--redo"):
        bench(suite, out, options=changed)
    assert (out / "0/das3.json").exists()
    monkeypatch.setattr(cells, "train_supervised", forbidden)
    again = bench(suite, out, options=changed, redo=True)
    assert again[:3] == rows[:3]
    assert again[3]["miou"] == rows[3]["miou"]
    assert again[4]["miou"] != rows[4]["miou"]


def test_other_data_are_other_cells(copied, tmp_path):
    suite, out, rows = copied
    moved = shutil.copytree(suite.parent, tmp_path / "moved")
    assert bench(moved / "tiny.yaml", out) == rows  # the same data elsewhere
    image = moved / "test/images/0.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    with pytest.raises(RecipeError, match=r"test='\w+', not '\w+' \(and 4 more cells\)"):
        bench(moved / "tiny.yaml", out)


def test_one_failure_leaves_the_others(copied, tmp_path, monkeypatch, capsys):
    suite, out, rows = copied
    adapt = cells.adapt

    def broken(model, images, *, out, **options):
        if out.name == "minent":
            raise ValueError("out of\nluck")
        return adapt(model, images, out=out, **options)

    monkeypatch.setattr(cells, "adapt", broken)
    given = ["benchmark", "--suite", str(suite), "--out", str(out), "--seeds", "1"]
    assert main([*given, "--methods", "minent,das3,bn"]) == 2
    said = capsys.readouterr()
    assert "minent (seed 0)" in said.err
    assert "failed: ValueError: out of luck" in said.out
    line = next(line for line in said.out.splitlines() if line.startswith("| tiny | minent"))
    assert [cell.strip() for cell in line.strip("|").split("|")][3:] == ["0/1", "–", "–", "–", "–"]
    found = {row["method"]: row for row in json.loads((out / "tiny.json").read_text())}
    assert found["minent"]["miou"] is None
    assert found["das3"] == rows[5]
    assert "Traceback" in (out / "0/minent.error.txt").read_text()
    for name in ("tiny-table.md", "tiny-table.tex", "tiny-bars.pdf", "tiny-classes.png", "tiny-curve.png"):
        assert (out / name).stat().st_size > 300, name
    monkeypatch.undo()
    monkeypatch.setattr(benchmark, "_in_process", here)
    assert bench(suite, out, ["minent"])[-1]["miou"] > 0
    assert not (out / "0/minent.error.txt").exists()


def test_without_a_source_model_nothing_is_adapted(tmp_path, monkeypatch):
    suite = write_suite(tmp_path / "world")
    monkeypatch.setattr(cells, "train_supervised", lambda *args, **options: 1 / 0)
    rows = bench(suite, tmp_path / "out", ["bn"])
    assert [row["error"].split(":")[0] for row in rows] == ["ZeroDivisionError", *2 * ["its source model failed"]]


@pytest.fixture
def begun(grid, tmp_path):
    """A folder in which nothing but the source model is finished."""
    _, out, _ = grid
    for part in ("0/source", "data"):
        shutil.copytree(out / part, tmp_path / "out" / part)
    shutil.copy(out / "0/source.json", tmp_path / "out/0/source.json")
    return tmp_path / "out"


def assert_goes_on(grid, folder, monkeypatch):
    """What was interrupted ends with the weights and rows of what was not."""
    suite, out, rows = grid
    monkeypatch.setattr(benchmark, "_in_process", here)
    found = bench(suite, folder, ["das3"])
    one, other = (weights(root / "0/das3") for root in (out, folder))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["miou"] for row in found[2:]] == [row["miou"] for row in rows[3:6]]


def test_a_cell_that_is_killed_fails_alone_and_goes_on(grid, begun, processes, monkeypatch):
    log, children = begun / "0/das3/metrics.jsonl", benchmark.multiprocessing.active_children

    def kill():
        wait_for(log.exists)
        (child,) = children()
        os.kill(child.pid, signal.SIGKILL)

    in_process = benchmark._in_process
    monkeypatch.setattr(benchmark, "_in_process", lambda c, *more: (in_process if c.kind == "das3" else here)(c, *more))
    killer = threading.Thread(target=kill)
    killer.start()
    rows = bench(grid[0], begun, ["das3"])
    killer.join()
    assert [row["miou"] for row in rows[2:]] == 3 * [None]
    assert "signal 9" in rows[-1]["error"]
    assert rows[1]["miou"] == grid[2][1]["miou"]
    assert_goes_on(grid, begun, monkeypatch)


@pytest.mark.slow
def test_a_bench_that_is_killed_ends_its_cells_and_goes_on(grid, begun, monkeypatch):
    suite = grid[0]
    given = ["benchmark", "--suite", str(suite), "--out", str(begun), "--seeds", "1", "--methods", "das3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "das3", *given], start_new_session=True, env=environment)
    log = begun / "0/das3/metrics.jsonl"
    wait_for(lambda: log.exists() or process.poll() is not None)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(process.pid))
    assert log.exists()
    assert json.loads((begun / "0/das3.json").read_text())["rows"] is None
    assert_goes_on(grid, begun, monkeypatch)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(group):
    """Whether a process of this session still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_classes_as_masks_without_target_labels(tmp_path):
    """Another domain: binary masks of 0 and 255, and no oracle, since nobody labelled the target."""
    suite = write_suite(tmp_path, target={"images": "target/images"}, num_classes=2)
    for part in ("source", "test"):
        (tmp_path / part / "classes.json").unlink()
        for path in (tmp_path / part / "labels").iterdir():
            Image.fromarray((np.asarray(Image.open(path)) == 2).astype(np.uint8) * 255).save(path)
    rows = bench(suite, tmp_path / "out", ["bn", "das3"])
    assert [row["stage"] for row in rows] == ["source", "bn", "align", "selftrain", "propagate"]
    assert all(len(row["per_class_iou"]) == 2 and row["gap_closed"] is None for row in rows)
    assert all(0 < row["miou"] <= 100 for row in rows)
    assert load_segmenter(tmp_path / "out/0/das3").num_classes == 2


def test_a_source_model_that_was_given(grid, tmp_path):
    suite, out, rows = grid
    given = str(out / "0/source/model")
    found = bench(suite, tmp_path / "out", ["bn"], seeds=(0, 1), source_model=given)
    assert [row["method"] for row in found] == 2 * ["source", "oracle", "bn"]
    assert found[0]["miou"] == found[3]["miou"] == rows[0]["miou"]
    assert found[2]["miou"] == rows[2]["miou"]
    file = write_suite(tmp_path / "own", source=None, source_model="model.safetensors")
    shutil.copy(out / "0/source/model/model.safetensors", file.parent)
    assert bench(file, tmp_path / "weights", ["bn"])[0]["miou"] == rows[0]["miou"]


def test_suite_files_that_can_t_be_used(tmp_path):
    suite = write_suite(tmp_path / "a", stepz=3)
    with pytest.raises(RecipeError, match="stepz"):
        load_suite(suite)
    with pytest.raises(RecipeError, match="target"):
        load_suite(write_suite(tmp_path / "b", target=None))
    with pytest.raises(DataError, match="test has no labels"):
        load_suite(write_suite(tmp_path / "c", test={"images": "test/images"}))
    with pytest.raises(RecipeError, match="source_options: batch-size"):
        bench(write_suite(tmp_path / "d", source_options={"batch_size": "many"}), tmp_path / "out")
    source = {"images": "source/images", "labels": "source/labels", "classes": "five.json"}
    file = write_suite(tmp_path / "e", source=source)
    (tmp_path / "e/five.json").write_text(json.dumps({"classes": list("abcde")}))
    with pytest.raises(DataError, match=r"source has 5 classes .*, test has 3 \(sky, road, box\)"):
        bench(file, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"no suite .* streets, camvid-dusk"):
        find_suite("moon")
    with pytest.raises(DataError, match="--data"):
        find_suite("gta5-cityscapes")
    assert not (tmp_path / "out").exists()


def test_the_page_s_suite_file_is_one(tmp_path):
    (tmp_path / "shift.yaml").write_text(re.search(r"```yaml\n(.*?)```", README.read_text(), re.S)[1])
    suite = find_suite(str(tmp_path / "shift.yaml"))
    assert (suite.name, suite.size, suite.network) == ("shift", 240, "das3:small")
    assert suite.target.images == str(tmp_path / "night/images")
    assert suite.test.classes == str(tmp_path / "classes.json")
    assert benchmark._supervised(suite, "source", 0).lr == 2e-3


@pytest.mark.parametrize(("source", "classes"), [("gta5", 19), ("synthia", 16)])
def test_published_suites_open_the_published_layout(tmp_path, source, classes):
    getattr(trees, source)(tmp_path / source)
    trees.cityscapes(tmp_path / "cityscapes")
    suite = find_suite(f"{source}-cityscapes", tmp_path)
    opened = benchmark._opened(pickle.loads(pickle.dumps(suite)))
    assert [data.num_classes for data in opened.values()] == 3 * [classes]
    assert set(opened["target"].images.names).isdisjoint(opened["test"].images.names)
    kinds = [cell.kind for cell in benchmark.plan(suite, opened, find_methods(["das3"]), [0], tmp_path, {}, 0)]
    assert kinds == ["source", "oracle", "das3"]


def test_packed_images_are_the_resized_ones(tmp_path):
    world = worlds.write_world(tmp_path / "world", "target", count=3, size=(40, 30))
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(world / "images/9.png")
    Image.fromarray(np.full((50, 60), 255, np.uint8)).save(world / "labels/9.png")
    data = open_labelled(world / "images", world / "labels")
    assert pack(data, tmp_path / "packed", 24)
    packed = pickle.loads(pickle.dumps(open_packed(tmp_path / "packed")))
    assert isinstance(packed, Labelled)
    wanted = data.images.resized(24)
    assert packed.images.names == wanted.names
    assert packed.images.sizes() == wanted.sizes()
    assert packed.images.resized(24) is packed.images
    assert packed.class_names == data.class_names
    for i in range(4):
        assert (packed.image(i) == wanted[i]).all()
        assert (packed.label(i) == data.label(i)).all()
    before = (tmp_path / "packed/index.json").stat().st_mtime_ns
    assert pack(data, tmp_path / "packed", 24)
    assert (tmp_path / "packed/index.json").stat().st_mtime_ns == before
    assert pack(open_images(world / "images"), tmp_path / "packed", 24)
    assert not isinstance(open_packed(tmp_path / "packed"), Labelled)


def test_sets_that_are_too_large_are_not_packed(tmp_path, monkeypatch):
    world = worlds.write_world(tmp_path / "world", "target", count=2)
    monkeypatch.setattr("das3.data.packed.LARGEST", 1000)
    assert not pack(open_images(world / "images"), tmp_path / "packed")


def test_a_fingerprint_is_the_data_s_and_not_the_folder_s(tmp_path):
    one, two = (worlds.write_world(tmp_path / name, "target", count=3) for name in "ab")
    marks = [fingerprint(open_labelled(w / "images", w / "labels")) for w in (one, two)]
    assert marks[0] == marks[1] != fingerprint(open_images(one / "images"))


def test_methods_by_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 7\nimages: somewhere\nbatch_size: 3\nalign: {gamma: 1.5}\n")
    found = find_methods(
        ["das3", "shot-im", "align+propagate", "align.gamma=0", "average=0.5", str(tmp_path / "mine.yaml")]
    )
    assert found == {
        "das3": {},
        "shot-im": {"stages": ["shot-im"]},
        "align+propagate": {"stages": ["align", "propagate"]},
        "align.gamma=0": {"align": {"gamma": 0}},
        "average=0.5": {"average": 0.5},
        "mine": {"batch_size": 3, "align": {"gamma": 1.5}},
    }
    with pytest.raises(RecipeError, match="no method is called 'magic'; there are: bn, "):
        find_methods(["magic"])
    (tmp_path / "das3.yaml").write_text("")
    with pytest.raises(RecipeError, match="two methods are called"):
        find_methods(["das3", str(tmp_path / "das3.yaml")])
    with pytest.raises(RecipeError, match="gama"):
        method_recipe(find_methods(["align.gama=0"])["align.gama=0"], {})


def test_every_method_takes_das3_s_steps():
    """All its stages and rounds together, up to rounding, unless it says otherwise or is das3 with a stage less."""
    usual = total_steps(Recipe())
    for name in ("cbst", "tent", "mean-teacher", "atp", "das3"):
        assert total_steps(method_recipe(find_methods([name])[name], {})) == pytest.approx(usual, abs=2), name
        assert total_steps(method_recipe(find_methods([name])[name], {}, 55)) == pytest.approx(55, abs=2), name
    assert total_steps(method_recipe({"stages": ["bn"]}, {}, 55)) == 0
    assert total_steps(method_recipe({"stages": ["align"]}, {})) == Recipe().options_of("align").steps
    assert total_steps(method_recipe({"stages": ["tent"], "tent": {"steps": 7}}, {})) == 7
    both = method_recipe({"batch_size": 3, "align": {"gamma": 1.0}}, {"batch_size": 2, "align": {"alpha": 2.0}})
    assert (both.batch_size, both.options_of("align").gamma, both.options_of("align").alpha) == (2, 1.0, 2.0)


def test_all_methods_and_all_variants_are_recipes():
    names = all_methods()
    parts = {"align", "selftrain", "propagate", "atp-align", "atp-selftrain"}
    assert set(names) >= set(stage_types()) - parts | {"das3", "atp"}
    assert not parts & set(names)
    assert list(find_methods(["all", "das3"])) == names
    changed = find_methods([names[0] for names in ABLATION.values()])
    recipes = [method_recipe(given, {}).to_dict() for given in changed.values()]
    assert all(recipe != Recipe().to_dict() for recipe in recipes)
    assert len(variants()) == len(set(variants())) > 20


def test_the_committed_tables_are_those_of_the_committed_rows():
    results = README.parent / "results"
    _, marked, rest = README.read_text().partition(BEGIN)
    if not any((results / f"{suite}.json").exists() for suite in SUITES):
        pytest.skip("no results are committed yet")
    assert marked
    assert rest.partition(END)[0].strip() == summary(*read_rows([results])).strip()


def test_tables_of_several_suites_go_into_a_page(grid, tmp_path, capsys):
    _, _, rows = grid
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    for name, gain in (("a", 0.0), ("b", 0.1)):
        changed = [{**row, "suite": name, "gap_closed": row["gap_closed"] + gain} for row in rows]
        (results / f"{name}.json").write_text(json.dumps(changed))
    (results / "a-ablation.json").write_text(json.dumps([{**row, "suite": "a"} for row in rows]))
    page.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\nAfter.\n")
    given = ["tables", "--rows", str(results), "--page", str(page)]
    assert main([*given, "--out", str(tmp_path / "tables")]) == 0
    text = page.read_text()
    assert main(given) == 0
    assert page.read_text() == text
    assert text.startswith(f"Before.\n\n{BEGIN}\n\n| method | seeds | a | b | mean |\n")
    assert text.endswith(f"|\n\n{END}\nAfter.\n")
    assert "old" not in text
    assert "### a: ablation\n\n| suite | part | variant | seeds | after bn | after align |" in text
    assert {"results-table.tex", "results-bars.pdf", "ablation-table.csv"} <= {
        p.name for p in (tmp_path / "tables").iterdir()
    }
    capsys.readouterr()
    other = results / "c.json"
    other.write_text('{"stages": []}')
    assert main(given) == 0
    capsys.readouterr()
    assert main(["tables", "--rows", str(other)]) == 2
    assert "c.json" in capsys.readouterr().err
    page.write_text("nothing")
    with pytest.raises(DataError, match="lacks the lines"):
        put_into(page, "")
