"""`das3 evaluate` without labels: the signals of a model, alone and beside another one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from das3.cli import main
from das3.models import load_segmenter, save_segmenter
from das3.selection.signals import measure_signals, share_shift, sure_agreement

IMAGES = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        kind = {"class_names": ["sky", "road", "box"], "num_classes": 3, "model_args": {"width": 8}}
        save_segmenter(load_segmenter("das3:small", **kind), root / name)
    return root


def evaluate(world, *more):
    given = ["evaluate", "--images", world / "images", "--device", "cpu", "--quiet", *more]
    return main([str(a) for a in given])


def batches(world):
    images = [np.asarray(Image.open(world / "images" / f"{i}.png")) for i in range(IMAGES)]
    return [torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255]


def test_signals_of_one_model_are_printed_and_written(world, tmp_path, capsys):
    assert evaluate(world, "--model", world / "one", "--out", tmp_path / "e.json") == 0
    printed = capsys.readouterr().out
    expected = measure_signals(load_segmenter(world / "one"), batches(world))
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["images"] == IMAGES
    assert written["entropy"] == pytest.approx(expected.entropy, abs=1e-6)
    assert written["consistency_mean"] == pytest.approx(expected.mean_consistency, abs=1e-6)
    assert list(written["shares"].values()) == pytest.approx(expected.shares, abs=1e-6)
    assert f"{expected.density:.3f}" in printed
    assert f"{100 * expected.shares[2]:.1f}" in next(line for line in printed.splitlines() if "box" in line)
    assert "reference" not in printed


def test_two_models_are_compared(world, tmp_path, capsys):
    assert evaluate(world, "--model", world / "one", "--reference", world / "other", "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "evaluation.json").read_text())["reference"]
    one, other = (load_segmenter(world / name).eval() for name in ("one", "other"))
    with torch.no_grad():
        probs = [torch.cat([model(b).softmax(dim=1) for b in batches(world)]) for model in (one, other)]
    square = [torch.nn.functional.interpolate(p, size=(64, 64), mode="bilinear", antialias=True) for p in probs]
    shares = [torch.tensor([(p.argmax(1) == c).double().mean() for c in range(3)]) for p in square]
    assert found["share_shift"] == pytest.approx(share_shift(*shares), abs=0.01)
    assert found["sure_agreement"] == pytest.approx(sure_agreement(square[0].argmax(1), square[1]), abs=0.01)
    assert f"{found['agreement']:.1%} of the pixels" in printed


def test_a_model_agrees_with_itself(world, tmp_path):
    assert evaluate(world, "--model", world / "one", "--reference", world / "one", "--out", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())["reference"]
    assert (found["share_shift"], found["agreement"], found["sure_agreement"]) == (0, 1, 1)


@pytest.mark.parametrize("more", [("--boundary",), ("--classes-subset", 13), ("--classes", "table.json")])
def test_options_of_labels_need_labels(world, capsys, more):
    assert evaluate(world, "--model", world / "one", *more) == 2
    assert f"{more[0]} is of labels" in capsys.readouterr().err


def test_a_reference_is_for_images_without_labels(world, capsys):
    labels = ("--labels", world / "images", "--reference", world / "other")
    assert evaluate(world, "--model", world / "one", *labels) == 2
    assert "--reference" in capsys.readouterr().err
