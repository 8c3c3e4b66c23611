"""Weights of a user's own code: every nesting and prefix, what does not fit, and what must never run."""

import argparse
import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from networks import USER_CODE, logits, of_das3
from torch import nn

import das3
from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_models", None)


@pytest.fixture
def net(user_code):
    load_segmenter("my_models:build")  # finds the module in the working directory
    return sys.modules["my_models"].build


@pytest.mark.parametrize("nesting", [[], ["state_dict"], ["model_state_dict"]])
@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_users_own_code_and_weights(net, user_code, nesting, prefix):
    state = net(5).state_dict()
    data = {f"{prefix}{k}": torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    wanted = dict(data)
    for key in nesting:
        data = {key: data, "epoch": 3, "args": argparse.Namespace(lr=1)}
    torch.save(data, "w.pt")
    segmenter = load_segmenter("my_models:build", weights=user_code / "w.pt")
    assert segmenter.num_classes == 5
    assert segmenter.classifier == ("last",)
    save_segmenter(segmenter, user_code / "out", state_dict=True)
    saved = torch.load("out/model.pt", weights_only=True)
    for key in nesting:
        saved = saved[key]
    assert list(saved) == list(wanted)
    assert all(torch.equal(saved[k], v) for k, v in wanted.items())
    images = torch.rand(1, 3, 40, 40)
    again = load_segmenter(user_code / "out", trust=True)
    assert torch.equal(logits(again, images), logits(segmenter, images))


def test_old_and_new_files(net, user_code):
    state = net().state_dict()
    old = {k: v for k, v in state.items() if "num_batches" not in k}  # before PyTorch 0.4.1
    torch.save(old, "old.pth", _use_new_zipfile_serialization=False)
    from safetensors.torch import save_file

    save_file(state, "new.safetensors")
    images = torch.rand(1, 3, 16, 16)
    one, other = (load_segmenter("my_models:build", weights=n) for n in ("old.pth", "new.safetensors"))
    assert torch.equal(logits(one, images), logits(other, images))


def test_shared_and_transposed_weights_are_saved(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)
            self.b = nn.Conv2d(3, 3, 1)
            self.b.weight = self.a.weight
            self.last = nn.Conv2d(3, 2, 1)
            self.last.weight = nn.Parameter(torch.randn(3, 2, 1, 1).transpose(0, 1))

        def forward(self, x):
            return self.last(self.b(self.a(x)))

    segmenter = load_segmenter(Net())
    save_segmenter(segmenter, tmp_path / "m")
    images = torch.rand(1, 3, 8, 8)
    again = load_segmenter(Net(), weights=tmp_path / "m")
    assert torch.equal(logits(again, images), logits(segmenter, images))


def test_weights_of_a_known_network_tell_its_classes(tmp_path):
    segmenter = of_das3("small", width=8)()
    save_segmenter(segmenter, tmp_path / "m", state_dict=True)
    again = load_segmenter("das3:small", weights=tmp_path / "m" / "model.pt", model_args={"width": 8})
    assert again.num_classes == 4


def test_torchvision_and_smp_by_name(tmp_path):
    segmenter = load_segmenter("torchvision:lraspp_mobilenet_v3_large", num_classes=3)
    assert segmenter.num_classes == 3
    segmenter = load_segmenter("smp:FPN", num_classes=3, model_args={"encoder_name": "resnet18"})
    save_segmenter(segmenter, tmp_path / "m", state_dict=True)
    args = {"encoder_name": "resnet18"}
    again = load_segmenter("smp:FPN", weights=tmp_path / "m" / "model.pt", model_args=args)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(logits(again, images), logits(segmenter, images))


def test_preprocessing_options_win_and_are_saved(user_code):
    given = {"mean": [104, 117, 123], "std": [1, 1, 1], "input_max": 255, "channels": "bgr", "size": [48, 64]}
    segmenter = load_segmenter("my_models:build", align_corners=True, class_names=list("wxyz"), **given)
    pixels = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(segmenter.preprocess(pixels).flatten(), torch.tensor([-104.0, 127.5 - 117, 255 - 123]))
    again = load_segmenter(save_segmenter(segmenter, user_code / "out"), trust=True)
    assert again.preprocess == segmenter.preprocess
    assert again.preprocess.size == (48, 64)
    assert again.align_corners
    assert again.class_names == tuple("wxyz")


def test_run_folder(tmp_path):
    segmenter = of_das3("small", width=8)()
    save_segmenter(segmenter, tmp_path / "run" / "model")
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(logits(load_segmenter(tmp_path / "run"), images), logits(segmenter, images))


def test_segmenter_passes_through():
    segmenter = of_das3("small", width=8)()
    assert load_segmenter(segmenter) is segmenter
    renamed = load_segmenter(segmenter, class_names=list("abcd"))
    assert renamed.class_names == tuple("abcd")
    assert renamed.model is segmenter.model


def test_saving_over_a_model_replaces_it(tmp_path):
    segmenter = of_das3("small", width=8)()
    save_segmenter(segmenter, tmp_path / "model")
    (tmp_path / "model" / "old").touch()
    save_segmenter(segmenter, tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["das3.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    segmenter = of_das3("small", width=8)()
    save_segmenter(segmenter, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_segmenter(segmenter, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ModelError, match="something else"):
        save_segmenter(of_das3("small", width=8)(), tmp_path)
    assert (tmp_path / "photo.jpg").exists()


def refused(call, *words):
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_bad_models(user_code, tmp_path):
    refused(lambda: load_segmenter("nowhere"), "nowhere", "package.module:function")
    refused(lambda: load_segmenter("my_models:nothing"), "my_models", "nothing")
    refused(lambda: load_segmenter("no_such_module:build"), "no_such_module")
    refused(lambda: load_segmenter("das3:huge"), "huge", "small")
    refused(lambda: load_segmenter("das3:small"), "--num-classes")
    refused(lambda: load_segmenter("smp:Huge"), "Huge", "Unet")
    refused(lambda: load_segmenter("torchvision:resnet50"), "resnet50", "fcn_resnet50")
    refused(lambda: load_segmenter("smp:Unet", model_args={"encoder_name": "nope"}), "nope", "--model-args")
    refused(lambda: load_segmenter("my_models:build", model_args={"depth": 3}), "depth", "--model-args")
    refused(lambda: load_segmenter("my_models:build", num_classes=4, class_names=["a"]), "class names")
    refused(lambda: load_segmenter(nn.Conv2d(3, 2, 1), model_args={"a": 1}), "--model-args")
    (tmp_path / "empty").mkdir()
    refused(lambda: load_segmenter(tmp_path / "empty"), "empty", "config.json")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    refused(lambda: load_segmenter(tmp_path / "hf"), "hf")
    (tmp_path / "hf" / "config.json").write_text("{")
    refused(lambda: load_segmenter(tmp_path / "hf"), "config.json")
    (tmp_path / "empty" / "das3.json").write_text("{}")
    refused(lambda: load_segmenter(tmp_path / "empty"), "das3.json", "damaged")


def test_bad_weights(net, user_code, tmp_path):
    torch.save(net(4).state_dict(), "w.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "x.pt"), "x.pt")
    refused(
        lambda: load_segmenter("my_models:build", weights=tmp_path / "w.pt", num_classes=7),
        "predicts 4 classes, not 7",
        "--num-classes",
    )
    refused(lambda: load_segmenter("das3:small", weights=tmp_path / "w.pt"), "missing", "stem.0.0.weight", "unexpected")
    refused(
        lambda: load_segmenter(
            "my_models:build", weights=tmp_path / "w.pt", model_args={"stride": 2, "num_classes": 9}
        ),
        "predicts 4 classes, not 9",
    )
    wide = net(4).state_dict()
    wide["body.0.weight"] = torch.zeros(8, 3, 5, 5)
    del wide["aux.bias"]
    torch.save(wide, "wide.pt")
    refused(
        lambda: load_segmenter("my_models:build", weights=tmp_path / "wide.pt"),
        "1 missing (aux.bias)",
        "1 of another shape (body.0.weight (8, 3, 5, 5) for (8, 3, 3, 3))",
    )
    refused(lambda: load_segmenter(tmp_path / "w.pt"), "--weights")
    torch.save(net(4), "whole.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "whole.pt"), "pickled", "state_dict")
    torch.save({"model": net(4), "epoch": 1}, "whole.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "whole.pt"), "pickled", "state_dict")
    torch.save({"epoch": 1}, "nothing.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "nothing.pt"), "no state dict")
    for name in ("noise.pt", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"noise")
        refused(lambda name=name: load_segmenter("my_models:build", weights=tmp_path / name), name)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:1000])
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "cut.pt"), "cut.pt")


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_code_is_not_run(user_code, tmp_path, new_format):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    for content in (Evil(), {"state_dict": Evil()}, {"a": torch.zeros(1), "evil": Evil()}):
        torch.save(content, "evil.pt", _use_new_zipfile_serialization=new_format)
        refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "evil.pt"), "evil.pt")
        assert not (tmp_path / "owned").exists()


def test_whether_a_network_is_trained_is_known(user_code, tmp_path):
    segmenter = of_das3("small", width=8)()
    assert not segmenter.origin.trained
    assert load_segmenter(save_segmenter(segmenter, tmp_path / "m")).origin.trained
    assert load_segmenter("my_models:build").origin.trained  # for all one can know


def test_other_libraries_of_networks_are_imported_only_when_asked_for():
    optional = {"torchvision", "timm", "transformers", "segmentation_models_pytorch", "huggingface_hub"}
    for path in Path(das3.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {n.split(".")[0] for n in names[: 1 if names[0] else None]} & optional, path


@pytest.mark.parametrize(
    ("missing", "spec", "extra"),
    [
        ("torchvision.models", "torchvision:fcn_resnet50", "torchvision"),
        ("torchvision.models.resnet", "das3:deeplabv2_resnet101", "torchvision"),
        ("segmentation_models_pytorch", "smp:Unet", "smp"),
        ("huggingface_hub", "someone/model", "hub"),
    ],
)
def test_missing_library(missing, spec, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    refused(lambda: load_segmenter(spec, num_classes=2), f"pip install 'das3[{extra}]'")


def test_a_card_with_the_old_name_of_the_largest_input_opens(tmp_path):
    model = save_segmenter(load_segmenter("das3:small", num_classes=3, input_max=255), tmp_path / "model")
    card = model / "das3.json"
    card.write_text(card.read_text().replace('"input_max"', '"value_range"'))
    assert load_segmenter(model).preprocess.input_max == 255
