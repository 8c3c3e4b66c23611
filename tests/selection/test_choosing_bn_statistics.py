"""Batch-norm statistics are chosen by the model's consistency; the source's are kept where in doubt."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from das3.data.open import open_images
from das3.norms import NormStatistics, batch_norms
from das3.selection import bn_statistics
from das3.selection.bn_statistics import appearance_shift, best_weight, choose_bn_statistics, sample_batches
from worlds import network, pointwise_network, stage_context

RECORDED = Path(__file__).parents[2] / "benchmarks" / "strong" / "results"

pytestmark = pytest.mark.usefixtures("seeded")


def choose(segmenter, folder, monkeypatch, consistency, count=6):
    """The choice where the model is as consistent as said at each weight of the target's statistics."""
    target = copy.deepcopy(segmenter)
    stage_context(target, folder / "target", count=count).reestimate_bn()
    source, target = (next(batch_norms(s)).running_mean.clone() for s in (segmenter, target))

    def told(segmenter, batches, rgb):
        moved = next(batch_norms(segmenter)).running_mean - source
        return consistency[round(4 * float((moved / (target - source)).mean()))]

    monkeypatch.setattr(bn_statistics, "measure_color_consistency", told)
    monkeypatch.setattr(bn_statistics, "appearance_shift", lambda source, target: 0.0)
    context = stage_context(segmenter, folder, count=count)
    return choose_bn_statistics(context, sample_batches(context))


@pytest.mark.parametrize(
    ("consistency", "weight"),
    [
        ([0.80, 0.70, 0.60, 0.50, 0.40], 0.0),
        ([0.80, 0.81, 0.82, 0.825, 0.825], 0.0),  # hardly better is not better
        ([0.50, 0.55, 0.58, 0.59, 0.60], 1.0),
        ([0.50, 0.55, 0.70, 0.60, 0.55], 0.5),
        ([0.50, 0.71, 0.70, 0.60, 0.55], 0.25),
        ([0.50, 0.55, 0.70, 0.71, 0.65], 0.75),
        ([0.50, 0.55, 0.60, 0.72, 0.71], 0.75),
        ([0.50, 0.60, 0.60, 0.60, 0.60], 0.25),  # the nearest to the source, where they are equal
    ],
)
def test_the_source_s_statistics_stay_unless_others_are_clearly_more_consistent(
    consistency, weight, tmp_path, monkeypatch
):
    segmenter = pointwise_network()
    source = copy.deepcopy(segmenter)
    choice = choose(segmenter, tmp_path, monkeypatch, consistency)
    assert choice.target_weight == weight
    target = copy.deepcopy(source)
    stage_context(target, tmp_path, count=6).reestimate_bn()
    for chosen, before, after in zip(*(batch_norms(s) for s in (segmenter, source, target)), strict=True):
        torch.testing.assert_close(chosen.running_mean, before.running_mean.lerp(after.running_mean, weight))
        torch.testing.assert_close(chosen.running_var, before.running_var.lerp(after.running_var, weight))
    assert f"{consistency[0]:.3f}" in choice.reason


@pytest.mark.parametrize(
    ("best", "tried"), [(0.0, [0, 0.5, 1]), (0.5, [0, 0.25, 0.5, 0.75, 1]), (1.0, [0, 0.5, 0.75, 1])]
)
def test_no_pass_is_made_far_from_the_best_weight(best, tried):
    asked = []

    def consistency_at(weight):
        asked.append(weight)
        return 1 - abs(weight - best)

    found = bn_statistics.consistency_by_weight(consistency_at)
    assert list(found) == sorted(asked) == tried
    assert found[best] == 1


def test_no_run_on_record_would_choose_another_weight_if_all_were_tried():
    """All five weights were tried in the runs that are on record in benchmarks/strong/results."""
    every = (0.0, 0.25, 0.5, 0.75, 1.0)
    seen = 0
    for file in sorted(RECORDED.glob("*.json")):
        rows = json.loads(file.read_text())
        for row in rows["rows"] if isinstance(rows, dict) else rows:
            told = (row.get("statistics") or {}).get("consistency") or {}
            consistency = {float(weight): value for weight, value in sorted(told.items())}
            if tuple(sorted(consistency)) == every:
                tried = bn_statistics.consistency_by_weight(consistency.__getitem__)
                for shift in (0.0, 1.0):
                    assert best_weight(tried, shift) == best_weight(consistency, shift), (file.name, row["shift"])
                seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    ("target", "shift", "weight"),
    [
        (0.80, 0.01, 0.0),  # images that look like the source's
        (0.80, 0.05, 1.0),  # they don't, and the model is no less consistent
        (0.78, 0.05, 1.0),
        (0.80, 0.02, 0.0),
        (0.80, 0.03, 1.0),
        (0.77, 0.05, 0.0),  # but not at any price
        (0.84, 0.00, 1.0),
    ],
)
def test_images_that_look_unlike_the_source_s_take_the_target_s_statistics(target, shift, weight):
    assert best_weight({0.0: 0.80, 0.5: 0.79, 1.0: target}, shift) == weight


def test_a_model_that_agrees_with_itself_loses_little_and_one_that_does_not_more():
    assert best_weight({0.0: 0.40, 1.0: 0.34}, 0.06) == 1
    assert best_weight({0.0: 0.99, 1.0: 0.96}, 0.06) == 0


def test_appearance_shift_against_numpy(rng):
    layers = [rng.normal(0, 1, (4, 7)) for _ in range(8)]  # mean, log std, and those of the target
    source = [NormStatistics(torch.from_numpy(m), torch.from_numpy(np.exp(2 * s))) for m, s, _, _ in layers]
    target = [NormStatistics(torch.from_numpy(m), torch.from_numpy(np.exp(2 * s))) for _, _, m, s in layers]
    expected = np.mean(
        [
            np.median(((m - n) ** 2 + (np.exp(s) - np.exp(t)) ** 2) / (np.exp(s) * np.exp(t)))
            for m, s, n, t in layers[: bn_statistics.FIRST_LAYERS]
        ]
    )
    assert appearance_shift(source, target) == pytest.approx(expected)
    assert appearance_shift(source, source) == 0


def test_a_few_images_frozen_layers_and_networks_without_batch_norm_keep_what_they_have(tmp_path):
    few = pointwise_network()
    before = copy.deepcopy(few.state_dict())
    context = stage_context(few, tmp_path, count=3)
    choice = choose_bn_statistics(context, sample_batches(context))
    assert choice.target_weight == 0
    assert "3 images are too few" in choice.reason
    assert all(torch.equal(value, before[name]) for name, value in few.state_dict().items())
    frozen = pointwise_network()
    for norm in batch_norms(frozen):
        norm.requires_grad_(False)
    context = stage_context(frozen, tmp_path, count=6)
    assert "frozen" in choose_bn_statistics(context, sample_batches(context)).reason
    without = network(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    context = stage_context(without, tmp_path, count=6)
    assert "no batch-norm" in choose_bn_statistics(context, sample_batches(context)).reason


def test_a_frozen_network_of_inference_is_not_taken_for_frozen_layers(tmp_path):
    segmenter = pointwise_network().requires_grad_(False)
    context = stage_context(segmenter, tmp_path, count=6)
    assert choose_bn_statistics(context, sample_batches(context)).consistency


def test_samples_are_evenly_spread_and_the_same_again(tmp_path):
    context = stage_context(pointwise_network(), tmp_path, count=12)
    one, other = (sample_batches(context, images=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.cat(one), torch.cat(list(context.batches([[0], [3], [6], [9]]))))


@pytest.mark.parametrize("sizes", [[(8, 8)] * 48, [(8, 8), (8, 6)] * 24])
def test_samples_far_apart_come_in_whole_batches(sizes, tmp_path):
    # One by one, candidates of a GPU took three times as long: it had nearly nothing to do.
    context = stage_context(pointwise_network(), tmp_path)
    context.images, context.batch_size = open_images([np.zeros((*size, 3), np.uint8) for size in sizes]), 4
    assert [len(batch) for batch in sample_batches(context, images=16)] == [4, 4, 4, 4]
    context.at_once = lambda groups: [[*groups[0], *groups[1]], *groups[2:]]  # as on a GPU
    assert [len(batch) for batch in sample_batches(context, images=16)] == [8, 4, 4]
