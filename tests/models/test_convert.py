"""Converted checkpoints give what the codebase they came from computes, to 1e-4, from pixels to logits."""

import argparse
from functools import partial

import published
import pytest
import torch
import torch.nn.functional as F

from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter
from das3.models.convert import convert_checkpoint

SMALL = (1, 1, 2, 2)
MULTI = {"layer5": 3, "layer6": 4}
caffe = partial(published.caffe_deeplab, blocks=SMALL)
mmseg = partial(published.mmseg_deeplab, blocks=SMALL)

# what it is → (forward, style)
CAFFE = {
    "AdaptSegNet": (partial(caffe, heads=MULTI, main="layer6", branches=2), "adaptsegnet"),
    "AdaptSegNet, single level": (partial(caffe, heads={"layer5": 4}, main="layer5", branches=2), "adaptsegnet"),
    "ADVENT": (partial(caffe, heads=MULTI, main="layer6", branches=4), "advent"),
    "ADVENT, single level": (partial(caffe, heads={"layer6": 4}, main="layer6", branches=4), "auto"),
    "LDBE": (partial(caffe, heads={"layer5": 4, "layer6": 4}, main="layer5", branches=4), "auto"),
}
MMSEG = {
    "DeepLabV2 of DAFormer": partial(mmseg, stem=True, contract=True, dilations=(6, 12, 18, 24)),
    "its reduced variant": partial(mmseg, stem=True, contract=True, dilations=(6, 12)),
    "DeepLabV2 on ResNetV1": partial(mmseg, stem=False, contract=True, dilations=(6, 12, 18, 24)),
    "SegFormer of NVIDIA": published.nvidia_segformer,
    "SegFormer of DAFormer": published.daformer_segformer,
    "SegFormer of mmsegmentation": published.mmseg_segformer,
    "DAFormer": published.daformer,
}


def pixels(height=65, width=97, seed=1):
    """RGB values in [0, 255]."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def caffe_input(rgb):
    return rgb[:, [2, 1, 0]] - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)


def mmseg_input(rgb):
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (rgb - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def draw(forward, prepare, classes=5, scale=1.0):
    """A random state dict in the codebase's keys, and its logits on `pixels`."""
    state = published.Random()
    with torch.no_grad():
        return state, forward(state, prepare(pixels()) * scale, classes)


def agree(segmenter, logits, align_corners):
    wanted = F.interpolate(logits, size=(65, 97), mode="bilinear", align_corners=align_corners)
    assert wanted.std() > 0.05, "the reference is too flat to tell anything"
    with torch.no_grad():
        torch.testing.assert_close(segmenter(pixels() / 255), wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", CAFFE)
def test_deeplab_with_caffe_resnet(name, tmp_path):
    forward, style = CAFFE[name]
    state, logits = draw(forward, caffe_input)
    torch.save(dict(state), tmp_path / "w.pth")
    segmenter = convert_checkpoint(tmp_path / "w.pth", style=style)
    assert segmenter.preprocess.channels == "bgr"
    assert len(segmenter.classifier) == (2 if style == "adaptsegnet" else 4)
    agree(segmenter, logits, align_corners=True)


@pytest.mark.parametrize("name", MMSEG)
def test_mmsegmentation(name, tmp_path):
    state, logits = draw(MMSEG[name], mmseg_input)
    torch.save({"meta": {"CLASSES": tuple("abcde"), "seed": 0}, "state_dict": dict(state)}, tmp_path / "w.pth")
    segmenter = convert_checkpoint(tmp_path / "w.pth", num_classes=5)
    assert segmenter.class_names == tuple("abcde")
    agree(segmenter, logits, align_corners=False)
    again = load_segmenter(save_segmenter(segmenter, tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(again(pixels() / 255), segmenter(pixels() / 255))


def test_config_in_checkpoint_tells_first_dilation(tmp_path):
    state, logits = draw(partial(mmseg, stem=False, contract=False, dilations=(6, 12)), mmseg_input)
    config = "model = dict(backbone=dict(contract_dilation=False))"
    torch.save({"meta": {"config": config}, "state_dict": dict(state)}, tmp_path / "w.pth")
    agree(convert_checkpoint(tmp_path / "w.pth"), logits, align_corners=False)


def test_branches_that_never_trained_are_left_out(tmp_path):
    """The same keys mean two branches in AdaptSegNet's code and four in ADVENT's: the weights tell which it was."""
    forward = partial(caffe, heads=MULTI, main="layer6", branches=2)
    state, logits = draw(forward, caffe_input)
    for i in (2, 3):
        state[f"layer6.conv2d_list.{i}.weight"].normal_(0, 0.01)
    torch.save(dict(state), tmp_path / "w.pth")
    agree(convert_checkpoint(tmp_path / "w.pth"), logits, align_corners=True)
    four, logits = draw(partial(forward, branches=4), caffe_input)
    torch.save(dict(four), tmp_path / "four.pth")
    agree(convert_checkpoint(tmp_path / "four.pth"), logits, align_corners=True)
    for i in (0, 1):
        state[f"layer6.conv2d_list.{i}.weight"].normal_(0, 0.01)
    torch.save(dict(state), tmp_path / "untrained.pth")
    with pytest.raises(ModelError, match="--style"):
        convert_checkpoint(tmp_path / "untrained.pth")


def test_wrappers_and_training_state(tmp_path):
    """URMA wraps the network and adds decoders; trainings add their settings as Python objects."""
    state, logits = draw(partial(caffe, heads=MULTI, main="layer6", branches=2), caffe_input)
    wrapped = {f"module.seg_model.{k}": v for k, v in state.items()}
    wrapped["module.aux_decoders.decoders.0.upsample.conv2d_list.0.weight"] = torch.zeros(5, 2048, 3, 3)
    torch.save({"state_dict": wrapped, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, tmp_path / "w.pth")
    agree(convert_checkpoint(tmp_path / "w.pth", style="urma"), logits, align_corners=True)


def test_student_of_daformer(tmp_path):
    """DAFormer's training saves the student as `model.`, beside the teacher and an ImageNet copy."""
    state, logits = draw(published.daformer, mmseg_input)
    student = {f"model.{k}": v for k, v in state.items()}
    others = {f"{who}.{k}": torch.zeros_like(v) for who in ("ema_model", "imnet_model") for k, v in state.items()}
    torch.save({"state_dict": {**others, **student}}, tmp_path / "w.pth")
    agree(convert_checkpoint(tmp_path / "w.pth", style="mmseg"), logits, align_corners=False)


def test_class_names_of_the_protocols(tmp_path):
    for classes, last_but_one in ((19, "motorcycle"), (16, "motorcycle"), (13, "motorcycle")):
        state, _ = draw(published.daformer_segformer, mmseg_input, classes)
        torch.save(dict(state), tmp_path / "w.pth")
        names = convert_checkpoint(tmp_path / "w.pth").class_names
        assert len(set(names)) == classes
        assert names[0] == "road"
        assert names[-2] == last_but_one
        assert ("train" in names) == (classes == 19)


def test_refusals(tmp_path):
    state, _ = draw(partial(caffe, heads={"layer6": 4}, main="layer6", branches=4), caffe_input)
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="no such style"):
        convert_checkpoint(tmp_path / "w.pth", style="caffe")
    with pytest.raises(ModelError, match="not of --style mmseg"):
        convert_checkpoint(tmp_path / "w.pth", style="mmseg")
    with pytest.raises(ModelError, match="predicts 5 classes, not 19"):
        convert_checkpoint(tmp_path / "w.pth", num_classes=19)
    with pytest.raises(ModelError, match=r"layer5\.conv2d_list"):
        convert_checkpoint(tmp_path / "w.pth", style="ldbe")
    del state["layer3.0.conv2.weight"]
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"1 missing \(backbone\.layer3\.0\.conv2\.weight\)"):
        convert_checkpoint(tmp_path / "w.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"no codebase.*conv\.weight"):
        convert_checkpoint(tmp_path / "other.pth")
