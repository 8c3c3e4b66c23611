"""Files that are no weights, weights that no network can use, damaged folders: each is told in one line, by the CLI.

Nothing in them is run, and none makes das3 hang.
"""

import gzip
import json
import pickle
import signal
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
import transformers
from networks import hf_segformer, of_das3
from safetensors.torch import save_file
from torch import nn

import worlds
from das3.cli import main
from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return worlds.write_world(tmp_path_factory.mktemp("world"), "target", count=1) / "images"


@pytest.fixture
def refused(images, tmp_path, capsys):
    """Run `das3 predict` with a model: it must end with one line, within seconds."""

    def run(*model, words=()):
        def hang(*_):
            raise AssertionError("das3 hangs")

        before = signal.signal(signal.SIGALRM, hang)
        signal.alarm(30)
        capsys.readouterr()
        try:
            given = ["--images", images, "--out", tmp_path / "labels", "--quiet"]
            status = main([str(a) for a in ("predict", "--model", *model, *given)])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        error = capsys.readouterr().err.strip()
        assert status == 2, error
        assert error.startswith("das3: error: "), error
        assert error.count("\n") == 0, error
        for word in words:
            assert str(word) in error, error
        return error

    return run


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))


def torchscript(path):
    torch.jit.save(torch.jit.trace(Net().eval(), torch.rand(1, 3, 8, 8)), path)


def exported(path):
    torch.export.save(torch.export.export(Net().eval(), (torch.rand(1, 3, 8, 8),)), path)


def onnx(path):
    """What torch.onnx.export writes first: field 1 ir_version, 2 producer_name, 3 producer_version, 7 graph."""
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x062.15.0:\x10" + bytes(16))


def saved_model(path):
    path.write_bytes(b"\x08\x01\x12\xa0\xc3\x01\x0a\x10" + bytes(300))


def keras(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")


def of_module(name, path, write):
    """Write an object of a class of a module that is gone when the file is read."""
    parts = name.split(".")
    modules = [".".join(parts[: i + 1]) for i in range(len(parts))]
    for module in modules:
        sys.modules[module] = types.ModuleType(module)
    kind = type("DetectionModel", (nn.Module,), {"__module__": name})
    sys.modules[name].DetectionModel = kind
    model = kind()
    model.layer = nn.Conv2d(3, 4, 1)
    try:
        write(model, path)
    finally:
        for module in modules:
            del sys.modules[module]


def ultralytics(path):
    of_module("ultralytics.nn.tasks", path, lambda model, path: torch.save({"epoch": -1, "model": model}, path))


def old_ultralytics(path):
    def write(model, path):
        torch.save({"epoch": -1, "model": model}, path, _use_new_zipfile_serialization=False)

    of_module("models.yolo", path, write)


def whole(path):
    of_module("their_code", path, torch.save)


def old_whole(path):
    of_module("their_code", path, lambda m, p: torch.save(m, p, _use_new_zipfile_serialization=False))


def pickled(path):
    of_module("their_code", path, lambda m, p: p.write_bytes(pickle.dumps(m)))


def mmseg(path):
    names = ("backbone.layer1.0.conv1.weight", "decode_head.conv_seg.weight")
    state = {name: torch.rand(4, 4, 1, 1) for name in names}
    torch.save({"meta": {"mmseg_version": "0.16.0"}, "state_dict": state}, path)


def itself(path):
    content = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, path)


def text(content):
    return lambda path: path.write_bytes(content)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FILES = {
    "script.pt": (torchscript, ["TorchScript", "torch.jit.load"]),
    "export.pt2": (exported, ["torch.export", "weights"]),
    "net.onnx": (onnx, ["ONNX", "PyTorch"]),
    "saved_model.pb": (saved_model, ["TensorFlow"]),
    "net.keras": (keras, ["Keras", "PyTorch"]),
    "net.h5": (text(b"\x89HDF\r\n\x1a\n" + bytes(100)), ["Keras", "PyTorch"]),
    "net.tflite": (text(b"\x1c\0\0\0TFL3" + bytes(100)), ["TensorFlow Lite"]),
    "net.gguf": (text(b"GGUF\3" + bytes(100)), ["GGUF"]),
    "yolo.pt": (ultralytics, ["Ultralytics", "semantic segmentation"]),
    "yolov5.pt": (old_ultralytics, ["Ultralytics"]),
    "whole.pt": (whole, ["pickled model", "their_code", "state_dict"]),
    "old.pt": (old_whole, ["pickled model", "their_code", "state_dict"]),
    "model.pkl": (pickled, ["plain pickle", "their_code", "state_dict"]),
    "mmseg.pth": (mmseg, ["mmsegmentation", "das3 convert", "mmseg.pth"]),
    "itself.pt": (itself, ["itself"]),
    "lfs.pt": (text(LFS), ["Git LFS", "git lfs pull"]),
    "lfs.safetensors": (text(LFS), ["Git LFS", "git lfs pull"]),
    "empty.pt": (text(b""), ["empty"]),
    "empty.safetensors": (text(b""), ["empty"]),
    "short.safetensors": (text(b"\1\2\3"), ["safetensors"]),
    "none.safetensors": (text(struct.pack("<Q", 2) + b"{}"), ["without a single tensor"]),
    "huge.safetensors": (text(struct.pack("<Q", 2**40) + b"{}"), ["safetensors"]),
    "header.safetensors": (text(struct.pack("<Q", 9) + b'{"a": [}}'), ["damaged"]),
    "page.pt": (text(b"<!DOCTYPE html><html>login</html>"), ["web page"]),
    "net.pt.gz": (lambda p: p.write_bytes(gzip.compress(b"x")), ["gzip", "unpack"]),
    "net.npz": (lambda p: np.savez(p, a=np.zeros(3)), ["NumPy"]),
    "net.npy": (lambda p: np.save(p, np.zeros(3)), ["NumPy"]),
    "noise.pt": (text(bytes(range(256))), ["torch can read"]),
    "number.pt": (lambda p: torch.save(3, p), ["no state dict"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_weights(name, refused, tmp_path):
    write, words = FILES[name]
    path = tmp_path / name
    write(path)
    refused(path, words=[path, *words])  # as the model
    if name != "mmseg.pth":  # and as weights
        refused("das3:small", "--weights", path, words=[path, *words])
    else:
        refused("das3:small", "--weights", path, "--num-classes", 3, words=[path, "das3 convert"])


def test_what_to_do_with_a_program_gives_weights(tmp_path):
    torchscript(tmp_path / "script.pt")
    exported(tmp_path / "export.pt2")
    torch.save(torch.jit.load(tmp_path / "script.pt").state_dict(), tmp_path / "a.pt")
    torch.save(dict(torch.export.load(tmp_path / "export.pt2").state_dict), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        assert load_segmenter(Net(), weights=tmp_path / name).num_classes == 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.pt", "old.pt", "w.safetensors"])
def test_files_that_are_cut_off(name, share, refused, tmp_path):
    state = of_das3("small", width=8)().model.state_dict()
    if name == "w.safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name == "w.pt")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    refused("das3:small", "--weights", tmp_path / name, words=[name])


def small():
    return of_das3("small", width=8)().model.state_dict()


def changed(**tensors):
    return {**small(), **{k.replace("__", "."): v for k, v in tensors.items()}}


WEIGHTS = {
    "complex": (lambda w: w.to(torch.complex64), ["complex"]),
    "sparse": (lambda w: w.to_sparse(), ["sparse"]),
    "int8": (lambda w: (w * 100).to(torch.int8), ["quantised"]),
    "meta": (lambda w: w.to("meta"), ["without values"]),
    "quantised": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), ["quantised"]),
    "nan": (lambda w: w * float("nan"), ["NaN"]),
    "inf": (lambda w: w / 0, ["infinite"]),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_no_network_can_use(kind, refused, tmp_path):
    change, words = WEIGHTS[kind]
    state = small()
    state["fuse.0.weight"] = change(state["fuse.0.weight"])
    torch.save(state, tmp_path / "w.pt")
    given = ("das3:small", "--model-args", '{"width": 8}', "--weights", tmp_path / "w.pt")
    refused(*given, words=["w.pt", "fuse.0.weight", *words])


def test_a_bias_of_whole_numbers_and_a_variance_that_is_infinite(refused, tmp_path):
    state = small()
    given = ("das3:small", "--model-args", '{"width": 8}', "--weights", tmp_path / "w.pt")
    torch.save({**state, "classifier.bias": state["classifier.bias"].int()}, tmp_path / "w.pt")
    refused(*given, words=["w.pt", "classifier.bias"])
    variance = next(k for k in state if k.endswith("running_var"))
    torch.save({**state, variance: state[variance] / 0}, tmp_path / "w.pt")
    refused(*given, words=["w.pt", variance, "infinite"])


def test_a_model_that_broke_is_not_saved(tmp_path):
    segmenter = of_das3("small", width=8)()
    save_segmenter(segmenter, tmp_path / "m")
    before = (tmp_path / "m/model.safetensors").read_bytes()
    with torch.no_grad():
        segmenter.model.classifier.bias[0] = float("nan")
    with pytest.raises(ModelError, match=r"m: not written.*NaN.*classifier\.bias"):
        save_segmenter(segmenter, tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def hugging(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    hf_segformer().save_pretrained(folder)
    transformers.SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


def copied(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edited(path, **values):
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (LFS, "Git LFS"), (b"\1\2\3", "safetensors"), ("half", "cut off")]
)
def test_weights_of_a_hugging_face_folder(content, word, refused, hugging, tmp_path):
    folder = copied(hugging, tmp_path / "hf")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000] if content == "half" else content)
    refused(folder, words=[path, word])


def test_more_of_a_hugging_face_folders_weights(refused, hugging, tmp_path):
    folder = copied(hugging, tmp_path / "hf")
    state = hf_segformer().state_dict()
    key = "decode_head.classifier.weight"
    path = folder / "model.safetensors"
    save_file({**state, key: state[key] * float("nan")}, path)
    refused(folder, words=[folder, key, "NaN"])
    save_file({**state, key: (state[key] * 100).to(torch.int8)}, path)
    refused(folder, words=[path, key, "quantised"])
    path.unlink()
    torch.save({**state, key: state[key].to(torch.complex64)}, folder / "pytorch_model.bin")
    refused(folder, words=["pytorch_model.bin", key, "complex"])
    torch.save(Net(), folder / "pytorch_model.bin")
    refused(folder, words=["pytorch_model.bin", "pickled model"])
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, words=["pytorch_model.bin", "empty"])


PROCESSORS = {
    "two means": {"image_mean": [0.5, 0.5]},
    "no mean": {"image_mean": []},
    "words": {"image_mean": ["a", "b", "c"]},
    "zero std": {"image_std": [0, 0, 0]},
    "nan": {"image_mean": [0.5, float("nan"), 0.5]},
    "unknown": {"image_processor_type": "NoSuchProcessor"},
    "code": {"image_processor_type": "NoSuchProcessor", "auto_map": {"AutoImageProcessor": "evil.Processor"}},
    "negative size": {"do_resize": True, "size": {"height": -3, "width": 5}},
    "factor": {"rescale_factor": 0},
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_damaged_processors(case, refused, hugging, tmp_path):
    folder = copied(hugging, tmp_path / "hf")
    edited(folder / "preprocessor_config.json", **PROCESSORS[case])
    refused(folder, words=["preprocessor_config.json"])


CONFIGS = {
    "list": "[]",
    "text": "{",
    "nothing": "{}",
    "unknown": '{"model_type": "no-such-model"}',
    "quantised": '{"model_type": "segformer", "quantization_config": {"bits": 4}}',
    "deep": "[" * 100_000,
    "numbers": '{"model_type": "segformer", "depths": "many", "num_labels": -1}',
    "kernels": '{"model_type": "segformer", "attn_implementation": "someone/kernels"}',
    "remote": '{"model_type": "segformer", "backbone": "hf-hub:someone/network"}',
}


@pytest.mark.parametrize("case", CONFIGS)
def test_damaged_configs(case, refused, hugging, tmp_path):
    folder = copied(hugging, tmp_path / "hf")
    (folder / "config.json").write_text(CONFIGS[case])
    refused(folder, words=[folder])


CARDS = {
    "divisor": {"divisor": 0},
    "negative divisor": {"divisor": -32},
    "text divisor": {"divisor": "32"},
    "huge divisor": {"divisor": 10**12},
    "square": {"square": "yes"},
    "kind": {"kind": "pickle"},
    "model": {"model": 3},
    "args": {"model_args": [1]},
    "nesting": {"nesting": "state_dict"},
    "prefix": {"prefix": None},
    "names": {"class_names": [1, 2]},
    "classifier": {"classifier": "head"},
    "key": {"output_key": 1.5},
    "align": {"align_corners": 2},
    "preprocess": {"preprocess": []},
    "mean": {"preprocess": {"mean": [0.5, 0.5]}},
    "std": {"preprocess": {"std": [1, 1, 0]}},
    "nan": {"preprocess": {"mean": [0.5, 0.5, float("nan")]}},
    "infinite range": {"preprocess": {"value_range": float("inf")}},
    "size": {"preprocess": {"size": 0}},
    "sizes": {"preprocess": {"size": [64, 0]}},
    "unknown option": {"preprocess": {"colour": "red"}},
    "input max": {"preprocess": {"input_max": 0}},
    "channels": {"in_channels": 0},
    "pixels": {"pixels": [0, 255]},
    "pixels of no type": {"pixels": {"dtype": "colour"}},
    "pixels of text": {"pixels": {"dtype": "U8"}},
    "no bands": {"pixels": {"channels": 0}},
    "ranges of other bands": {"pixels": {"channels": 4, "low": [0, 0], "high": [1, 1]}},
    "range of text": {"pixels": {"low": ["dark"], "high": ["bright"]}},
    "empty range": {"pixels": {"low": [7], "high": [7]}},
    "endless range": {"pixels": {"high": [float("inf")]}},
    "download": {"model": "smp:Unet", "model_args": {"encoder_name": "tu-hf-hub:someone/network"}},
    "wrong arguments": {"model_args": {"width": "wide"}},
    "no classes": {"model_args": {"num_classes": -4}},
}


@pytest.mark.parametrize("case", CARDS)
def test_damaged_cards(case, refused, tmp_path):
    folder = save_segmenter(of_das3("small", width=8)(), tmp_path / "m")
    edited(folder / "das3.json", **CARDS[case])
    refused(folder, words=[folder] if case not in ("wrong arguments", "no classes") else ["das3:small"])
    (folder / "das3.json").write_text("[" * 100_000)
    refused(folder, words=["das3.json"])


def test_a_card_that_asks_for_trained_weights_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    segmenter = load_segmenter("torchvision:lraspp_mobilenet_v3_large", num_classes=3)
    folder = save_segmenter(segmenter, tmp_path / "m")
    args = json.loads((folder / "das3.json").read_text())["model_args"]
    edited(folder / "das3.json", model_args={**args, "weights_backbone": "DEFAULT"})
    assert load_segmenter(folder).num_classes == 3
