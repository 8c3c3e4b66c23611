"""Networks whose queries predict masks and classes: what their logits mean, and that they are adapted like others."""

import json
import socket

import pytest
import torch
import transformers
from networks import hf_eomt, hf_mask2former, hf_maskformer, hf_oneformer, logits

import worlds
from das3.cli import main
from das3.errors import ModelError
from das3.models import load_segmenter, save_segmenter
from das3.segmenter.mask_classification import mask_queries, semantic_logits
from das3.segmenter.windows import in_windows

FAMILIES = {"maskformer": hf_maskformer, "mask2former": hf_mask2former, "oneformer": hf_oneformer, "eomt": hf_eomt}
STAGES = "align,selftrain,propagate,bn,tent"


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def queries(seed=0, scale=3.0, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 7, classes + 1, generator=generator) * scale,
        torch.randn(2, 7, 6, 8, generator=generator) * scale,
    )


@pytest.mark.parametrize("seed", range(5))
def test_logits_are_those_of_the_papers_semantic_inference(seed):
    """Its scores one pixel at a time, without torch's einsum; what no query claims is doubt."""
    class_logits, mask_logits = queries(seed)
    probs = semantic_logits(class_logits, mask_logits).softmax(1)
    for b, y, x in ((0, 0, 0), (0, 3, 5), (1, 5, 7), (1, 2, 0)):
        scores = [0.0] * 5
        for q in range(7):
            claim = 1 / (1 + float(torch.exp(-mask_logits[b, q, y, x])))
            share = torch.exp(class_logits[b, q]) / torch.exp(class_logits[b, q]).sum()
            scores = [s + claim * float(p) for s, p in zip(scores, share[:-1], strict=True)]
        doubt = max(0.0, 1 - sum(scores))
        wanted = torch.tensor([(s + doubt / 5) / (sum(scores) + doubt) for s in scores])
        torch.testing.assert_close(probs[b, :, y, x], wanted, atol=1e-4, rtol=1e-4)


def test_the_best_class_is_that_of_transformers_own_inference():
    outputs = transformers.models.maskformer.modeling_maskformer.MaskFormerForInstanceSegmentationOutput(
        class_queries_logits=queries()[0], masks_queries_logits=queries()[1]
    )
    theirs = transformers.MaskFormerImageProcessor().post_process_semantic_segmentation(outputs)
    ours = semantic_logits(*mask_queries(outputs)).argmax(1)
    assert torch.equal(torch.stack(theirs), ours)


def test_log_probabilities_are_finite_and_so_are_their_gradients():
    for scale in (1e-3, 30.0, 1e4):
        class_logits, mask_logits = (t.requires_grad_() for t in queries(scale=scale))
        out = semantic_logits(class_logits, mask_logits)
        assert torch.isfinite(out).all()
        torch.testing.assert_close(out.exp().sum(1), torch.ones(2, 6, 8))
        probs = out.softmax(1)
        (-(probs * out.log_softmax(1)).sum() - out.log_softmax(1)[:, 0].sum()).backward()
        assert torch.isfinite(class_logits.grad).all()
        assert torch.isfinite(mask_logits.grad).all()


def test_a_pixel_that_no_query_claims_is_in_doubt_and_learns():
    class_logits, mask_logits = queries()
    mask_logits = torch.full_like(mask_logits, -9.0).requires_grad_()
    out = semantic_logits(class_logits, mask_logits)
    torch.testing.assert_close(out.softmax(1), torch.full_like(out, 0.2), atol=2e-3, rtol=0)
    nothing = torch.zeros(1, 7, 6)
    nothing[..., -1] = 50  # no object, with certainty
    torch.testing.assert_close(semantic_logits(nothing, mask_logits[:1]).softmax(1), torch.full((1, 5, 6, 8), 0.2))
    out.log_softmax(1)[:, 0].sum().backward()
    assert mask_logits.grad.abs().min() > 0


def test_half_precision_loses_nothing():
    class_logits, mask_logits = queries()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = semantic_logits(class_logits, mask_logits)
    assert torch.equal(out, semantic_logits(class_logits, mask_logits))


def test_one_class_is_one_sigmoid_logit(tmp_path):
    torch.manual_seed(0)
    segmenter = load_segmenter(hf_mask2former(classes=1))
    assert segmenter.sigmoid
    assert segmenter.num_classes == 2
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        out = segmenter.model(segmenter.preprocess(images))
    score = torch.einsum(
        "bqc,bqhw->bchw", out.class_queries_logits.softmax(-1)[..., :1], out.masks_queries_logits.sigmoid()
    )
    torch.testing.assert_close(segmenter.native_logits(images).softmax(1)[:, 1:], score.clamp(max=1 - 1e-6))
    again = load_segmenter(save_segmenter(segmenter, tmp_path / "m"))
    assert torch.equal(logits(again, images), logits(segmenter, images))


@pytest.mark.parametrize("name", FAMILIES)
def test_folders_open_with_transformers_and_give_the_same(name, tmp_path, no_network):
    torch.manual_seed(0)
    FAMILIES[name]().save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in")
    assert segmenter.classifier == load_segmenter(FAMILIES[name]()).classifier
    save_segmenter(segmenter, tmp_path / "out")
    theirs = type(segmenter.model).from_pretrained(tmp_path / "out").eval()
    original = type(segmenter.model).from_pretrained(tmp_path / "in").eval()
    for key, value in original.state_dict().items():
        assert torch.equal(theirs.state_dict()[key].float(), value.float()), key  # a loss has a float64 scale
    pixels = torch.rand(1, 3, 96, 96)
    task = {"task_inputs": torch.tensor([TASK])} if name == "oneformer" else {}
    with torch.no_grad():
        out = theirs(segmenter.preprocess(pixels), **task)
        assert torch.equal(semantic_logits(*mask_queries(out)), segmenter.eval().native_logits(pixels))


# Counted by CLIP's own merges: "the", "task", "is", "seman" and "tic", between start and end.
TASK = [49406, 518, 10549, 533, 29119, 1550, 49407] + [0] * 70


def test_oneformer_is_given_its_task_unless_the_caller_gives_one(tmp_path):
    torch.manual_seed(0)
    segmenter = load_segmenter(hf_oneformer())
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model = segmenter.eval().model
        ours, semantic = model(pixels), model(pixels, task_inputs=torch.tensor([TASK, TASK]))
        other = model(pixels, torch.tensor([TASK, TASK]) * 0)
    assert torch.equal(ours.masks_queries_logits, semantic.masks_queries_logits)
    assert not torch.equal(ours.masks_queries_logits, other.masks_queries_logits)
    assert len(load_segmenter(segmenter.model).model._forward_pre_hooks) == 1  # not one more each time


def test_oneformer_that_was_saved_in_training(tmp_path, no_network):
    hf_oneformer(is_training=True, text_encoder_num_layers=1, text_encoder_width=64).save_pretrained(tmp_path / "in")
    segmenter = load_segmenter(tmp_path / "in")
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(logits(segmenter, images), logits(segmenter, images))  # its dropout hangs on that flag too
    save_segmenter(segmenter, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["is_training"]
    assert torch.equal(logits(load_segmenter(tmp_path / "out"), images), logits(segmenter, images))


def test_oneformer_keeps_its_tokenizer_and_its_list_of_classes_without_the_network(tmp_path, no_network):
    hf_oneformer().save_pretrained(tmp_path / "in")
    words = ["<|startoftext|>", "<|endoftext|>", "the</w>", "task</w>", "is</w>", "semantic</w>"]
    letters = list("abcdefghijklmnopqrstuvwxyz") + [f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"]
    merges = ["t h", "th e</w>", "i s</w>", "t a", "s k</w>", "ta sk</w>"]
    tokens = [*words[:2], *letters, "th", "the</w>", "is</w>", "ta", "sk</w>", "task</w>"]
    (tmp_path / "in/vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "in/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "in/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    settings = {"image_processor_type": "OneFormerImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    settings |= {"repo_path": "shi-labs/oneformer_demo", "class_info_file": "ade20k_panoptic.json", "do_resize": False}
    (tmp_path / "in/preprocessor_config.json").write_text(json.dumps(settings))
    segmenter = load_segmenter(tmp_path / "in")
    assert segmenter.preprocess.mean == pytest.approx((0.1, 0.2, 0.3))
    hook = next(iter(segmenter.model._forward_pre_hooks.values()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "in")
    wanted = tokenizer("the task is semantic")["input_ids"]
    assert hook.codes == wanted + [0] * (77 - len(wanted))
    save_segmenter(segmenter, tmp_path / "out")
    saved = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert saved["class_info_file"] == "ade20k_panoptic.json"
    again = load_segmenter(tmp_path / "out")
    assert next(iter(again.model._forward_pre_hooks.values())).codes == hook.codes
    (tmp_path / "in/merges.txt").unlink()
    (tmp_path / "in/tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer can't be opened"):
        load_segmenter(tmp_path / "in")


def test_networks_of_one_size_see_larger_images_in_windows():
    segmenter = load_segmenter(hf_eomt())
    assert (segmenter.divisor, segmenter.square) == (96, True)
    image = torch.rand(1, 3, 96, 230)
    out = logits(segmenter, image)
    assert out.shape == (1, 4, 96, 230)
    for left in (0, 134):
        part = logits(segmenter, image[..., left : left + 96])
        places = slice(0, 60) if left == 0 else slice(36, 96)  # where no other window is
        torch.testing.assert_close(out[..., left : left + 96][..., places], part[..., places])


@pytest.mark.parametrize("size", [(5, 5), (5, 12), (12, 5), (11, 17)])
def test_windows_cover_the_image_and_put_it_together_again(size):
    image, seen = torch.rand(2, 3, *size), []
    out = in_windows(lambda part: seen.append(part.shape[-2:]) or part * 2, image, 5)
    torch.testing.assert_close(out, image * 2)
    assert len(seen) == -(-size[0] // 5) * -(-size[1] // 5)
    assert set(seen) == {(5, 5)}


def test_original_codebases_outputs_are_taken_too():
    class_logits, mask_logits = queries()
    assert mask_queries({"pred_logits": class_logits, "pred_masks": mask_logits, "aux_outputs": []}) is not None
    assert mask_queries({"pred_logits": class_logits, "pred_boxes": class_logits}) is None
    assert mask_queries(torch.zeros(1)) is None


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return worlds.write_world(tmp_path_factory.mktemp("world"), "target", count=2) / "images"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_trains_them_from_the_command_line(name, images, tmp_path, no_network):
    torch.manual_seed(0)
    FAMILIES[name]().save_pretrained(tmp_path / "in")
    given = ["--images", str(images), "--device", "cpu", "--batch-size", "2", "--crop", "32,48", "--quiet"]
    steps = [f"--{stage}.steps=1" for stage in STAGES.split(",") if stage != "bn"]
    run = tmp_path / "run"
    options = ["--stages", STAGES, "--align.lr=0.01", "--guard=off", "--report=false"]
    assert main(["adapt", "--model", str(tmp_path / "in"), "--out", str(run), *options, *steps, *given]) == 0
    rows = json.loads((run / "summary.json").read_text())["stages"]
    assert [row["name"] for row in rows] == ["source", *STAGES.split(",")]
    before, after = load_segmenter(tmp_path / "in"), load_segmenter(run)
    moved = [not torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)]
    assert any(moved)
    theirs = type(after.model).from_pretrained(run / "model")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), after.model.parameters(), strict=True))
    out = tmp_path / "labels"
    assert main(["predict", "--model", str(run), "--images", str(images), "--out", str(out), "--quiet"]) == 0
    assert len(list(out.glob("labels/*.png"))) == 2


def test_stage_one_leaves_class_predictor_and_mask_embedding_as_they_are(images, tmp_path):
    torch.manual_seed(0)
    hf_mask2former().save_pretrained(tmp_path / "in")
    given = ["--images", str(images), "--device", "cpu", "--crop", "32,48", "--quiet", "--stages", "align"]
    run = tmp_path / "run"
    options = ["--align.lr=0.01", "--align.steps=2", "--guard=off", "--report=false"]
    assert main(["adapt", "--model", str(tmp_path / "in"), "--out", str(run), *options, *given]) == 0
    before, after = load_segmenter(tmp_path / "in"), load_segmenter(run)
    pairs = zip(before.classifier_parameters(), after.classifier_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    moved = zip(before.feature_parameters(), after.feature_parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in moved) > 20
