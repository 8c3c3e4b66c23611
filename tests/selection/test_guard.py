"""The guard in a run: verdict and statistics in summary.json, collapses taken back, resumed runs choose alike."""

import json
import shutil

import pytest
import torch
from torch import nn

import das3
from das3.errors import DivergedError
from das3.models import load_segmenter
from das3.norms import running_statistics
from das3.selection.candidates import choose
from das3.selection.guard import Guard, StageStopped
from das3.stages.align import Align
from worlds import COLORS, memory_for_one_image, network, stage_context, write_world

OPTIONS = {"device": "cpu", "batch_size": 4, "report": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A source model, images like its source's, and images of a target."""
    from das3.data.open import open_labelled
    from das3.training.supervised import SourceRecipe, train_supervised

    assert set(COLORS) == {"source", "target"}
    root = tmp_path_factory.mktemp("world")
    source = write_world(root / "source", "source", count=12, size=(32, 48))
    write_world(root / "same", "source", count=8, seed=5, size=(32, 48))
    write_world(root / "target", "target", count=8, seed=6, size=(32, 48))
    torch.manual_seed(0)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 8})
    recipe = SourceRecipe(out=str(root / "trained"), steps=60, lr=1e-2, batch_size=4, device="cpu")
    train_supervised(segmenter, open_labelled(source / "images", source / "labels"), recipe, quiet=True)
    return root


def adapt(world, out, domain="same", **options):
    return das3.adapt(world / "trained", world / domain / "images", out=out, quiet=True, **{**OPTIONS, **options})


def weights_of(result):
    return result.model.state_dict()


def test_summary_says_what_was_chosen_and_why(world, tmp_path, capsys):
    short = {"align": {"steps": 6}, "selftrain": {"steps": 9}, "propagate": {"steps": 9}}
    result = das3.adapt(world / "trained", world / "same" / "images", out=tmp_path / "run", **OPTIONS, **short)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    verdict = summary["verdict"]
    names = [c["name"] for c in verdict["candidates"]]
    assert names[0] == "incoming"
    assert {"align", "selftrain"} <= set(names[:-4])
    assert names[-4:] == ["25% of propagate", "50% of propagate", "75% of propagate", "propagate"]
    re_estimated = summary["bn_statistics"]["target_weight"] > 0
    assert any(name.startswith("selftrain at step") for name in names) == re_estimated
    assert verdict["chosen"] in names
    assert verdict["confidence"] in ("high", "medium", "low")
    assert summary["bn_statistics"]["reason"]
    assert result.metrics["verdict"] == verdict
    assert (
        f"verdict: the model is {'changed' if verdict['changed'] else 'unchanged'}"
        in capsys.readouterr().err.replace("\n", " ")
    )


def test_a_model_that_a_rate_far_too_high_ruins_comes_back_as_it_was(world, tmp_path):
    incoming = load_segmenter(world / "trained").model.state_dict()
    result = adapt(world, tmp_path / "run", stages=["minent"], minent={"lr": 1.0, "steps": 30, "bn_mode": "frozen"})
    assert result.metrics["verdict"]["chosen"] == "incoming"
    assert result.metrics["stopped"] or result.metrics["verdict"]["candidates"][-1]["rejected"]
    assert all(torch.equal(value, incoming[name]) for name, value in weights_of(result).items())
    saved = load_segmenter(tmp_path / "run").model.state_dict()
    assert all(torch.equal(value, incoming[name]) for name, value in saved.items())


def test_a_loss_that_is_not_finite_ends_the_stage_and_not_the_run(world, tmp_path, monkeypatch):
    def diverges(*_, **__):
        raise DivergedError("the loss entropy is nan")

    monkeypatch.setattr("das3.training.phases.train", diverges)
    result = adapt(world, tmp_path / "run", stages=["minent"])
    assert "minent was stopped: the loss entropy is nan" in result.metrics["stopped"]
    assert result.metrics["verdict"]["chosen"] in ("incoming", "statistics")
    with pytest.raises(DivergedError):
        adapt(world, tmp_path / "off", stages=["minent"], guard="off")


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_weights_that_give_most_pixels_to_one_class_have_collapsed(taken, tmp_path):
    """Whichever class it is, and whichever it was before."""
    segmenter = network(nn.Conv2d(3, 3, 1))
    other = (taken + 1) % 3
    with torch.no_grad():
        segmenter.model[0].weight.zero_()
        segmenter.model[0].bias.copy_(torch.eye(3)[other])
    guard = Guard("stop", segmenter, stage_context(segmenter, tmp_path), load=dict)
    weights = {name: value.clone() for name, value in segmenter.state_dict().items()}
    guard.check(weights)
    next(value for name, value in weights.items() if name.endswith("bias")).copy_(torch.eye(3)[taken])
    memory_for_one_image(segmenter.model)  # of the batches of two
    with pytest.raises(StageStopped, match="100%"):
        guard.check(weights)


def test_off_hands_back_what_the_last_stage_left_and_stop_does_not_choose(world, tmp_path):
    made = {mode: adapt(world, tmp_path / mode, stages=["bn"], guard=mode) for mode in ("off", "stop")}
    for result in made.values():
        assert result.metrics["verdict"] is None
    last = torch.load(tmp_path / "off" / "checkpoints" / "0-bn.pt", weights_only=True)["segmenter"]
    assert all(torch.equal(value, last[f"model.{name}"]) for name, value in weights_of(made["off"]).items())


def test_a_run_that_stopped_before_the_choice_makes_the_same(world, tmp_path):
    options = {"align": {"steps": 4}, "selftrain": {"steps": 6}, "stages": ["align", "selftrain"], "log_every": 1}
    whole = adapt(world, tmp_path / "whole", domain="target", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for name in ("summary.json", "model"):
        gone = tmp_path / "again" / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    again = adapt(world, tmp_path / "again", domain="target", resume=True, **options)
    assert again.metrics["verdict"] == whole.metrics["verdict"]
    assert all(torch.equal(a, b) for a, b in zip(weights_of(whole).values(), weights_of(again).values(), strict=True))


def test_every_candidate_is_measured_if_asked_for(world, tmp_path):
    from das3.data.open import open_labelled

    labelled = open_labelled(world / "same" / "images", world / "same" / "labels")
    result = adapt(world, tmp_path / "run", stages=["bn"], evaluation=labelled, measure_candidates=True)
    mious = {c["name"]: c["miou"] for c in result.metrics["verdict"]["candidates"]}
    assert mious["incoming"] == pytest.approx(result.metrics["stages"][0]["miou"])
    assert mious[result.metrics["verdict"]["chosen"]] == pytest.approx(result.metrics["miou"])


@pytest.mark.parametrize("norm", [True, False])
def test_the_rule_is_told_whether_norm_statistics_could_be_tried(world, tmp_path, monkeypatch, norm):
    told = []

    def spy(candidates, images, *, statistics_tried):
        told.append(statistics_tried)
        return choose(candidates, images, statistics_tried=statistics_tried)

    monkeypatch.setattr("das3.selection.guard.choose", spy)
    model = (
        load_segmenter(world / "trained").model
        if norm
        else nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    )
    das3.adapt(
        model,
        world / "same" / "images",
        out=tmp_path / "run",
        stages=["align"],
        align={"steps": 2},
        quiet=True,
        **OPTIONS,
    )
    assert told == [norm]


@pytest.mark.parametrize("domain", ["same", "target"])
def test_stage_1_begins_on_the_target_s_statistics_whatever_was_chosen(world, tmp_path, monkeypatch, domain):
    """They are estimated once, for the choice; a new estimate under the same weights would be equal."""
    pairs, prepare = [], Align.prepare

    def watched(stage, context):
        found = running_statistics(context.segmenter)
        context.reestimate_bn()
        pairs.extend(zip(found, running_statistics(context.segmenter), strict=True))
        return prepare(stage, context)

    monkeypatch.setattr(Align, "prepare", watched)
    adapt(world, tmp_path / "run", domain, stages=["align"], align={"steps": 1})
    assert pairs
    for found, expected in pairs:
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.var, expected.var)
