"""Recipes and run folders of format 1 are read; everywhere else an old name is refused with the new one."""

import shutil
from functools import cache

import pytest
import torch
import yaml
from torch import nn

import worlds
from das3.api import adapt
from das3.benchmark.grid import run_benchmark
from das3.cli import main
from das3.cli.arguments import prepare
from das3.cli.command import command_parser
from das3.errors import RecipeError
from das3.models import load_segmenter, save_segmenter
from das3.recipe import Recipe, load_recipe, recipe_from, recipe_of
from das3.registry import stage_types
from das3.training import phases
from das3.training.checkpoints import load_checkpoint, save_checkpoint
from das3.training.supervised import SourceRecipe, train_source
from small_benchmark import write_suite

TRANSFORMS = {"tones": ("color_transforms", False), "zooms": ("upscale", False)}
SELFTRAIN = {
    "norm": ("bn_mode", "target"),
    "share": ("top_fraction", 0.25),
    "positive": ("positive_weight", 0.5),
    "negative": ("negative_weight", 0.25),
    "balance": ("class_balance", 0.125),
    "layout": ("spatial_prior_weight", 0.75),
    "pairwise": ("pairwise_weight", 3.0),
    "keep": ("source_weight", 0.0),
    **TRANSFORMS,
}
ALIGN = {
    "norm": ("bn_mode", "frozen"),
    "a": ("entropy_weight", 2.0),
    "diversity": ("diversity_weight", 0.5),
    "balance": ("class_balance", 0.25),
    "tones": ("color_transforms", False),
}
RENAMED = {
    "align": ALIGN,
    "atp-align": ALIGN,
    "selftrain": SELFTRAIN,
    "atp-selftrain": SELFTRAIN,
    "propagate": {
        "norm": ("bn_mode", "target"),
        "balance": ("class_balance", 0.125),
        "layout": ("spatial_prior_weight", 0.25),
        "pairwise": ("pairwise_weight", 3.0),
        "keep": ("source_weight", 0.125),
        **TRANSFORMS,
    },
    "bn": {"blend": ("target_weight", 0.5)},
    "cbst": {"share": ("top_fraction", 0.5)},
    "crst": {"share": ("top_fraction", 0.5), "weight": ("regularizer_weight", 0.5)},
    "urma": {"entropy": ("entropy_loss_weight", 0.5), "uncertainty": ("uncertainty_weight", 0.5)},
    "ld": {"entropy": ("entropy_loss_weight", 0.5), "negative": ("negative_weight", 0.5)},
    "hcl": {"contrast": ("contrast_weight", 0.25)},
    "mean-teacher": {"keep": ("teacher_decay", 0.5)},
    "sfda": {"norm": ("bn_mode", "frozen")},
    "shot-im": {"norm": ("bn_mode", "frozen")},
}
"""Stage → old name → new name and a value."""


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def with_names(stage, place):
    """Options of a stage under their old (place 0) or new (1) names."""
    return {(old, new)[place]: value for old, (new, value) in RENAMED[stage].items()}


def parsed(*arguments):
    """The recipe that `das3 adapt` would run."""
    return recipe_of(command_line().parse_args(prepare(command_line(), [*map(str, arguments)])))


@cache
def command_line():
    """It takes a while to be built."""
    return command_parser("adapt")[0]


@pytest.mark.parametrize("stage", RENAMED)
def test_an_old_recipe_file_says_what_it_always_said(tmp_path, stage):
    key = stage.replace("-", "_")
    old = write(tmp_path / "old.yaml", stages=[stage], average=0.5, **{key: with_names(stage, 0)})
    wanted = recipe_from({"stages": [stage], "ema_decay": 0.5, key: with_names(stage, 1)})
    assert recipe_from(load_recipe(old)) == wanted
    assert parsed("--recipe", old) == wanted
    if stage != "sfda":  # which has one value of this option
        assert wanted.options_of(stage) != stage_types()[stage].Options()


@pytest.mark.parametrize("stage", RENAMED)
def test_old_names_are_refused_wherever_no_file_is_read(tmp_path, stage):
    key = stage.replace("-", "_")
    for old, (new, value) in RENAMED[stage].items():
        said = rf"the option {key}\.{old} is called {key}\.{new} now"
        with pytest.raises(RecipeError, match=said):
            adapt(nn.Conv2d(3, 3, 1), tmp_path, stages=[stage], **{key: {old: value}})
        with pytest.raises(RecipeError, match=said):
            adapt(nn.Conv2d(3, 3, 1), tmp_path, recipe={"stages": [stage], key: {old: value}})
        dashed = f"--{stage}.{new.replace('_', '-')}"
        for given in ([f"--{stage}.{old}", str(value)], [f"--{stage}.{old}={value}"]):
            with pytest.raises(RecipeError, match=f"--{stage}.{old} is called {dashed} now"):
                prepare(command_line(), given)


def assert_refused(capsys, arguments, *words):
    """The command ends with 2 and one line that holds the words."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error, error
    assert all(str(word) in error for word in words), error


def test_old_names_of_the_loop_are_refused_too(tmp_path, capsys):
    assert_refused(
        capsys, ["adapt", "--selftrain.share", "0.5"], "--selftrain.share is called --selftrain.top-fraction"
    )
    assert_refused(capsys, ["adapt", "--average=0.5"], "--average is called --ema-decay now")
    assert_refused(capsys, ["train-source", "--average=0.5"], "--average is called --ema-decay now")
    assert_refused(capsys, ["train-source", "--norm", "frozen"], "--norm is called --bn-mode now")
    with pytest.raises(RecipeError, match="the option average is called ema_decay now"):
        adapt(nn.Conv2d(3, 3, 1), tmp_path, average=0.5)
    suite = write_suite(tmp_path / "suite", source_options={"steps": 2, "norm": "frozen"})
    with pytest.raises(RecipeError, match="tiny, source_options: the option norm is called bn_mode now"):
        run_benchmark(str(suite), tmp_path / "out", methods=["bn"], seeds=[0])
    suite = write_suite(tmp_path / "other", options={"average": 0.5})
    with pytest.raises(RecipeError, match="the option average is called ema_decay now"):
        run_benchmark(str(suite), tmp_path / "out", methods=["bn"], seeds=[0])


def test_old_names_are_refused_in_a_file_of_the_current_format(tmp_path, capsys):
    for part in ({"average": 0.5}, {"selftrain": {"share": 0.25}}):
        file = write(tmp_path / "new.yaml", format=2, **part)
        assert_refused(capsys, ["adapt", "--recipe", file], "new.yaml", "is called")
    file = write(tmp_path / "new.yaml", format=2, selftrain={"top_fraction": 0.25})
    assert recipe_from(load_recipe(file)).options_of("selftrain").top_fraction == 0.25


def test_an_option_under_both_its_names_is_refused(tmp_path, capsys):
    file = write(tmp_path / "both.yaml", selftrain={"share": 0.25, "top_fraction": 0.5})
    assert_refused(capsys, ["adapt", "--recipe", file], "both.yaml", "share", "top_fraction")


GONE = {
    "align": {"memory": (0.0, 0.5)},
    "selftrain": {"smoothing": (0.0, 0.1), "negative_where": ("all", "unlabelled"), "rounds": (1, 2)},
    "propagate": {"smoothing": (0.0, 0.1), "rounds": (1, 2)},
}
"""Stage → option that is gone → a value with which it did nothing, and one with which it did something."""


def test_options_that_are_gone_may_be_off_and_not_on(tmp_path, capsys):
    for stage, options in GONE.items():
        off = {name: value for name, (value, _) in options.items()}
        assert recipe_from(load_recipe(write(tmp_path / "off.yaml", **{stage: off}))) == Recipe()
        for name, (_, value) in options.items():
            file = write(tmp_path / "on.yaml", **{stage: {**off, name: value}})
            assert_refused(capsys, ["adapt", "--recipe", file], "on.yaml", f"{stage}.{name} is gone", "take it out")
    assert recipe_from(load_recipe(write(tmp_path / "cbst.yaml", cbst={"rounds": 2}))).options_of("cbst").rounds == 2
    for given in ({"stages": ["match", "align"]}, {"match": {"steps": 3}}):
        file = write(tmp_path / "match.yaml", **given)
        assert_refused(capsys, ["adapt", "--recipe", file], "match.yaml", "match is gone")


@pytest.mark.parametrize("version", [3, "two"])
def test_a_newer_format_is_refused(tmp_path, capsys, version):
    file = write(tmp_path / "newer.yaml", format=version, seed=3)
    assert_refused(capsys, ["adapt", "--recipe", file], "newer.yaml", repr(version), "newer das3")


def test_what_is_written_says_its_format_and_can_be_read_back(tmp_path):
    for name in ("das3-plus", "gta5-cityscapes"):
        recipe = recipe_from(load_recipe(name))
        (tmp_path / "r.yaml").write_text(recipe.to_yaml())
        assert yaml.safe_load((tmp_path / "r.yaml").read_text())["format"] == 2
        assert recipe_from(load_recipe(tmp_path / "r.yaml")) == recipe


def test_options_win_over_the_recipe_wherever_they_stand():
    on_top = ("--ema-decay", 0.5, "--stages=[align,selftrain]", "--selftrain.top-fraction", 0.75)
    values = load_recipe("gta5-cityscapes")
    assert values["selftrain"].keys() > {"top_fraction"}
    assert {"ema_decay", "selftrain"} <= values.keys()
    wanted = recipe_from(
        {
            **values,
            "ema_decay": 0.5,
            "stages": ["align", "selftrain"],
            "selftrain": {**values["selftrain"], "top_fraction": 0.75},
        }
    )
    assert parsed("--recipe", "gta5-cityscapes", *on_top) == wanted
    assert parsed(*on_top, "--recipe", "gta5-cityscapes") == wanted
    assert parsed(*on_top[:2], "--recipe=gta5-cityscapes", *on_top[2:]) == wanted
    assert parsed("--recipe", "gta5-cityscapes") == recipe_from(values)


def test_a_recipe_of_every_kind_of_value_is_read_by_the_command_line(tmp_path):
    given = Recipe(model="m", model_args={"width": 8}, class_names=("sky", "röad"), size=(24, 36), mean=(0.5, 0.5, 0.5))
    (tmp_path / "all.yaml").write_text(given.to_yaml())
    assert parsed("--recipe", tmp_path / "all.yaml", "--seed", 3).to_dict() == {**given.to_dict(), "seed": 3}


@pytest.fixture(scope="module")
def model_and_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    world = worlds.write_world(root / "world", "target", count=4, size=(24, 32))
    torch.manual_seed(0)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 8})
    return save_segmenter(segmenter, root / "model"), world / "images"


LOOP = {"batch_size": 2, "checkpoint_every": 2, "log_every": 1, "device": "cpu"}


def test_the_command_line_adapts_by_an_old_recipe_file(model_and_images, tmp_path):
    model, images = model_and_images
    file = write(
        tmp_path / "old.yaml",
        **{**LOOP, "stages": ["align", "selftrain"], "average": 0.5},
        align={"steps": 2, "a": 2.0, "memory": 0.0},
        selftrain={"steps": 2, "share": 0.25, "keep": 0.0, "rounds": 1},
    )
    given = ["adapt", "--recipe", str(file), "--model", str(model), "--images", str(images), "--quiet"]
    assert main([*given, "--selftrain.source-weight=0.5", "--out", str(tmp_path / "run")]) == 0
    saved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert (saved["format"], saved["ema_decay"], saved["align"]["entropy_weight"]) == (2, 0.5, 2.0)
    assert (saved["selftrain"]["top_fraction"], saved["selftrain"]["source_weight"]) == (0.25, 0.5)
    assert not {"average", "memory", "rounds"} & (saved.keys() | saved["align"].keys() | saved["selftrain"].keys())


class Killed(Exception):
    """Stands for a kill."""


def kill_in(patch, phase):
    """End the run after the first checkpoint within a phase."""

    def save_then_end(path, state):
        save_checkpoint(path, state)
        if state.get("phase") == phase and state.get("step"):
            raise Killed

    patch.setattr(phases, "save_checkpoint", save_then_end)


def make_old(folder):
    """Turn a run folder into one of format 1."""
    saved = yaml.safe_load((folder / "recipe.yaml").read_text())
    del saved["format"]
    saved["average"] = saved.pop("ema_decay")
    for stage, options in GONE.items():
        if stage in saved:
            now = {new: old for old, (new, _) in RENAMED[stage].items()}
            off = {name: value for name, (value, _) in options.items()}
            saved[stage] = {now.get(name, name): value for name, value in saved[stage].items()} | off
    write(folder / "recipe.yaml", **saved)
    file = folder / "checkpoints/last.pt"
    state = load_checkpoint(file)
    if "ema" in state:
        state["average"] = state.pop("ema")
        state["stage"] = {**state["stage"], "running": torch.zeros(3)}
    for row in state["rows"]:
        row["look"] = row.pop("input_transform")
    save_checkpoint(file, state)


@pytest.mark.parametrize("phase", [0, 1])
def test_an_old_run_folder_is_resumed_bit_equal(model_and_images, tmp_path, monkeypatch, phase):
    options = {
        **LOOP,
        "stages": ["align", "selftrain"],
        "align": {"steps": 3},
        "selftrain": {"steps": 3},
        "report": False,
        "quiet": True,
    }
    whole = adapt(*model_and_images, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        kill_in(patch, phase)
        with pytest.raises(Killed):
            adapt(*model_and_images, out=tmp_path / "old", **options)
    make_old(tmp_path / "old")
    assert "share" in (tmp_path / "old/recipe.yaml").read_text()
    assert {"average", "phase"} <= load_checkpoint(tmp_path / "old/checkpoints/last.pt").keys()
    with pytest.raises(RecipeError, match=r"was started with ema_decay=0\.97, not 0\.5"):
        adapt(*model_and_images, out=tmp_path / "old", resume=True, **{**options, "ema_decay": 0.5})
    resumed = adapt(*model_and_images, out=tmp_path / "old", resume=True, **options)
    wanted = whole.model.state_dict()
    assert all(torch.equal(wanted[key], value) for key, value in resumed.model.state_dict().items())
    rows = [{**row, "seconds": 0} for row in whole.metrics["stages"]]
    assert [{**row, "seconds": 0} for row in resumed.metrics["stages"]] == rows
    assert yaml.safe_load((tmp_path / "old/recipe.yaml").read_text())["format"] == 2


def test_an_old_run_folder_that_cannot_be_resumed_is_refused(model_and_images, tmp_path):
    options = {**LOOP, "stages": ["align"], "align": {"steps": 1}, "quiet": True}
    adapt(*model_and_images, out=tmp_path / "run", **options)
    file = tmp_path / "run/recipe.yaml"
    saved = yaml.safe_load(file.read_text())
    write(file, **{**saved, "format": 3})
    with pytest.raises(RecipeError, match=r"recipe\.yaml: recipes of format 3 need a newer das3"):
        adapt(*model_and_images, out=tmp_path / "run", resume=True, **options)
    write(file, **{**saved, "format": 1, "align": {**saved["align"], "memory": 0.5}})
    with pytest.raises(RecipeError, match=r"align\.memory is gone"):
        adapt(*model_and_images, out=tmp_path / "run", resume=True, **options)


def test_an_old_folder_of_a_source_training_is_resumed(tmp_path):
    world = worlds.write_world(tmp_path / "world", "source", count=4, size=(24, 32))
    recipe = SourceRecipe(
        images=str(world / "images"),
        labels=str(world / "labels"),
        model_args={"width": 8},
        out=str(tmp_path / "run"),
        **{**LOOP, "steps": 2, "ema_decay": 0.5},
    )
    train_source(recipe, quiet=True)
    shutil.rmtree(tmp_path / "run/model")
    file = tmp_path / "run/recipe.yaml"
    saved = yaml.safe_load(file.read_text())
    saved["average"], saved["norm"] = saved.pop("ema_decay"), saved.pop("bn_mode")
    write(file, **saved)
    train_source(recipe, resume=True, quiet=True)
    assert (tmp_path / "run/model").is_dir()
