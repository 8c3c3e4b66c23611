"""Published data sets, other codebases' checkpoints, recipes and the dry run, as a user comes to them."""

import json
import re
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import worlds
from das3.cli import main
from das3.data.open import open_images
from das3.data.published.classes import CITYSCAPES
from das3.models import load_segmenter, save_segmenter
from das3.recipe import load_recipe, recipe_from, recipe_names
from das3.training import cost_estimate as dry
from das3.training.loop import make_fabric
from data import trees
from models import published

FORWARD = partial(published.caffe_deeplab, heads={"layer6": 4}, main="layer6", branches=4, blocks=(1, 1, 1, 1))
SMALL = ("--size", "32,48", "--crop", "32,48", "--device", "cpu", "--precision", "32", "--workers", 0)
QUICK = [f"--{stage}.steps=1" for stage in ("align", "selftrain", "propagate")]


def run(*arguments):
    return main([str(a) for a in arguments])


def refused(capsys, status, *words):
    error = capsys.readouterr().err.strip()
    assert status == 2, error
    assert "\n" not in error, error
    assert all(str(word) in error for word in words), error


def caffe_input(rgb):
    return rgb[:, [2, 1, 0]] - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)


def write_checkpoint(path, classes=19):
    """A random network in ADVENT's keys, whose first use fixes its weights."""
    state = published.Random()
    with torch.no_grad():
        FORWARD(state, torch.rand(1, 3, 64, 64), classes)
    torch.save(dict(state), path)
    return state


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Cityscapes, a checkpoint, and what `das3 convert` makes of it."""
    root = tmp_path_factory.mktemp("place")
    trees.cityscapes(root / "cityscapes")
    write_checkpoint(root / "w.pth")
    assert run("convert", root / "w.pth", "--style", "advent", "--num-classes", 19, "--out", root / "model") == 0
    return root


def spec(place, split="val", **more):
    return f"cityscapes:{place / 'cityscapes'}?split={split}" + "".join(f"&{k}={v}" for k, v in more.items())


def test_a_converted_checkpoint_computes_what_its_codebase_does(place):
    state = published.Random()
    state.update(torch.load(place / "w.pth", weights_only=True))
    rgb = torch.rand(1, 3, 48, 80)
    with torch.no_grad():
        wanted = F.interpolate(
            FORWARD(state, caffe_input(rgb * 255), 19), (48, 80), mode="bilinear", align_corners=True
        )
        found = load_segmenter(place / "model")(rgb)
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_conversion_errors_are_one_line(place, tmp_path, capsys):
    out = ("--out", tmp_path / "model")
    capsys.readouterr()
    refused(capsys, run("convert", tmp_path / "no.pth", *out), "no.pth")
    refused(capsys, run("convert", place / "w.pth", "--style", "caffe", *out), "--style", "advent")
    refused(capsys, run("convert", place / "w.pth", "--num-classes", 7, *out), "19", "7")
    refused(capsys, run("convert", place / "w.pth"), "out")
    refused(capsys, run("convert", place / "w.pth", "--out", place / "cityscapes"), "cityscapes")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    refused(capsys, run("convert", tmp_path / "other.pth", *out), "other.pth")
    assert not (tmp_path / "model").exists()


def test_data_check_tells_by_its_exit_status(tmp_path, capsys):
    trees.folders(tmp_path / "whole")
    given = ("data", "check", "folders", tmp_path / "whole", "--quiet")
    assert run(*given, "--sheet", tmp_path / "sheet.png") == 0
    printed = capsys.readouterr().out
    assert re.search(r"dusk +2 +2 +2 ", printed)
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
    trees.label(tmp_path / "whole/dusk/labels/a.png", trees.pixels((0, 1, 9)))
    assert run(*given) == 1
    assert "9 (in 1 files)" in capsys.readouterr().out
    assert run(*given, "--split", "day") == 0
    (tmp_path / "whole/day/labels/b.png").unlink()
    capsys.readouterr()
    assert run(*given, "--split", "day") == 1
    assert "1 labels are missing" in capsys.readouterr().out
    refused(capsys, run("data", "check", "nothing", tmp_path), "nothing", "cityscapes")
    refused(capsys, run("data", "check", "gta5", tmp_path / "no"), "no folder")


RECIPES = [
    *("gta5-cityscapes", "synthia-cityscapes", "cityscapes-crosscity"),
    *(f"cityscapes-acdc-{condition}" for condition in ("night", "fog", "rain", "snow")),
]


def test_recipes_are_listed_shown_and_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("recipes") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"das3", *RECIPES}
    assert run("recipes", "show", "gta5-cityscapes") == 0
    shown = capsys.readouterr().out
    assert run("recipes", "copy", "gta5-cityscapes") == 0
    assert run("recipes", "copy", "gta5-cityscapes", "new/mine.yaml") == 0
    assert Path("gta5-cityscapes.yaml").read_text() == Path("new/mine.yaml").read_text() == shown
    capsys.readouterr()
    refused(capsys, run("recipes", "copy", "gta5-cityscapes"), "gta5-cityscapes.yaml", "already")
    refused(capsys, run("recipes", "show", "gta6"), "gta6", "gta5-cityscapes")
    refused(capsys, run("recipes", "show"), "name")


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_holds_the_settings_of_the_paper(name):
    assert name in recipe_names()
    values = load_recipe(name)
    recipe = recipe_from(values)
    assert recipe.stages == ("align", "selftrain", "propagate")
    assert (recipe.optimizer, recipe.weight_decay, recipe.power, recipe.size) == ("sgd", 5e-4, 0.9, 512)
    assert {(recipe.options_of(s).lr, recipe.options_of(s).head_lr_factor) for s in recipe.stages} == {(2.5e-4, 10)}
    align, selftrain, propagate = map(recipe.options_of, recipe.stages)
    assert (align.gamma, align.entropy_weight, align.alpha / align.diversity_weight) == (5, 3, 1e-3 / 1e-4)
    assert (selftrain.negative_threshold, selftrain.negative_weight, propagate.easy_share) == (0.05, 1, 0.3)
    shared = load_recipe("gta5-cityscapes")
    differing = {key for key in shared | values if shared.get(key) != values.get(key)}
    assert differing <= {"num_classes", "crop"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_head_of_a_recipe_says_what_is_committed(name):
    folder = Path(__file__).parents[2]
    text = (folder / "src/das3/recipes" / f"{name}.yaml").read_text()
    rows = json.loads((folder / "benchmarks/memory.json").read_text())
    peaks = [max(row["memory_gib"] for row in rows if row["size"] == size) for size in ("1024x512", "2048x1024")]
    assert {row["kind"] for row in rows} <= {"computed", "measured"}
    small, large, kind = re.search(r"GPU memory: (\S+) GiB .*, (\S+) GiB with 2048×1024 \((\w+);", text).groups()
    assert [float(small), float(large)] == [round(peak, 1) for peak in peaks]
    assert kind == rows[0]["kind"]
    assert f"--recipe {name} " in text


def test_a_recipe_adapts_a_converted_model_to_a_published_data_set(place, tmp_path):
    given = ("--recipe", "gta5-cityscapes", "--model", place / "model", "--images", spec(place, "train"))
    out = tmp_path / "run"
    assert (
        run("adapt", *given, *SMALL, *QUICK, "--eval-images", spec(place), "--out", out, "--quiet", "--guard=off") == 0
    )
    rows = json.loads((out / "summary.json").read_text())["stages"]
    assert [row["name"] for row in rows] == ["source", "align", "selftrain", "propagate"]
    assert list(rows[0]["per_class_iou"]) == list(CITYSCAPES.names)
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (saved["align"]["lr"], saved["images"]) == (2.5e-4, spec(place, "train"))
    tables = tmp_path / "tables"
    assert run("evaluate", "--model", out, "--images", spec(place), "--out", tables, "--quiet") == 0
    assert json.loads((tables / "evaluation.json").read_text())["miou"] == pytest.approx(rows[-1]["miou"])


def test_protocols_of_fewer_classes(place, tmp_path, capsys):
    given = ("evaluate", "--model", place / "model", "--images", spec(place), "--size", 32, "--quiet")
    results = {}
    for count in (19, 16, 13):
        assert run(*given, "--classes-subset", count, "--out", tmp_path / f"{count}.json") == 0
        results[count] = json.loads((tmp_path / f"{count}.json").read_text())
    whole = results[19]["per_class_iou"]
    without = {16: {"terrain", "truck", "train"}, 13: {"terrain", "truck", "train", "wall", "fence", "pole"}}
    assert results[19]["miou"] == pytest.approx(np.nanmean(list(map(float, whole.values()))), abs=1e-3)
    for count, left_out in without.items():
        assert results[count]["per_class_iou"] == whole
        kept = [iou for name, iou in whole.items() if name not in left_out]
        assert len(kept) == len(results[count]["mean_over"]) == count
        assert results[count]["miou"] == pytest.approx(np.mean(kept), abs=1e-3)
    capsys.readouterr()
    world = worlds.write_world(tmp_path / "world", "target", count=1)
    model = save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), tmp_path / "three")
    other = ("--model", model, "--images", world / "images", "--labels", world / "labels")
    refused(capsys, run("evaluate", *other, "--classes-subset", 13), "--classes-subset", "sidewalk")


def test_evaluation_tables_and_options(place, tmp_path, capsys):
    given = ("evaluate", "--model", place / "model", "--images", spec(place), "--quiet", "--out", tmp_path / "tables")
    options = ("--boundary", "true", "--flip", "true", "--scales", "0.5,1", "--tile", 64, "--classes-subset", 16)
    assert run(*given, *options, "--size", 32) == 0
    assert "edges" in capsys.readouterr().out
    result = json.loads((tmp_path / "tables/evaluation.json").read_text())
    assert result["images"] == 4
    assert list(result["boundary"]["per_class_iou"]) == list(CITYSCAPES.names)
    lines = [line.split("|")[1:-1] for line in (tmp_path / "tables/evaluation.md").read_text().splitlines()[:22]]
    assert [cell.strip() for cell in lines[0]] == ["class", "IoU %", "boundary IoU %"]
    read = {line[0].strip(): line[1].strip() for line in lines[2:]}
    assert float(read["road"]) == pytest.approx(result["per_class_iou"]["road"], abs=0.006)
    assert float(read["mIoU"]) == pytest.approx(result["miou"], abs=0.006)
    assert "truck *" in read
    tex = (tmp_path / "tables/evaluation.tex").read_text()
    assert tex.count(r" \\") == 21
    assert r"IoU \%" in tex


def files_in(*folders):
    return sorted(path for folder in folders for path in folder.rglob("*"))


def test_a_dry_run_says_time_and_memory_and_leaves_nothing(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    before = files_in(place, tmp_path)
    given = ("adapt", "--recipe", "gta5-cityscapes", "--model", place / "model", "--images", spec(place, "train"))
    capsys.readouterr()
    assert run(*given, *SMALL, "--dry-run", "--out", tmp_path / "run", "--eval-images", spec(place)) == 0
    assert files_in(place, tmp_path) == before
    printed = capsys.readouterr().out
    assert "4 target images of up to 48×32" in printed
    assert len(re.findall(r"^(?:align|selftrain|propagate) +40000 +[\d.]+ .* [\d.]+ [MG]iB$", printed, re.M)) == 3
    assert re.search(r"total: about [\d.]+ \w+, [\d.]+ [MG]iB \(computed\)", printed)
    refused(capsys, run(*given, *SMALL, "--dry-run", "--num-classes", 7), "19 classes", "7")
    refused(capsys, run(*given, *SMALL, "--dry-run", "--eval-images", spec(place, classes=13)), "19", "13")
    refused(capsys, run(*given[:-2], *SMALL, "--dry-run", "--images", tmp_path / "tmp"), "no images")
    refused(capsys, run(*given[:-2], *SMALL, "--dry-run"), "--images")
    assert files_in(place, tmp_path) == before


@pytest.fixture
def small(tmp_path):
    world = worlds.write_world(tmp_path / "w", "target", count=3, size=(128, 128))
    torch.manual_seed(0)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 8})
    return segmenter, open_images(world / "images"), make_fabric("cpu", "32")


def test_memory_is_weights_optimiser_and_what_autograd_saves(small):
    segmenter, *_ = small
    tensor = torch.zeros(10, 10, requires_grad=True)
    saved = dry._Saved()
    with saved.watching():
        once = (tensor * 2).exp()  # saves its result
        twice = (once * once).sum()  # saves the same memory again
    saved.next_step()
    assert twice.grad_fn is not None
    assert saved.peak == 400
    weights = sum(t.numel() * t.element_size() for t in segmenter.state_dict().values())
    parameters = sum(p.numel() * 4 for p in segmenter.parameters())

    def fixed(**options):
        recipe = recipe_from({"stages": ["selftrain"], "batch_size": 1, "crop": [64, 64], **options})
        return dry._fixed_bytes(segmenter, dry.find_stage("selftrain")(recipe.options_of("selftrain")), recipe)

    assert fixed(optimizer="sgd", ema_decay=0) == weights + 2 * parameters
    assert fixed(optimizer="adamw", ema_decay=0.9) == 2 * weights + 3 * parameters


def test_costs_scale_with_pixels_and_weights_stay(small):
    segmenter, images, fabric = small
    recipe = recipe_from({"stages": ["align"], "batch_size": 2, "crop": [128, 128], "ema_decay": 0, "optimizer": "sgd"})
    before = {k: v.clone() for k, v in segmenter.state_dict().items() if "running" not in k and "tracked" not in k}
    whole = dry.stage_cost(recipe, "align", segmenter, images, fabric)
    half = dry.stage_cost(recipe, "align", segmenter, images, fabric, shrink=0.5)
    assert half.memory == pytest.approx(whole.memory, rel=0.02)
    double = dry.stage_cost(recipe_from({**recipe.to_dict(), "batch_size": 4}), "align", segmenter, images, fabric)
    fixed = dry._fixed_bytes(segmenter, dry.find_stage("align")(recipe.options_of("align")), recipe)
    assert double.memory - fixed == pytest.approx(2 * (whole.memory - fixed), rel=0.01)
    after = segmenter.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)
    assert not whole.measured
    assert whole.steps == 60
    assert min(whole.step_seconds, whole.prepare_seconds) > 0


def test_a_slow_device_sees_smaller_images(small, monkeypatch):
    segmenter, images, fabric = small
    recipe = recipe_from({"stages": ["align"], "crop": [128, 128]})
    monkeypatch.setattr(dry, "_BUDGET", 1e6)
    assert dry.affordable(recipe, segmenter, images, fabric) == 1
    monkeypatch.setattr(dry, "_BUDGET", 1e-6)
    assert 0 < dry.affordable(recipe, segmenter, images, fabric) < 0.1
    assert dry._shrunk((512, 1024), 0.1) == (64, 96)
    assert dry._shrunk((48, 1024), 0.5) == (48, 512)
