"""One suite that every family of models passes: found, split, run, trained, saved, opened again, also without das3."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import transformers
from networks import NETWORKS, hf_mobilevit, hf_segformer, logits

from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter

MASK_CLASSIFICATION = (
    transformers.MaskFormerForInstanceSegmentation,
    transformers.Mask2FormerForUniversalSegmentation,
    transformers.OneFormerForUniversalSegmentation,
    transformers.EomtForUniversalSegmentation,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family(name, tmp_path):
    torch.manual_seed(0)
    build, classifier = NETWORKS[name]
    segmenter = load_segmenter(build())
    images = torch.rand(2, 3, 41, 58)

    assert list(segmenter.classifier) == classifier
    assert segmenter.num_classes == 4

    # f and g are all parameters, and both learn.
    head, body = list(segmenter.classifier_parameters()), list(segmenter.feature_parameters())
    assert {id(p) for p in head} | {id(p) for p in body} == {id(p) for p in segmenter.parameters()}
    assert not {id(p) for p in head} & {id(p) for p in body}
    segmenter.train()
    out = segmenter(images)
    assert out.shape == (2, 4, 41, 58)
    assert out.dtype == torch.float32
    out.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head)
    with_gradient = [p for p in body if p.grad is not None]
    assert sum(bool(p.grad.abs().sum() > 0) for p in with_gradient) > 0.5 * len(with_gradient) > 1
    segmenter.zero_grad()

    before = logits(segmenter, images)
    assert torch.isfinite(before).all()
    folder = save_segmenter(segmenter, tmp_path / "model", state_dict=True)
    state = torch.load(folder / "model.pt", weights_only=True)
    assert list(state) == list(segmenter.model.state_dict())
    if name.startswith("torchvision:"):  # came in as an object, so the folder alone can't be opened
        with pytest.raises(ModelError, match="--weights"):
            load_segmenter(folder)
        again = load_segmenter(name, weights=folder)
    else:
        again = load_segmenter(folder)
    assert torch.equal(logits(again, images), before)
    for attribute in ("classifier", "preprocess", "class_names", "divisor", "square", "align_corners", "output_key"):
        assert getattr(again, attribute) == getattr(segmenter, attribute)

    composed = isinstance(segmenter.model, MASK_CLASSIFICATION)  # in test_mask_classification.py
    their_own = {"hf": transformers.AutoModelForSemanticSegmentation, "smp": smp}.get(name.split(":")[0])
    if not composed and their_own is not None:
        model = their_own.from_pretrained(folder).eval()
        pixels = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            theirs = model(segmenter.preprocess(pixels))
            assert torch.equal(
                theirs if isinstance(theirs, torch.Tensor) else theirs.logits, again.native_logits(pixels)
            )


def test_hugging_face_folder_keeps_its_processor(tmp_path):
    hf_segformer().save_pretrained(tmp_path / "in")
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 96}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in")
    assert segmenter.preprocess.size == (64, 96)
    assert segmenter.preprocess.mean == pytest.approx((0.1, 0.2, 0.3))
    assert segmenter.preprocess.input_max == pytest.approx(1)
    save_segmenter(segmenter, tmp_path / "out")
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    save_segmenter(load_segmenter(tmp_path / "in", size=48, std=[1, 2, 3]), tmp_path / "changed")
    changed = transformers.AutoImageProcessor.from_pretrained(tmp_path / "changed")
    assert changed.image_std == pytest.approx([1, 2, 3])
    assert changed.size["shortest_edge"] == 48


@pytest.mark.parametrize(
    "processor",
    [
        transformers.SegformerImageProcessor(do_resize=False),
        transformers.SegformerImageProcessor(do_resize=False, do_rescale=False, image_mean=[120, 110, 100]),
        transformers.SegformerImageProcessor(do_resize=False, do_normalize=False),
    ],
)
def test_hugging_face_processor_and_segmenter_see_the_same_pixels(processor, tmp_path):
    hf_segformer().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = load_segmenter(tmp_path).preprocess(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-5)


def test_hugging_face_channel_order(tmp_path):
    """MobileViT takes BGR in [0, 1], not normalised."""
    hf_mobilevit().save_pretrained(tmp_path)
    processor = transformers.MobileViTImageProcessor(do_resize=False, do_center_crop=False)
    processor.save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = load_segmenter(tmp_path).preprocess(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_hugging_face_class_names(tmp_path):
    model = hf_segformer(3)
    model.config.id2label = {0: "sea", 1: "land", 2: "air"}
    model.save_pretrained(tmp_path / "in")
    assert load_segmenter(tmp_path / "in").class_names == ("sea", "land", "air")
    save_segmenter(load_segmenter(tmp_path / "in", class_names=["a", "b", "c"]), tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "a", 1: "b", 2: "c"}
    assert load_segmenter(tmp_path / "out").class_names == ("a", "b", "c")


def test_half_precision_weights_are_trained_in_float32(tmp_path):
    hf_segformer().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_segmenter(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "build", [lambda: smp.FPN("resnet18", encoder_weights=None, classes=1), lambda: hf_segformer(1)]
)
def test_binary_model_comes_back_with_one_logit(build, tmp_path):
    build().save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in", num_classes=2)
    images = torch.rand(1, 3, 64, 64)
    probs = segmenter.native_logits(images).softmax(1)
    assert segmenter.num_classes == 2
    with torch.no_grad():
        out = segmenter.model(segmenter.preprocess(images))
    z = out if isinstance(out, torch.Tensor) else out.logits
    assert z.shape[1] == 1
    torch.testing.assert_close(probs[:, 1:], z.sigmoid())
    save_segmenter(segmenter, tmp_path / "out")
    again = load_segmenter(tmp_path / "out")
    assert again.sigmoid
    assert torch.equal(logits(again, images), logits(segmenter, images))


def test_smp_encoder_weights_are_not_downloaded_again(tmp_path):
    model = smp.FPN("resnet18", encoder_weights=None, classes=3)
    model.config["encoder_weights"] = "imagenet"  # as in a model that was trained from them
    model.save_pretrained(tmp_path)
    assert load_segmenter(tmp_path).num_classes == 3


def test_hub_id(tmp_path, monkeypatch):
    import huggingface_hub

    hf_segformer().save_pretrained(tmp_path / "cached")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda i, **_: asked.append(i) or tmp_path / "cached")
    assert load_segmenter("someone/segformer").num_classes == 4
    assert asked == ["someone/segformer"]

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"runs/model: no such folder.*no network"):
        load_segmenter("runs/model")


def test_backbone_without_head_is_refused(tmp_path):
    hf_segformer().segformer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="decode_head"):
        load_segmenter(tmp_path)
