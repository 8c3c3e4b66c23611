"""The Python call."""

import os
import shutil

import pytest
import torch
from torch import nn

import das3
import worlds
from das3.data.open import open_images, open_labelled
from das3.models.metadata import read_metadata
from das3.segmenter import Segmenter

QUICK = {"quiet": True, "device": "cpu", **{s: {"steps": 2} for s in ("align", "selftrain", "propagate")}}


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 3, 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.write_world(tmp_path_factory.mktemp("world"), "target")


def test_a_network_in_and_a_network_of_the_same_type_out(world):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = das3.adapt(model, images=world / "images", guard="stop", **QUICK)
    assert type(result.model) is type(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert any(not torch.equal(before[k], v) for k, v in result.model.state_dict().items())
    assert [row["name"] for row in result.metrics["stages"]] == ["source", "align", "selftrain", "propagate"]
    labels = result.pseudo_labels[0]["labels"]
    assert labels.shape == (48, 64)
    assert set(labels.flatten().tolist()) <= {0, 1, 2, 255}
    assert not result.model.training
    assert (result.folder / "model" / "model.safetensors").exists()


def test_images_may_be_a_dataset_and_labels_an_object(world):
    images = open_images(world / "images")
    dataset = [(torch.from_numpy(images[i]).permute(2, 0, 1) / 255, "a label no one looks at") for i in range(4)]
    labelled = open_labelled(world / "images", world / "labels")
    options = {**QUICK, "stages": ["align"]}
    result = das3.adapt(network(), dataset, evaluation=labelled, **options)
    assert 0 <= result.metrics["stages"][-1]["miou"] <= 100
    assert result.pseudo_labels is None


def test_names_that_are_no_text(world, tmp_path):
    """Files of old disks, and half a character in a list of classes: nothing breaks when they are written down."""
    folder, names = tmp_path / os.fsdecode(b"\xff"), ("half \ud800", "ä", "c")
    folder.mkdir()
    for image in sorted((world / "images").iterdir())[:4]:
        shutil.copy(image, folder / f"{os.fsdecode(image.stem.encode() + bytes([254]))}.png")
    segmenter = Segmenter(network(), class_names=names)
    result = das3.adapt(segmenter, folder, out=tmp_path / "run", **{**QUICK, "stages": ["align"]})
    assert read_metadata(tmp_path / "run/model").class_names == names
    assert "ä" in (tmp_path / "run/model/das3.json").read_text()
    assert (tmp_path / "run/report.html").exists()
    again = das3.adapt(segmenter, folder, out=tmp_path / "run", resume=True, **{**QUICK, "stages": ["align"]})
    assert again.folder == result.folder


def test_a_binary_model_with_one_logit(world):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    result = das3.adapt(model, world / "images", guard="off", report=False, **QUICK)
    assert result.model(torch.rand(1, 3, 16, 16)).shape == (1, 1, 8, 8)
    assert set(result.pseudo_labels[0]["labels"].flatten().tolist()) <= {0, 1, 255}


def test_images_of_mixed_sizes(world, tmp_path):
    for i, size in enumerate(((48, 64), (100, 40), (20, 20))):
        worlds.write_world(tmp_path / str(i), "target", count=2, size=size)
    result = das3.adapt(
        network(), tmp_path, batch_size=2, crop=(32, 32), report=False, **{**QUICK, "selftrain": {"steps": 6}}
    )
    assert len(result.pseudo_labels) == 12  # images and the label PNGs beside them, all pictures below the folder


def test_errors_are_of_one_family(world):
    with pytest.raises(das3.RecipeError, match="colour"):
        das3.adapt(network(), world / "images", colour=1)
    with pytest.raises(das3.ModelError, match="3 classes"):
        das3.adapt(network(), world / "images", num_classes=5, quiet=True)
    with pytest.raises(das3.DataError):
        das3.adapt(network(), world / "nothing")
    assert issubclass(das3.ModelError, das3.Das3Error)
    with pytest.raises(das3.RecipeError, match="images"):
        das3.adapt(network())
