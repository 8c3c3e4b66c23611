"""What is assumed of a model's preprocessing is said, kept, and doubted where another one fits clearly better."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import worlds
from das3.cli import main
from das3.data.open import open_images
from das3.models import load_segmenter, save_segmenter
from das3.models.preprocess_check import (
    CANDIDATES,
    Fit,
    better_preprocess,
    preprocess_fits,
    warn_of_preprocess,
)

TRAINED = {"ImageNet's mean and std": [], "0 to 1": ["--mean", "0,0,0", "--std", "1,1,1"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models, and their weights alone."""
    root = tmp_path_factory.mktemp("world")
    for domain in ("source", "target"):
        worlds.write_world(root / domain, domain)
    for name, options in TRAINED.items():
        given = ["--images", root / "source/images", "--labels", root / "source/labels", "--out", root / name]
        given += ["--steps", 30, "--model-args", '{"width": 8}', "--device", "cpu", "--quiet", *options]
        assert main(["train-source", *map(str, given)]) == 0
        torch.save(load_segmenter(root / name).model.state_dict(), root / f"{name}.pt")
    return root


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("name", TRAINED)
def test_the_right_preprocessing_fits_and_a_wrong_one_is_found(world, name, domain):
    images = open_images(world / domain / "images")
    for assumed in TRAINED:
        segmenter = load_segmenter(world / name)
        segmenter.preprocess = CANDIDATES[assumed]
        before = {key: value.clone() for key, value in segmenter.state_dict().items()}
        found = better_preprocess(preprocess_fits(segmenter, images))
        assert found == (None if assumed == name else name) or (domain == "target" and found is None)
        assert segmenter.preprocess == CANDIDATES[assumed]
        assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())


def predict(world, out, capsys, *model):
    given = ["--images", world / "source/images", "--out", out, "--device", "cpu", "--model", *model]
    assert main(["predict", *map(str, given)]) == 0
    return capsys.readouterr().err


def test_only_weights_that_do_not_say_are_doubted(world, tmp_path, capsys):
    weights = ["das3:small", "--model-args", '{"width": 8}', "--weights"]
    warned = predict(world, tmp_path / "a", capsys, *weights, world / "0 to 1.pt")
    assert warned.count("warning") == 1
    assert "--mean 0,0,0 --std 1,1,1" in warned
    for number, model in enumerate(
        [
            [*weights, world / "0 to 1.pt", "--mean", "0,0,0", "--std", "1,1,1"],
            [*weights, world / "ImageNet's mean and std.pt"],
            [world / "0 to 1"],
        ]
    ):
        assert "warning" not in predict(world, tmp_path / str(number), capsys, *model)


def test_adapt_prints_it_and_the_model_keeps_it(world, tmp_path, capsys):
    given = ["--model", "das3:small", "--model-args", '{"width": 8}', "--weights", world / "0 to 1.pt"]
    given += ["--images", world / "target/images", "--stages", "bn", "--device", "cpu", "--report=false"]
    assert main(["adapt", *map(str, given), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "preprocessing (assumed): rgb, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in said
    assert "warning: the model does not say" in said
    for folder, source, mean in ((tmp_path / "run", "assumed", 0.485), (world / "0 to 1", "as trained", 0.0)):
        card = json.loads((folder / "model/das3.json").read_text())
        assert card["preprocess_from"] == source
        segmenter = load_segmenter(folder)
        assert segmenter.origin.preprocess == source
        assert segmenter.preprocess.mean[0] == mean
    again = save_segmenter(load_segmenter(tmp_path / "run", mean=[0, 0, 0], std=[1, 1, 1]), tmp_path / "again")
    assert load_segmenter(again).origin.preprocess == "given"


def test_without_batch_norm_sure_alone_is_not_better(rng):
    assumed = Fit(None, 0.6, 0.3)
    others = {"0 to 1": Fit(None, 0.15, 0.05), "0 to 255": Fit(None, 0.0, 0.0)}
    assert better_preprocess({"assumed": assumed, **others}) == "0 to 1"
    assert better_preprocess({"assumed": assumed, "0 to 1": Fit(None, 0.1, 0.31), "-1 to 1": assumed}) is None
    assert better_preprocess({"assumed": assumed, "0 to 1": Fit(None, 0.4, 0.1), "-1 to 1": assumed}) is None
    torch.manual_seed(0)
    plain = worlds.network(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    noise = [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    assert warn_of_preprocess(plain, open_images(noise)) is None
