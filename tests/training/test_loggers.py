"""Pictures and mIoU in TensorBoard, and the same through the clients of wandb and mlflow (stand-ins here)."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import das3
import worlds
from das3.cli import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.write_world(tmp_path_factory.mktemp("world"), "target", count=4)


def adapt(world, out, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    short = {"stages": ["selftrain"], "selftrain": {"steps": 4}, "guard": "off", "report": False, "log_every": 1}
    labelled = {"eval_images": str(world / "images"), "eval_labels": str(world / "labels")}
    return das3.adapt(model, world / "images", out=out, quiet=True, device="cpu", **short, **labelled, **more)


class Wandb:
    """Keeps what its run is given."""

    def __init__(self):
        self.logged, self.finished, self.Image = [], False, np.asarray

    def init(self, **settings):
        self.settings = settings
        return SimpleNamespace(log=self.logged.append, finish=lambda: setattr(self, "finished", True))


def test_tensorboard_and_wandb_get_miou_and_pictures(world, tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    result = adapt(world, tmp_path / "run", logger="wandb", measure_every=2)
    board = EventAccumulator(str(tmp_path / "run/tensorboard"), {"images": 0}).Reload()
    assert [e.step for e in board.Scalars("evaluation/mIoU")] == [0, 1]
    found = [e.value for e in board.Scalars("evaluation/mIoU")]
    assert found == pytest.approx([row["miou"] for row in result.metrics["stages"]], abs=1e-3)
    assert [e.step for e in board.Scalars("selftrain/miou")] == [2]
    assert board.Tags()["images"] == ["pictures/0-source", "pictures/1-selftrain"]
    before, after = (board.Images(f"pictures/{name}")[0] for name in ("0-source", "1-selftrain"))
    assert after.width > before.width > 3 * 64  # with pseudo labels, and without
    assert wandb.settings["config"]["selftrain"]["steps"] == 4
    assert {name for line in wandb.logged for name in line} >= {"evaluation/mIoU", "selftrain/lr", "pictures/0-source"}
    assert wandb.finished


def test_mlflow_gets_the_same(world, tmp_path, monkeypatch):
    calls = []
    names = ("start_run", "log_params", "log_metrics", "log_image", "end_run")
    client = {name: (lambda *a, name=name, **k: calls.append((name, a, k))) for name in names}
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**client))
    adapt(world, tmp_path / "run", logger="mlflow")
    assert [name for name, _, _ in calls if name not in ("log_metrics", "log_image")] == [names[0], names[1], names[4]]
    assert [k["artifact_file"] for name, _, k in calls if name == "log_image"] == [
        "pictures/0-source-0.png",
        "pictures/1-selftrain-1.png",
    ]


def test_a_client_that_is_not_installed_is_one_line(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = ["--model", "das3:small", "--num-classes", "3", "--images", world / "images", "--out", tmp_path / "run"]
    assert main(["adapt", *map(str, given), "--device", "cpu", "--quiet", "--logger", "wandb"]) == 2
    error = capsys.readouterr().err
    assert "pip install wandb" in error
    assert error.count("\n") == 1
