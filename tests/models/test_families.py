"""One suite that every family of models passes: found, split, run, trained, saved, opened again, also without das3."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter
from das3.segmenter import Segmenter, find_classifier

transformers = pytest.importorskip("transformers")
smp = pytest.importorskip("segmentation_models_pytorch")
torchvision = pytest.importorskip("torchvision")

USER_CODE = """
from dataclasses import dataclass
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, form="tensor", stride=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.aux = nn.Conv2d(8, num_classes, 1)
        self.last = nn.Conv2d(8, num_classes, 1)
        self.form = form

    def forward(self, x):
        f = self.body(x)
        main, aux = self.last(f), self.aux(f)
        return {"tensor": main, "dict": {"aux": aux, "out": main}, "tuple": (main, aux), "object": Out(main),
                "odd": {"first": aux, "second": main}}[self.form]

@dataclass
class Out:
    logits: torch.Tensor

def build(num_classes=4, **kwargs):
    torch.manual_seed(0)
    return Net(num_classes, **kwargs)

def broken(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.BatchNorm2d(num_classes))
"""


def tiny_segformer():
    config = transformers.SegformerConfig(
        num_labels=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def tiny_upernet():
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=4, auxiliary_in_channels=24, auxiliary_channels=8
    )
    return transformers.UperNetForSemanticSegmentation(config)


def tiny_mobilevit():
    config = transformers.MobileViTConfig(
        num_labels=4,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 24, 32, 32, 48],
        num_attention_heads=2,
        aspp_out_channels=16,
        image_size=64,
    )
    return transformers.MobileViTForSemanticSegmentation(config)


SEGMENTATION = torchvision.models.segmentation
PLAIN = {"weights": None, "weights_backbone": None, "num_classes": 4}
# name → (how to build it, where its classifier is)
NETWORKS = {
    "torchvision:fcn_resnet50": (lambda: SEGMENTATION.fcn_resnet50(**PLAIN, aux_loss=True), ["classifier.4"]),
    "torchvision:deeplabv3_mobilenet_v3_large": (
        lambda: SEGMENTATION.deeplabv3_mobilenet_v3_large(**PLAIN),
        ["classifier.4"],
    ),
    "torchvision:lraspp_mobilenet_v3_large": (
        lambda: SEGMENTATION.lraspp_mobilenet_v3_large(**PLAIN),
        ["classifier.low_classifier", "classifier.high_classifier"],
    ),
    **{
        f"smp:{name}": (
            lambda name=name: getattr(smp, name)("resnet18", encoder_weights=None, classes=4),
            ["segmentation_head.0"],
        )
        for name in ("Unet", "FPN", "DeepLabV3Plus", "Segformer", "UPerNet")
    },
    "hf:segformer": (tiny_segformer, ["decode_head.classifier"]),
    "hf:upernet": (tiny_upernet, ["decode_head.classifier"]),
    "hf:mobilevit": (tiny_mobilevit, ["segmentation_head.classifier.convolution"]),
    "das3:deeplabv2_resnet101": (
        lambda: das3_network("deeplabv2_resnet101", layers=(1, 1, 1, 1)),
        [f"classifier.{i}" for i in range(4)],
    ),
    "das3:small": (lambda: das3_network("small", width=8), ["classifier"]),
}


def das3_network(name, **model_args):
    return load_segmenter(f"das3:{name}", num_classes=4, model_args=model_args)


@pytest.fixture(params=NETWORKS)
def case(request):
    torch.manual_seed(0)
    build, classifier = NETWORKS[request.param]
    return request.param, load_segmenter(build()), classifier


@pytest.fixture(autouse=True)
def _torch_threads():
    torch.manual_seed(1)


def logits(segmenter, images):
    with torch.no_grad():
        return segmenter.eval()(images)


def test_every_family(case, tmp_path):
    name, segmenter, classifier = case
    images = torch.rand(2, 3, 72, 90)

    assert list(segmenter.classifier) == classifier
    assert segmenter.num_classes == 4
    before = logits(segmenter, images)
    assert before.shape == (2, 4, 72, 90)
    assert before.dtype == torch.float32
    assert torch.isfinite(before).all()

    # f and g are all parameters, and both learn.
    head, body = list(segmenter.classifier_parameters()), list(segmenter.feature_parameters())
    assert {id(p) for p in head} | {id(p) for p in body} == {id(p) for p in segmenter.parameters()}
    assert not {id(p) for p in head} & {id(p) for p in body}
    segmenter.train()
    segmenter(images).square().mean().backward()
    assert all(p.grad is not None for p in head)
    assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in body) > 0
    segmenter.zero_grad()
    before = logits(segmenter, images)  # batch norm has moved

    folder = save_segmenter(segmenter, tmp_path / "model", state_dict=True)
    if segmenter.origin.kind == "object":
        with pytest.raises(ModelError, match="--weights"):
            load_segmenter(folder)
        args = {"aux_loss": True} if "fcn" in name else {}
        again = load_segmenter(name, weights=folder / "model.safetensors", model_args=args)
        assert torch.equal(logits(again, images), before)
        folder = save_segmenter(again, tmp_path / "again")
    again = load_segmenter(folder)
    assert torch.equal(logits(again, images), before)
    assert again.classifier == segmenter.classifier
    assert again.preprocess == segmenter.preprocess
    assert again.class_names == segmenter.class_names

    state = torch.load(tmp_path / "model" / "model.pt", weights_only=True)
    assert list(state) == list(segmenter.model.state_dict())


def test_hugging_face_folder_opens_without_das3(tmp_path):
    tiny_segformer().save_pretrained(tmp_path / "in")
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 96}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in")
    assert segmenter.preprocess.size == (64, 96)
    assert segmenter.preprocess.mean == pytest.approx((0.1, 0.2, 0.3))
    assert segmenter.preprocess.value_range == pytest.approx(1)
    with torch.no_grad():
        next(segmenter.classifier_parameters()).add_(1)
    save_segmenter(segmenter, tmp_path / "out")
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        theirs = model(segmenter.preprocess(images)).logits
        assert torch.equal(theirs, segmenter.native_logits(images))
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_hugging_face_processor_and_segmenter_see_the_same_pixels(tmp_path):
    tiny_segformer().save_pretrained(tmp_path)
    processor = transformers.SegformerImageProcessor(do_resize=False)
    processor.save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = load_segmenter(tmp_path).preprocess(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_smp_folder_opens_without_das3(tmp_path):
    smp.FPN("resnet18", encoder_weights=None, classes=3).save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in")
    save_segmenter(segmenter, tmp_path / "out")
    model = smp.from_pretrained(tmp_path / "out").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(segmenter.preprocess(images)), segmenter.native_logits(images))


def test_binary_model_comes_back_with_one_logit(tmp_path):
    smp.Unet("resnet18", encoder_weights=None, classes=1).save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in")
    images = torch.rand(1, 3, 64, 64)
    probs = logits(segmenter, images).softmax(1)
    assert segmenter.num_classes == 2
    with torch.no_grad():
        sigmoid = segmenter.model(segmenter.preprocess(images)).sigmoid()
    torch.testing.assert_close(probs[:, 1:], sigmoid)
    save_segmenter(segmenter, tmp_path / "out")
    assert smp.from_pretrained(tmp_path / "out")(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert load_segmenter(tmp_path / "out").num_classes == 2


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    import sys

    sys.modules.pop("my_models", None)


@pytest.mark.parametrize("nesting", [[], ["state_dict"], ["model_state_dict"]])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_users_own_code_and_weights(user_code, nesting, prefix):
    import my_models

    net = my_models.build(5)
    data = {f"{prefix}{k}": torch.randn_like(v) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    data[f"{prefix}body.1.running_var"].abs_()
    wanted = list(data)
    for key in nesting:
        data = {key: data, "epoch": 3}
    torch.save(data, "w.pt")
    segmenter = load_segmenter("my_models:build", weights=user_code / "w.pt")
    assert segmenter.num_classes == 5
    assert segmenter.classifier == ("last",)
    save_segmenter(segmenter, user_code / "out", state_dict=True)
    saved = torch.load("out/model.pt", weights_only=True)
    for key in nesting:
        saved = saved[key]
    assert list(saved) == wanted
    images = torch.rand(1, 3, 40, 40)
    assert torch.equal(logits(load_segmenter(user_code / "out"), images), logits(segmenter, images))


@pytest.mark.parametrize("form", ["tensor", "dict", "tuple", "object"])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_any_output_at_any_stride(user_code, form, stride):
    segmenter = load_segmenter("my_models:build", model_args={"form": form, "stride": stride})
    assert segmenter.classifier == ("last",)
    assert logits(segmenter, torch.rand(2, 3, 41, 57)).shape == (2, 4, 41, 57)


def test_output_key_and_classifier_by_name(user_code):
    segmenter = load_segmenter("my_models:build", model_args={"form": "odd"}, output_key="second")
    assert segmenter.classifier == ("last",)
    segmenter = load_segmenter("my_models:build", classifier="body.0")
    assert {
        n for n, p in segmenter.model.named_parameters() if any(p is q for q in segmenter.classifier_parameters())
    } == {
        "body.0.weight",
        "body.0.bias",
    }


def test_preprocessing_options_win_and_are_saved(user_code):
    given = {"mean": [104, 117, 123], "std": [1, 1, 1], "value_range": 255, "channels": "bgr", "size": 48}
    segmenter = load_segmenter("my_models:build", **given)
    pixels = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(segmenter.preprocess(pixels).flatten(), torch.tensor([-104.0, 127.5 - 117, 255 - 123]))
    save_segmenter(segmenter, user_code / "out")
    assert load_segmenter(user_code / "out").preprocess == segmenter.preprocess


class Temperature(nn.Module):
    """Nothing tells whether g is the convolution or the temperature after it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.conv(x) / self.temperature


def refused(call, *words):
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_refuses_when_unsure():
    refused(lambda: load_segmenter(Temperature()), "--classifier", "conv")
    assert load_segmenter(Temperature(), classifier="conv").classifier == ("conv",)
    refused(lambda: load_segmenter(Temperature(), classifier="head"), "head")
    refused(lambda: find_classifier(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4)), torch.rand(1, 3, 8, 8)), "PReLU")


def test_bad_models(user_code, tmp_path):
    refused(lambda: load_segmenter("nowhere"), "nowhere", "package.module:function")
    refused(lambda: load_segmenter("my_models:nothing"), "my_models", "nothing")
    refused(lambda: load_segmenter("no_such_module:build"), "no_such_module")
    refused(lambda: load_segmenter("das3:huge"), "huge", "small")
    refused(lambda: load_segmenter("smp:Huge"), "Huge")
    refused(lambda: load_segmenter("my_models:build", model_args={"depth": 3}), "depth", "--model-args")
    refused(lambda: load_segmenter("my_models:build", num_classes=4, class_names=["a"]), "class names")
    (tmp_path / "empty").mkdir()
    refused(lambda: load_segmenter(tmp_path / "empty"), "empty", "config.json")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    refused(lambda: load_segmenter(tmp_path / "hf"), "hf")


def test_bad_weights(user_code, tmp_path):
    import my_models

    torch.save(my_models.build(4).state_dict(), "w.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "x.pt"), "x.pt")
    refused(
        lambda: load_segmenter("my_models:build", weights=tmp_path / "w.pt", num_classes=7),
        "predicts 4 classes, not 7",
        "--num-classes",
    )
    refused(lambda: load_segmenter("das3:small", weights=tmp_path / "w.pt"), "missing", "stem.0.0.weight", "unexpected")
    refused(lambda: load_segmenter(tmp_path / "w.pt"), "--weights")
    torch.save(my_models.build(4), "whole.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "whole.pt"), "pickled code", "state_dict")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "noise.pt"), "noise.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "noise.safetensors"), "noise.safetensors")


def test_pickled_code_is_not_run(user_code, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"state_dict": Evil()}, "evil.pt")
    refused(lambda: load_segmenter("my_models:build", weights=tmp_path / "evil.pt"), "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_saving_over_a_model_replaces_it(tmp_path):
    segmenter = das3_network("small", width=8)
    save_segmenter(segmenter, tmp_path / "model")
    (tmp_path / "model" / "old").touch()
    save_segmenter(segmenter, tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["das3.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_segmenter_passes_through():
    segmenter = das3_network("small", width=8)
    assert isinstance(segmenter, Segmenter)
    assert load_segmenter(segmenter) is segmenter
