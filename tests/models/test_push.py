"""`das3 push` against a server on this machine: what reaches the hub, what never does, how it refuses."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from hub_server import serve
from networks import hf_segformer, of_das3
from PIL import Image

import worlds
from das3.cli import main
from das3.hub import stage_run
from das3.hub.private import without_paths
from das3.models import load_segmenter, save_segmenter
from das3.recipe import Recipe

hub = pytest.importorskip("huggingface_hub")

SECRET = "/home/somebody/customer"
EVIL = "<b>|`x`"


def candidate(name, kind, rejected=None):
    return {
        **{"name": name, "kind": kind, "signals": {"entropy": 0.25}, "consistency": 0.5 + 0.1 * (kind == "stage")},
        **{"share_shift": 0.04, "sure_agreement": 0.97, "ensemble_agreement": 0.9, "rejected": rejected},
    }


VERDICT = {
    **{"chosen": "propagate", "changed": True, "confidence": "medium", "reason": "it keeps 97% of the labels"},
    "candidates": [
        candidate("incoming", "incoming"),
        candidate("50% of propagate", "blend", "it hardly predicts box any more"),
        candidate("propagate", "stage"),
    ],
}


def write_run(folder, network=None, **summary):
    """A finished run as das3 leaves it, with all that is nobody's business."""
    torch.manual_seed(0)
    segmenter = load_segmenter((network or of_das3("small", width=8))())
    segmenter.class_names = ("sky", "road", EVIL, "box")[: segmenter.num_classes]
    save_segmenter(segmenter, folder / "model")
    values = {**Recipe().to_dict(), "model": f"{SECRET}/model", "images": f"{SECRET}/images", "out": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**values, "batch_size": 3}))
    rows = [{"name": "source", "miou": 40.0}, {"name": "propagate", "miou": 44.0}]
    said = {"stages": rows, "verdict": VERDICT, "miou": 44.0, "skipped_images": [], "das3": "0.1.0", **summary}
    (folder / "summary.json").write_text(json.dumps(said))
    sets = {"images": {f"customer-{i}": "0" for i in range(7)}, "evaluation images": {"customer-0": "0"}}
    (folder / "inputs.json").write_text(json.dumps({"here": SECRET, "sets": sets}))
    for place in (folder, folder / "model", folder / "work/report/incoming"):
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(place / "customer-0.png")
    (folder / "report.html").write_text("pictures of customer-0")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The hub, for this process; the token may write."""
    with serve(tmp_path / "hub") as found:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{found.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "write")
        for name, value in (("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False)):
            monkeypatch.setattr(hub.constants, name, value)
        hub.utils.disable_progress_bars()
        yield found


def assert_holds_nothing_private(folder):
    """No image, no name of one, no place on a machine."""
    for path in folder.rglob("*"):
        assert path.suffix in (".md", ".json", ".safetensors"), path
        for secret in ("somebody", "customer", str(folder.parent)):
            assert secret.encode() not in path.read_bytes(), path


def test_weights_settings_and_a_card_reach_the_hub_and_nothing_else(run, server, capsys):
    assert main(["push", str(run), "me/adapted", "--private", "--license", "apache-2.0"]) == 0
    said = capsys.readouterr().out
    assert f"model:  http://127.0.0.1:{server.server_port}/me/adapted" in said
    assert "licence is to be filled in" not in said
    there = server.root / "me/adapted"
    assert sorted(p.name for p in there.iterdir()) == ["README.md", "das3.json", "model.safetensors"]
    assert (there / "model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()
    assert server.private == {"me/adapted"}
    assert_holds_nothing_private(there)
    assert not list(run.glob(".hub.*"))
    assert [*load_segmenter(there).class_names] == ["sky", "road", EVIL, "box"]
    assert main(["push", str(run), "me/adapted", "--private"]) == 0  # again
    assert "licence is to be filled in" in capsys.readouterr().out


def test_the_card_says_where_the_model_comes_from_and_what_is_known_of_it(run, tmp_path):
    stage_run(run, "me/adapted", tmp_path / "out")
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        **{"license": "unknown", "library_name": "das3", "pipeline_tag": "image-segmentation"},
        "tags": ["das3", "semantic-segmentation", "domain-adaptation"],
    }
    for said in (
        "The incoming model was `model`. It has 4 classes: sky, road, \\<b\\>\\|\\`x\\`, box.",
        "das3 predict --model me/adapted --images DIR",
        "- target images, unlabelled: 7\n- labelled images, for measuring alone: 1\n",
        "Stages: align, selftrain, propagate. Seed: 0.",
        "| `batch_size` | 3 | 8 |\n\n",  # the only option that differs and is nobody's path
        "mIoU 40.0 % before, 44.0 % after",
        "it is no worse than the model that came in (confidence: medium). it keeps 97% of the labels.",
        "| agreement with itself under mirroring, light and scale (mean IoU) | 0.500 | 0.600 |",
        "| labels kept of those that the untrained model was sure of | 97.0\u00a0% | 97.0\u00a0% |",
        "- 50% of propagate: it hardly predicts box any more",
        "## Limits",
        "TO BE FILLED IN by the publisher",
        "das3 0.1.0",
    ):
        assert said in text, said


def test_a_worse_or_unchanged_model_is_not_praised(tmp_path):
    worse = write_run(tmp_path / "a", miou=30.0)
    stage_run(worse, "me/a", tmp_path / "out")
    assert "**worse** than the model that came in" in (tmp_path / "out/README.md").read_text()
    kept = {"chosen": "incoming", "changed": False, "confidence": "high", "reason": "handed back as it came in"}
    same = write_run(tmp_path / "b", verdict=kept, stages=[], miou=None)
    stage_run(same, "me/b", tmp_path / "out2")
    text = (tmp_path / "out2/README.md").read_text()
    assert "No labels were given, so nothing here is measured" in text
    assert "nothing better was found (confidence: high). handed back as it came in." in text


def test_a_network_of_transformers_is_named_so_and_paths_in_its_settings_are_cut(tmp_path):
    run = write_run(tmp_path / "run", hf_segformer)
    config = run / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": f"{SECRET}/segformer"}))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"model": "nvidia/segformer"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["push", str(run), "me/x", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["_name_or_path"] == "segformer"
    assert_holds_nothing_private(tmp_path / "out")
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert yaml.safe_load(front)["base_model"] == "nvidia/segformer"
    assert "[nvidia/segformer](https://huggingface.co/nvidia/segformer)" in text
    (run / "model/vocab.json").write_text(json.dumps({"token": f"{SECRET}/images"}))
    with pytest.raises(Exception, match=r"vocab\.json holds a path of this machine"):
        stage_run(run, "me/x", tmp_path / "again")


def test_paths_are_cut_and_names_of_classes_are_not():
    given = {"a": "/x/y/z", "b": ["C:\\x\\y", "x/y", "~/m.pt", "/"], "id2label": {"0": "/x/y"}, "n": 1}
    assert without_paths(given) == {"a": "z", "b": ["y", "x/y", "m.pt", "/"], "id2label": {"0": "/x/y"}, "n": 1}


def test_a_dry_run_asks_the_hub_nothing_and_can_be_repeated(run, server, capsys):
    for _ in range(2):
        assert main(["push", str(run), "me/adapted", "--dry-run"]) == 0
        assert "nothing was pushed" in capsys.readouterr().out
    assert sorted(p.name for p in (run / "hub").iterdir()) == ["README.md", "das3.json", "model.safetensors"]
    assert server.asked == []
    shutil.rmtree(run / "hub")


def refused(capsys, *arguments):
    assert main(["push", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_refusals_are_one_line_with_the_way_on(run, server, tmp_path, capsys, monkeypatch):
    assert "owner/name" in refused(capsys, run, "adapted")
    assert "holds no das3 run" in refused(capsys, tmp_path, "me/adapted")
    assert "not empty" in refused(capsys, run, "me/adapted", "--dry-run", "--out", run)
    assert "--dry-run" in refused(capsys, run, "me/adapted", "--out", run)
    monkeypatch.setenv("HF_TOKEN", "nobody")
    assert "hf auth login" in refused(capsys, run, "me/adapted")
    monkeypatch.setenv("HF_TOKEN", "read")
    assert "may not write" in refused(capsys, run, "me/adapted")
    monkeypatch.setenv("HF_TOKEN", "write")
    server.repositories.append("me/public")
    assert "can be seen by everybody" in refused(capsys, run, "me/public", "--private")
    assert not server.large
    (run / "summary.json").rename(run / "away")
    assert "not finished" in refused(capsys, run, "me/adapted")
    (run / "away").rename(run / "summary.json")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
    assert "not pushed (ConnectError" in refused(capsys, run, "me/adapted")


def test_without_the_client_one_line_names_the_extra(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'das3[hub]'" in refused(capsys, run, "me/adapted")


@pytest.mark.slow
def test_what_was_pushed_predicts_as_the_run_does(run, tmp_path):
    worlds.write_world(tmp_path / "world", "target", count=1)
    with serve(tmp_path / "hub") as server:
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "write", "HF_HOME": str(tmp_path / "cache")}

        def das3(*arguments):
            command = [sys.executable, "-m", "das3", *map(str, arguments)]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

        das3("push", run, "me/adapted")
        for name, model in (("here", run), ("there", "me/adapted")):
            das3("predict", "--model", model, "--images", tmp_path / "world/images", "--out", tmp_path / name)
    one, other = (np.array(Image.open(tmp_path / name / "labels/0.png")) for name in ("here", "there"))
    np.testing.assert_array_equal(one, other)
