"""Exported files against the model; the file that is handed over runs without das3 and PyTorch."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import NETWORKS
from PIL import Image
from torch import nn

import worlds
from das3.cli import main
from das3.errors import ModelError, RecipeError
from das3.evaluation.predict import predict_labels
from das3.export import InferenceNetwork, compare, export_model, formats, noise
from das3.export.network import Shape
from das3.models import load_segmenter, save_segmenter
from das3.segmenter import Preprocess, Segmenter

pytest.importorskip("onnxruntime")

MASKS = ("hf:maskformer", "hf:mask2former", "hf:oneformer", "hf:eomt")


def segmenter(**more):
    """Needs sides that are multiples of 8."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 2, 2), nn.Conv2d(4, 3, 1)]
    preprocess = Preprocess((120.0, 110.0, 100.0), (50.0, 60.0, 70.0), input_max=255.0, channels="bgr")
    return Segmenter(nn.Sequential(*layers).eval(), preprocess=preprocess, divisor=8, square=False, **more)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One export by the command, to look at from several sides."""
    folder = tmp_path_factory.mktemp("export")
    names = ["sky", "road", "<b>"]
    torch.manual_seed(0)
    model = load_segmenter("das3:small", num_classes=3, model_args={"width": 8}, class_names=names, size=(40, 56))
    save_segmenter(model, folder / "model")
    assert main(["export", str(folder / "model"), "--out", str(folder / "out")]) == 0
    return folder


def test_the_file_takes_any_size_and_batch_and_labels_as_das3_does(exported):
    model = load_segmenter(exported / "model")
    run = formats.FORMATS["onnx"].open(exported / "out/model.onnx")
    for seed, shape in enumerate([(1, 50, 90), (3, 33, 41)]):
        images = (noise(3, *shape, seed) * 255).round()
        labels = run(images / 255).numpy()
        for image, found in zip(images.permute(0, 2, 3, 1).byte().numpy(), labels, strict=True):
            # Pillow rounds the resized image to 8 bits, the file does not.
            assert (found != predict_labels(model, image)).mean() < 0.02


def test_predict_py_needs_onnxruntime_pillow_and_numpy_alone(exported, tmp_path):
    script = exported / "out/predict.py"
    assert len(script.read_text().split('"""')[2].strip().splitlines()) <= 25
    pixels = (noise(3, 1, 50, 90)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forbidden = "import sys; sys.modules['torch'] = sys.modules['das3'] = None; sys.argv[:] = sys.argv[1:]; "
    code = forbidden + "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(script), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png.labels.png") as picture:
        assert picture.mode == "P"
        labels = np.array(picture)
    expected = predict_labels(load_segmenter(exported / "model"), pixels)
    assert (labels != expected).mean() < 0.02
    assert [["sky", "road", "<b>"][i] for i in np.unique(labels)] == done.stdout.split(": ")[1].strip().split(", ")


@pytest.mark.parametrize("output", ["labels", "logits", "native"])
def test_the_network_that_is_exported_is_the_model(output, seeded):
    for more in ({}, {"align_corners": True}):
        model = segmenter(**more)
        for size in (None, (48, 40)):
            model.preprocess = replace(model.preprocess, size=size)
            found = compare(InferenceNetwork(model, output).eval(), model, output, Shape())
            assert found.holds(half=False)
            assert found.difference < 1e-4
    broken = InferenceNetwork(model, output).eval()
    broken.shift += 1.0
    assert not compare(broken, model, output, Shape()).holds(half=False)


def test_one_sigmoid_logit_makes_two_classes():
    model = worlds.network(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert compare(InferenceNetwork(model, "logits").eval(), model, "logits", Shape()).holds(half=False)


def test_half_precision_and_the_other_formats(tmp_path):
    model = segmenter()
    script = export_model(model, tmp_path, format="torchscript", half=True)
    assert script.holds
    assert 0 < script.comparison.relative < 0.05
    assert script.path.name == "model.ts"
    whole = export_model(model, tmp_path, format="torch-export", output="logits", size=(48, 64))
    assert whole.holds
    assert str(whole.shape) == "any number of images of 48×64 pixels"
    assert not list(tmp_path.glob(".part*"))


def test_half_precision_in_onnxruntime_through_the_command(exported, tmp_path, capsys):
    given = ["export", str(exported / "model"), "--half", "--output", "logits", "--out", str(tmp_path)]
    assert main([*given, "--image-size", "64,96"]) == 0
    said = re.search(
        r"in onnxruntime: largest difference (\S+) \((\S+) % of the largest logit\)", capsys.readouterr().out
    )
    assert float(said[1]) > 1e-6  # it is computed in float16
    assert 1e-3 < float(said[2]) < 5
    import onnx

    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    run = formats.FORMATS["onnx"].open(tmp_path / "model.onnx")
    assert run(noise(3, 2, 64, 96)).dtype == torch.float32


class NotFollowed(nn.Module):
    """What it does depends on the values in the image."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.last(x) if float(x.mean()) > 0 else self.last(-x)


def test_what_cannot_be_exported_says_why_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="NotFollowed can't be exported to torch-export") as error:
        export_model(Segmenter(NotFollowed()), tmp_path, format="torch-export")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_from_the_model_is_not_passed_off_as_right(tmp_path, monkeypatch, capsys):
    model = segmenter()
    folder = save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), tmp_path / "model")
    own = formats.TorchScript.write

    def broken(self, network, *rest):
        network.shift += 1.0
        own(self, network, *rest)

    monkeypatch.setattr(formats.TorchScript, "write", broken)
    assert not export_model(model, tmp_path / "a", format="torchscript").holds
    assert main(["export", str(folder), "--format", "torchscript", "--out", str(tmp_path / "b")]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_shorter_side_needs_the_images_size(tmp_path):
    model = segmenter()
    model.preprocess = replace(model.preprocess, size=40)
    with pytest.raises(RecipeError, match="--image-size"):
        export_model(model, tmp_path, format="torchscript")
    assert export_model(model, tmp_path, format="torchscript", size=(50, 70)).holds


def test_the_command_needs_a_folder_to_write_to(capsys):
    assert main(["export", "das3:small", "--num-classes", "3"]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("das3:s") and name not in MASKS])
def test_every_family(name, format, tmp_path):
    torch.manual_seed(0)
    done = export_model(load_segmenter(NETWORKS[name][0]()), tmp_path, format=format, output="logits")
    assert done.holds
    assert done.shape.batch is None


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_mask_classification_works_or_says_why_not(name, tmp_path):
    torch.manual_seed(0)
    done = message = None
    try:
        done = export_model(load_segmenter(NETWORKS[name][0]()), tmp_path, output="logits", size=(64, 64))
    except ModelError as error:
        message = str(error)
    assert done.holds if done else "can't be exported to onnx (" in message and "; try --format" in message
    assert done or name not in ("hf:maskformer", "hf:mask2former")
    assert done or "\n" not in message
