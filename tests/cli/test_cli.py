"""The command line as a user runs it, most of it in this process for speed."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import worlds
from das3.cli import main
from das3.models import load_segmenter

STEPS = [f"--{stage}.steps=2" for stage in ("align", "selftrain", "propagate")]
BARE = ("--guard=off", "--report=false", "--selftrain.color-transforms=false", "--selftrain.upscale=false")
"""Without what takes longer than two steps of a stage; for runs whose weights and settings alone are looked at."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    worlds.write_world(root / "source", "source")
    worlds.write_world(root / "target", "target", size=(48, 64))
    arguments = ["--images", root / "source/images", "--labels", root / "source/labels", "--out", root / "trained"]
    assert run("train-source", *arguments, "--steps", 20, "--model-args", '{"width": 8}', "--device", "cpu") == 0
    return root


def run(*arguments):
    return main([str(a) for a in arguments])


def adapt(world, out, *extra):
    given = ("--model", world / "trained", "--images", world / "target/images", "--out", out, "--device", "cpu")
    return run("adapt", *given, *STEPS, "--quiet", *extra)


def test_adapt_needs_nothing_but_model_images_and_out(world, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("adapt", "--model", world / "trained", "--images", world / "target/images", "--out", out, *STEPS) == 0
    assert {"recipe.yaml", "summary.json", "metrics.jsonl", "checkpoints", "model"} <= {p.name for p in out.iterdir()}
    summary = json.loads((out / "summary.json").read_text())
    assert [row["name"] for row in summary["stages"]] == ["source", "align", "selftrain", "propagate"]
    assert all(row["miou"] is None and row["per_class_iou"] is None for row in summary["stages"])
    assert summary["stages"][0]["input_transform"] is None
    assert all(isinstance(row["input_transform"], str) for row in summary["stages"][1:])
    assert summary["gap_closed"] is None
    assert summary["seed"] == 0
    assert "classifier" in capsys.readouterr().err


def test_evaluation_fills_the_summary_and_equals_the_evaluate_command(world, tmp_path, capsys):
    out = tmp_path / "run"
    labelled = ("--eval-images", world / "target/images", "--eval-labels", world / "target/labels")
    assert adapt(world, out, *labelled, "--report=false") == 0
    summary = json.loads((out / "summary.json").read_text())
    rows = summary["stages"]
    assert all(0 <= row["miou"] <= 100 for row in rows)
    assert list(rows[0]["per_class_iou"]) == ["sky", "road", "box"]
    given = ("--images", world / "target/images", "--labels", world / "target/labels", "--quiet")
    for model, said in ((world / "trained", rows[0]), (out, summary)):
        assert run("evaluate", "--model", model, *given, "--out", tmp_path / "e.json") == 0
        assert json.loads((tmp_path / "e.json").read_text())["miou"] == pytest.approx(said["miou"])


def test_recipe_file_command_line_and_saved_recipe(world, tmp_path):
    (tmp_path / "r.yaml").write_text("seed: 7\nbatch_size: 2\nselftrain: {top_fraction: 0.25, lr: 0.002}\n")
    out = tmp_path / "run"
    given = ("--batch-size", 3, "--selftrain.lr=0.003", "--recipe", tmp_path / "r.yaml", "--stages=selftrain", *BARE)
    assert adapt(world, out, *given) == 0
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (saved["seed"], saved["batch_size"]) == (7, 3)
    assert (saved["selftrain"]["top_fraction"], saved["selftrain"]["lr"], saved["selftrain"]["steps"]) == (
        0.25,
        0.003,
        2,
    )
    again = tmp_path / "again"
    assert run("adapt", "--recipe", out / "recipe.yaml", "--out", again, "--quiet") == 0
    first, second = (load_segmenter(f).model.state_dict() for f in (out, again))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_single_stage(world, tmp_path):
    assert adapt(world, tmp_path / "run", "--stages", "selftrain", *BARE) == 0
    assert (tmp_path / "run/checkpoints/0-selftrain.pt").exists()
    assert adapt(world, tmp_path / "two", "--stages", "selftrain,bn", *BARE) == 0


def test_stage_one_leaves_the_classifier_bit_equal(world, tmp_path):
    assert adapt(world, tmp_path / "run", "--stages", "align", "--align.lr=0.01", *BARE) == 0
    before, after = load_segmenter(world / "trained"), load_segmenter(tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(before.classifier_parameters(), after.classifier_parameters(), strict=True)
    )
    moved = zip(before.feature_parameters(), after.feature_parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_predict_writes_labels_at_the_images_size_and_keeps_what_is_there(world, tmp_path, capsys):
    given = ("predict", "--model", world / "trained", "--images", world / "target/images", "--out", tmp_path, "--quiet")
    assert run(*given, "--overlays=true") == 0
    label = np.asarray(Image.open(tmp_path / "labels/0.png"))
    assert label.shape == (48, 64)
    assert set(np.unique(label)) <= {0, 1, 2}
    assert Image.open(tmp_path / "overlays/0.png").mode == "RGB"
    table = tmp_path / "ids.json"
    table.write_text(json.dumps({"classes": [{"name": n, "id": i} for n, i in (("sky", 23), ("road", 7), ("box", 9))]}))
    own = (*given[:-2], tmp_path / "own", "--quiet", "--ids", table)
    assert run(*own) == 0
    assert (np.array([23, 7, 9])[label] == np.asarray(Image.open(tmp_path / "own/labels/0.png"))).all()
    (tmp_path / "labels/3.png").unlink()
    capsys.readouterr()
    assert run(*given) == 0
    assert "1 images labelled" in capsys.readouterr().out


def refused(capsys, status, *words):
    error = capsys.readouterr().err.strip()
    assert status == 2, error
    assert error.count("\n") == 0, error
    for word in words:
        assert str(word) in error, error


def test_bad_input_is_one_line_that_says_what_and_how(world, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    model, images = ("--model", world / "trained"), ("--images", world / "target/images")
    out = ("--out", tmp_path / "run", "--quiet")
    capsys.readouterr()
    refused(capsys, run("adapt", *model, "--images", tmp_path / "empty", *out), "no images found", tmp_path / "empty")
    refused(capsys, run("adapt", *model, "--images", tmp_path / "nowhere", *out), "nowhere")
    refused(capsys, run("adapt", *images, *out), "--model")
    refused(capsys, run("adapt", *model, *images, "--quiet"), "--out")
    refused(capsys, run("adapt", *model, *images, *out, "--num-classes", 7), "3 classes", "7")
    refused(capsys, run("adapt", *model, *images, *out, "--classifier", "head"), "head")
    refused(capsys, run("adapt", *model, *images, *out, "--stages", "align,magic"), "magic", "selftrain")
    refused(capsys, run("adapt", *model, *images, *out, "--selftrain.top-fraction", 2), "selftrain.top_fraction")
    refused(capsys, run("adapt", *model, *images, *out, "--batch-size", "many"), "batch-size", "many")
    refused(capsys, run("adapt", *model, *images, *out, "--eval-images", tmp_path), "--eval-labels")
    refused(capsys, run("adapt", *model, *images, *out, "--recipe", "nothing"), "nothing")
    (tmp_path / "r.yaml").write_text("seeed: 7\n")
    refused(capsys, run("adapt", *model, *images, *out, "--recipe", tmp_path / "r.yaml"), "r.yaml", "seeed")
    if not torch.cuda.is_available():
        refused(capsys, run("adapt", *model, *images, *out, "--device", "cuda"), "cuda", "cpu")
    assert not (tmp_path / "run").exists()


def test_bad_images_and_labels_are_found_before_training(world, tmp_path, capsys):
    broken = worlds.write_world(tmp_path / "broken", "target")
    (broken / "images/5.png").write_bytes(b"noise")
    model, out = ("--model", world / "trained"), ("--out", tmp_path / "run", "--quiet")
    capsys.readouterr()
    refused(capsys, run("adapt", *model, "--images", broken / "images", *out), "5.png")
    labels = worlds.write_world(tmp_path / "labels", "target")
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(labels / "labels/7.png")
    given = ("--images", labels / "images", "--eval-images", labels / "images", "--eval-labels", labels / "labels")
    refused(capsys, run("adapt", *model, *given, *out), "7.png", "9")
    (labels / "labels/7.png").unlink()
    refused(capsys, run("adapt", *model, *given, *out), "7", "no label")
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_loss_that_is_not_finite_stops_the_run(world, tmp_path, capsys):
    capsys.readouterr()
    broken = ("--selftrain.lr=1e30", "--clip=0", "--selftrain.steps=30", "--stages", "selftrain", "--guard=off")
    status = adapt(world, tmp_path / "run", *broken)
    refused(capsys, status, "selftrain", "lr")


def test_completion_as_a_command():
    command = [sys.executable, "-m", "das3", "completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "das3" in done.stdout
    assert "--eval-images" in done.stdout


def test_ctrl_c_in_a_destructor_is_not_lost():
    code = """
import signal, sys, time
from das3.cli.main import _heed_interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

class Closing:
    def __del__(self):
        raise KeyboardInterrupt

sys.unraisablehook = _heed_interrupts
try:
    Closing()
    time.sleep(30)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped\n", done.stderr
    assert done.stderr == ""


def test_what_the_terminal_has_no_letter_for_is_printed_all_the_same(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys.modules["das3.cli.main"], "_dispatch", lambda arguments: print("half \ud800, ä, 🦆") or 0)
    assert main(["evaluate"]) == 0
    assert written.getvalue() == rb"half \ud800, \xe4, \U0001f986" + b"\n"
