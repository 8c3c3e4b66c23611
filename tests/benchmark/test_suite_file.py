"""What users bring to the benchmark: suite files, published sets, models, data of their own."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das3.benchmark import grid as grid_module
from das3.benchmark.methods import find_methods, method_recipe
from das3.benchmark.suite_file import find_suite, load_suite
from das3.benchmark.suites import SUITES
from das3.errors import DataError, RecipeError
from das3.models import load_segmenter
from das3.recipe import load_recipe, recipe_from
from data import trees
from small_benchmark import run_grid, write_suite

README = Path(__file__).parents[2] / "benchmarks" / "README.md"

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_unusable_suite_files_are_refused(tmp_path):
    suite = write_suite(tmp_path / "a", stepz=3)
    with pytest.raises(RecipeError, match="stepz"):
        load_suite(suite)
    with pytest.raises(RecipeError, match="target"):
        load_suite(write_suite(tmp_path / "b", target=None))
    with pytest.raises(DataError, match="test has no labels"):
        load_suite(write_suite(tmp_path / "c", test={"images": "test/images"}))
    with pytest.raises(RecipeError, match="source_options: batch-size"):
        run_grid(write_suite(tmp_path / "d", source_options={"batch_size": "many"}), tmp_path / "out")
    source = {"images": "source/images", "labels": "source/labels", "classes": "five.json"}
    file = write_suite(tmp_path / "e", source=source)
    (tmp_path / "e/five.json").write_text(json.dumps({"classes": list("abcde")}))
    with pytest.raises(DataError, match=r"source has 5 classes .*, test has 3 \(sky, road, box\)"):
        run_grid(file, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"no suite .* streets, camvid-dusk"):
        find_suite("moon")
    with pytest.raises(DataError, match="--data"):
        find_suite("gta5-cityscapes")
    assert not (tmp_path / "out").exists()


def test_the_suite_file_in_the_readme_is_valid(tmp_path):
    (tmp_path / "shift.yaml").write_text(re.search(r"```yaml\n(.*?)```", README.read_text(), re.S)[1])
    suite = find_suite(str(tmp_path / "shift.yaml"))
    assert (suite.name, suite.size, suite.network) == ("shift", 240, "das3:small")
    assert suite.target.images == str(tmp_path / "night/images")
    assert suite.test.classes == str(tmp_path / "classes.json")
    assert grid_module._supervised(suite, "source", 0).lr == 2e-3


@pytest.mark.parametrize(("source", "classes"), [("gta5", 19), ("synthia", 16)])
def test_published_suites_open_the_published_layout(tmp_path, source, classes):
    getattr(trees, source)(tmp_path / source)
    trees.cityscapes(tmp_path / "cityscapes")
    suite = find_suite(f"{source}-cityscapes", tmp_path)
    opened = grid_module._opened(pickle.loads(pickle.dumps(suite)))
    assert [data.num_classes for data in opened.values()] == 3 * [classes]
    assert set(opened["target"].images.names).isdisjoint(opened["test"].images.names)
    kinds = [cell.kind for cell in grid_module.plan(suite, opened, find_methods(["das3"]), [0], tmp_path, {}, 0)]
    assert kinds == ["source", "oracle", "das3"]


def test_two_classes_as_masks_without_target_labels(tmp_path):
    """Another domain: binary masks of 0 and 255, and no oracle, since nobody labelled the target."""
    suite = write_suite(tmp_path, target={"images": "target/images"}, num_classes=2)
    for part in ("source", "test"):
        (tmp_path / part / "classes.json").unlink()
        for path in (tmp_path / part / "labels").iterdir():
            Image.fromarray((np.asarray(Image.open(path)) == 2).astype(np.uint8) * 255).save(path)
    rows = run_grid(suite, tmp_path / "out", ["bn", "das3"])
    assert [row["stage"] for row in rows] == ["source", "bn", "align", "selftrain", "propagate"]
    assert all(len(row["per_class_iou"]) == 2 and row["gap_closed"] is None for row in rows)
    assert all(0 < row["miou"] <= 100 for row in rows)
    assert load_segmenter(tmp_path / "out/0/das3").num_classes == 2


def test_a_source_model_that_was_given(grid, tmp_path):
    suite, out, rows = grid
    given = str(out / "0/source/model")
    found = run_grid(suite, tmp_path / "out", ["bn"], seeds=(0, 1), source_model=given)
    assert [row["method"] for row in found] == 2 * ["source", "oracle", "bn"]
    assert found[0]["miou"] == found[3]["miou"] == rows[0]["miou"]
    assert found[2]["miou"] == rows[2]["miou"]
    file = write_suite(tmp_path / "own", source=None, source_model="model.safetensors")
    shutil.copy(out / "0/source/model/model.safetensors", file.parent)
    assert run_grid(file, tmp_path / "weights", ["bn"])[0]["miou"] == rows[0]["miou"]


@pytest.mark.parametrize("name", ["streets", "camvid-dusk", "camvid-idd"])
def test_adapt_without_options_is_what_the_benchmark_runs(name, tmp_path):
    """As benchmarks/README.md shows it by hand. Real images are not needed to know the suite's options."""
    (tmp_path / "camvid").mkdir()
    suite = SUITES[name](tmp_path)
    assert recipe_from({}) == recipe_from(load_recipe("das3")) == method_recipe({}, suite.options, suite.steps)
