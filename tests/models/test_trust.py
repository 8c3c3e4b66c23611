"""Code of strangers never runs: not from a model folder, a recipe, a suite file or a hub repository."""

import json
import sys

import pytest
import torch
import yaml
from networks import USER_CODE, hf_segformer, logits, of_das3

import das3
import worlds
from das3.benchmark.suite_file import load_suite
from das3.cli import main
from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter
from das3.models.trust import names_code

OWNED = """
from pathlib import Path
Path("owned").touch()

def build(*args, **kwargs):
    Path("owned").touch()
"""
EVIL = {
    "system": ("os:system", {"command": "touch owned"}),
    "getoutput": ("subprocess:getoutput", {"cmd": "touch owned"}),
    "own file": ("evil:build", {}),
    "in a package": ("sub.evil:build", {}),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with images, a module of the user's and one of a stranger's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_models.py").write_text(USER_CODE)
    (tmp_path / "evil.py").write_text(OWNED)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/evil.py").write_text(OWNED)
    worlds.write_world(tmp_path / "world", "target", count=2)
    yield tmp_path
    for name in ("my_models", "evil", "sub", "sub.evil"):
        sys.modules.pop(name, None)


def run(*arguments):
    return main([str(a) for a in arguments])


def adapt(*arguments):
    given = ("--images", "world/images", "--device", "cpu", "--quiet", "--stages", "selftrain", "--selftrain.steps=1")
    return run("adapt", *given, "--guard=off", "--report=false", *arguments)


def refused(capsys, status, *words):
    error = capsys.readouterr().err.strip()
    assert status == 2, error
    assert error.count("\n") == 0, error
    for word in words:
        assert str(word) in error, error


def evil_folder(folder, spec, args):
    save_segmenter(of_das3("small", width=8)(), folder)
    card = json.loads((folder / "das3.json").read_text())
    (folder / "das3.json").write_text(json.dumps({**card, "model": spec, "model_args": args}))
    (folder / "evil.py").write_text(OWNED)
    return folder


@pytest.mark.parametrize("case", EVIL)
def test_a_model_folder_runs_no_code(case, here, capsys):
    spec, args = EVIL[case]
    folder = evil_folder(here / "m", spec, args)
    capsys.readouterr()
    refused(capsys, adapt("--model", folder, "--out", "run"), folder, spec, "--trust")
    if case == "system":
        refused(capsys, adapt("--model", folder, "--out", "run", "--dry-run"), folder, spec, "--trust")
        refused(capsys, run("predict", "--model", "m", "--images", "world/images", "--out", "out"), "m", spec)
        labels = ("--images", "world/images", "--labels", "world/labels")
        refused(capsys, run("evaluate", "--model", "m", *labels), "m", spec)
    with pytest.raises(ModelError, match="trust=True"):
        das3.adapt("m", "world/images", out="run")
    with pytest.raises(ModelError, match="trust=True"):
        load_segmenter(folder)
    assert not (here / "owned").exists()


@pytest.mark.parametrize("case", EVIL)
def test_a_recipe_runs_no_code(case, here, capsys):
    spec, args = EVIL[case]
    (here / "r.yaml").write_text(yaml.safe_dump({"model": spec, "model_args": args, "images": "world/images"}))
    refused(capsys, adapt("--recipe", "r.yaml", "--out", "run"), "r.yaml", spec, "--trust")
    assert not (here / "owned").exists()
    labels = ("--labels", "world/labels", "--classes", "world/classes.json")
    refused(
        capsys, run("train-source", "--out", "run", "--model", "das3:small", *labels, "--recipe", "r.yaml"), "recipe"
    )
    with pytest.raises(ModelError, match=r"r\.yaml.*trust=True"):
        das3.adapt(recipe="r.yaml", out="run")
    with pytest.raises(ModelError, match=r"r\.yaml.*trust=True"):
        das3.adapt(recipe=here / "r.yaml", out="run", images="world/images")
    assert not (here / "owned").exists()


def test_no_recipe_gets_around_that(here, capsys):
    spec, args = EVIL["own file"]
    (here / "r.yaml").write_text(yaml.safe_dump({"model": spec, "model_args": args, "images": "world/images"}))
    refused(capsys, adapt("--recipe=r.yaml", "--out=run", "--dry-run"), "r.yaml", spec, "--trust")
    refused(capsys, adapt("--recipe=r.yaml", "--out=run", "--classifier", spec), "r.yaml", spec, "--trust")
    (here / "harmless.yaml").write_text("seed: 1\n")
    twice = ("--recipe", "harmless.yaml", "--recipe", "r.yaml")
    refused(capsys, adapt(*twice, "--out", "run"), "--recipe is given twice")
    (here / "trusting.yaml").write_text(yaml.safe_dump({"model": spec, "model_args": args, "trust": True}))
    refused(capsys, adapt("--recipe", "trusting.yaml", "--out", "run"), "trust")
    assert not (here / "owned").exists()


def test_a_suite_file_runs_no_code(here, capsys):
    parts = {"images": "world/images", "labels": "world/labels", "classes": "world/classes.json"}
    suite = {"source": parts, "target": parts, "test": parts}
    for more in ({"network": "evil:build"}, {"source_model": "os:system"}, {"network": "evil:build", "trust": True}):
        (here / "s.yaml").write_text(yaml.safe_dump({**suite, **more}))
        refused(capsys, run("benchmark", "--suite", "s.yaml", "--out", "bench", "--seeds", 1), "s.yaml", "trust")
    assert not (here / "owned").exists()
    (here / "s.yaml").write_text(yaml.safe_dump({**suite, "network": "my_models:build"}))
    assert load_suite(here / "s.yaml", trust=True).network == "my_models:build"


def test_a_hugging_face_folder_runs_no_code_and_asks_nothing(here, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    hf_segformer().save_pretrained(here / "hf")
    config = json.loads((here / "hf/config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForSemanticSegmentation": "evil.build"}
    (here / "hf/evil.py").write_text(OWNED)
    (here / "hf/config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto}))
    capsys.readouterr()
    refused(capsys, adapt("--model", "hf", "--out", "run"), "hf", "code in the folder")
    refused(capsys, adapt("--model", "hf", "--out", "run", "--trust"), "hf", "code in the folder")
    assert not (here / "owned").exists()
    (here / "hf/config.json").write_text(json.dumps({**config, "auto_map": auto}))  # transformers knows the network
    assert load_segmenter("hf").num_classes == 4
    assert not (here / "owned").exists()


def test_own_code_is_run_where_the_user_names_it(here, capsys):
    assert adapt("--model", "my_models:build", "--out", "run") == 0
    refused(capsys, run("predict", "--model", "run", "--images", "world/images", "--out", "out"), "my_models:build")
    assert run("predict", "--model", "run", "--images", "world/images", "--out", "out", "--trust") == 0
    named = ("--model", "my_models:build", "--weights", "run")
    assert run("predict", *named, "--images", "world/images", "--out", "again") == 0
    first, second = (sorted(here.glob(f"{f}/labels/*.png")) for f in ("out", "again"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    images = torch.rand(1, 3, 40, 40)
    again = load_segmenter("run", trust=True)
    assert torch.equal(logits(again, images), logits(load_segmenter("my_models:build", weights="run"), images))


def test_a_run_of_own_code_is_resumed_with_the_same_model_or_with_trust(here, capsys):
    assert adapt("--model", "my_models:build", "--out", "run") == 0
    assert adapt("--model", "my_models:build", "--out", "run", "--resume") == 0
    again = ("--recipe", "run/recipe.yaml", "--out", "run", "--resume")
    refused(capsys, adapt(*again), "run/recipe.yaml", "my_models:build", "--trust")
    assert adapt(*again, "--model=my_models:build") == 0
    assert adapt(*again, "--trust") == 0
    assert das3.adapt(recipe="run/recipe.yaml", out="run", resume=True, quiet=True, trust=True)


def test_what_is_code(here):
    for spec in ("os:system", "my_pkg.models:build", "torch.hub:load", "das3.models.small:small"):
        assert names_code(spec)
    for spec in ("das3:small", "smp:Unet", "torchvision:fcn_resnet50", "a/b", "folder", "", None, 3):
        assert not names_code(spec)
