"""The code in the docs is run."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import worlds
from das3 import recipe
from das3.api import adapt
from das3.cli import main
from das3.models import load_segmenter, save_segmenter
from das3.recipes import old_names
from das3.registry import find_stage, stage_types
from das3.testing import check_stage

PAGE = Path(__file__).parents[1] / "docs" / "add_a_method.md"


def forget_stages():
    """What is installed is looked up once in a process."""
    for cached in (stage_types, recipe._recipe_parser, old_names._renamed):
        cached.cache_clear()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's package, as pip would install it."""
    text = PAGE.read_text()
    files = dict(re.findall(r"`(mine/\w+\.py)`.*?```python\n(.*?)```", text, re.S))
    assert list(files) == ["mine/mirror.py", "mine/labels.py"]
    for name, code in files.items():
        assert len(code.splitlines()) <= 50, name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    project = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.S)[1])["project"]
    entries = project["entry-points"]["das3.stages"]
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text("[das3.stages]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
    monkeypatch.syspath_prepend(tmp_path)
    forget_stages()
    yield list(entries)
    forget_stages()
    for name in [m for m in sys.modules if m == "mine" or m.startswith("mine.")]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 8})
    return save_segmenter(segmenter, tmp_path / "model")


def test_the_methods_of_the_page_adapt_a_model(mine, model, tmp_path):
    assert mine == ["mine", "mine-labels"]
    world = worlds.write_world(tmp_path / "world", "target", count=4)
    command = next(line.split() for line in PAGE.read_text().splitlines() if line.startswith("das3 adapt"))
    given = {"MODEL": str(model), "DIR": str(world / "images"), "runs/mine": str(tmp_path / "run")}
    quick = ["--mine.steps=2", "--mine-labels.steps=2", "--batch-size=2", "--device=cpu", "--quiet", "--report=false"]
    arguments = [given.get(a, a) for a in command[1:]]
    arguments[arguments.index("mine")] = "mine,mine-labels"
    assert main([*arguments, *quick]) == 0
    saved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert saved["stages"] == ["mine", "mine-labels"]
    assert saved["mine"]["weight"] == 0.5
    assert saved["mine_labels"]["steps"] == 2
    assert (tmp_path / "run/checkpoints/1-mine-labels.pt").exists()


def test_the_method_of_the_page_trains_what_it_says(mine, tmp_path):
    world = worlds.write_world(tmp_path / "world", "target", count=4)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    bare = {"guard": "off", "report": False, "device": "cpu", "quiet": True}
    result = adapt(network, world / "images", stages=["mine"], mine={"steps": 2}, **bare)
    assert torch.equal(result.model[2].weight, network[2].weight)
    assert not torch.equal(result.model[0].weight, network[0].weight)


@pytest.mark.parametrize("name", ["adapt", "predict"])
def test_the_options_that_the_page_of_science_images_names_are_there(name, capsys):
    text = (PAGE.parent / "science_images.md").read_text()
    with pytest.raises(SystemExit):
        main([name, "--help-all"])
    known = capsys.readouterr().out
    options = {option for option in re.findall(r"--[a-z][a-z-]+", text) if option not in ("--ids", "--eval-images")}
    assert {"--pixel-range", "--nodata", "--bands", "--rgb-bands", "--input-max", "--in-channels"} <= options
    assert all(option in known for option in options)


def test_the_page_s_command_for_four_bands_is_understood(tmp_path, capsys):
    text = (PAGE.parent / "science_images.md").read_text().replace("\\\n", " ")
    command = next(line.split() for line in text.splitlines() if "--mean" in line and line.startswith("das3"))
    assert (
        main([{"M": "das3:small", "DIR": str(tmp_path), "RUN": str(tmp_path / "run")}.get(a, a) for a in command[1:]])
        == 2
    )
    assert "no images found" in capsys.readouterr().err


def test_the_method_of_the_page_can_be_named_in_the_benchmark(mine, capsys):
    command = next(line.split() for line in PAGE.read_text().splitlines() if line.startswith("das3 benchmark"))
    methods = command[command.index("--methods") + 1].split(",")
    assert find_stage("mine").name == "mine"
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    known = re.search(r"any of: (.*?);", " ".join(capsys.readouterr().out.split()))[1].split(", ")
    assert "mine" in methods
    assert set(methods) <= set(known)


def test_the_option_of_the_page_has_a_range(mine, capsys):
    assert main(["adapt", "--stages=mine", "--mine.weight=-1", "--model=m", "--images=i", "--out=o"]) == 2
    assert "mine.weight=-1.0 is out of range" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "mine-labels"])
def test_the_methods_of_the_page_keep_the_rules(mine, name):
    assert "check_stage(Mirror)" in PAGE.read_text()
    check_stage(find_stage(name), processes=False)
