"""The rule that chooses among candidates, and the signals it chooses by."""

import json
from dataclasses import replace

import pytest
import torch

from das3.selection.candidates import Candidate, State, choose, measure_candidates
from das3.selection.signals import Signals
from worlds import pointwise_network

pytestmark = pytest.mark.usefixtures("seeded")
SIGNALS = Signals(0.25, 0.5, 1.0, {"mirror": 1.0}, {"mirror": 0.8}, [0.5, 0.5])


UNTRAINED = {"consistency": 0.8, "share_shift": 0.0, "sure_agreement": 1.0, "agreement": 1.0}


def candidate(name, kind, **changes):
    usual = Candidate(
        name,
        kind,
        SIGNALS,
        consistency=0.87,
        share_shift=0.02,
        sure_agreement=0.98,
        agreement=0.7,
        ensemble_agreement=0.9,
    )
    return replace(usual, **changes)


def incoming(**changes):
    return candidate(
        "incoming", "incoming", consistency=0.8, share_shift=0.0, sure_agreement=1.0, agreement=0.6, **changes
    )


def blends():
    return [candidate(f"{share:.0%}", "blend", share=share) for share in (0.25, 0.5, 0.75)]


def statistics(**changes):
    return candidate(
        "statistics", "statistics", consistency=0.82, share_shift=0.0, sure_agreement=1.0, agreement=1.0, **changes
    )


def test_where_the_target_s_statistics_are_better_the_last_stage_is_handed_back():
    verdict = choose(
        [incoming(), statistics(), *blends(), candidate("align", "stage"), candidate("selftrain", "stage")]
    )
    assert (verdict.chosen, verdict.changed) == ("selftrain", True)


def test_where_the_incoming_model_fits_already_half_of_its_weights_stay():
    verdict = choose([incoming(), *blends(), candidate("align", "stage")])
    assert verdict.chosen == "50%"
    assert "align" in [c["name"] for c in verdict.candidates if c["rejected"]]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"finite": False}, "finite"),
        ({"lost": ["bike", "sign"], "seen": 5}, "bike, sign"),
        ({"share_shift": 0.6}, "60%"),
        ({"sure_agreement": 0.4}, "60%"),
        ({"consistency": 0.6}, "consistent"),
    ],
)
@pytest.mark.parametrize("untrained", [incoming, statistics])
def test_a_candidate_that_is_not_to_be_trusted_is_never_chosen(change, word, untrained):
    wrong = [candidate("50%", "blend", share=0.5, **change), candidate("propagate", "stage", **change)]
    verdict = choose([incoming(), *([statistics()] if untrained is statistics else []), *wrong])
    assert verdict.chosen == untrained().name
    assert verdict.changed == (untrained is statistics)
    reasons = {c["name"]: c["rejected"] for c in verdict.candidates}
    assert word in reasons["propagate"]
    assert word in verdict.reason


@pytest.mark.parametrize(
    "change",
    [
        {"share_shift": 0.2},
        {"sure_agreement": 0.7},
        {"lost": ["pole"], "seen": 7},
        {"consistency": 0.77},
        {"agreement": 0.5},
        {"least_share": 0.7},
    ],
)
def test_more_may_change_where_the_shift_is_large(change):
    trained = [candidate("50%", "blend", share=0.5, **change), candidate("propagate", "stage", **change)]
    assert choose([incoming(), *trained]).chosen == "incoming"
    assert choose([replace(incoming(), consistency=0.7), statistics(), *trained]).chosen == "propagate"


@pytest.mark.parametrize(
    ("came_with", "re_estimated", "trained", "chosen"),
    [
        (0.8, 0.82, 0.8, "propagate"),  # as consistent as the incoming model, and hardly less than before training
        (0.8, 0.82, 0.79, "statistics"),
        (0.7, 0.82, 0.76, "statistics"),
        (0.9, 0.89, 0.89, "incoming"),
        (0.9, 0.89, 0.91, "propagate"),
    ],
)
def test_what_is_less_consistent_than_the_incoming_model_is_not_handed_back(came_with, re_estimated, trained, chosen):
    first, second = replace(incoming(), consistency=came_with), replace(statistics(), consistency=re_estimated)
    assert choose([first, second, candidate("propagate", "stage", consistency=trained)]).chosen == chosen


def test_the_largest_blend_that_may_be_trusted_is_taken():
    trained = [candidate("25%", "blend", share=0.25), candidate("50%", "blend", share=0.5, agreement=0.55)]
    assert choose([incoming(), *trained]).chosen == "25%"


@pytest.mark.parametrize(("quarter", "chosen"), [(0.785, "25%"), (0.77, "incoming")])
def test_half_of_the_weights_must_not_cost_consistency_and_a_quarter_little(quarter, chosen):
    trained = [
        candidate("25%", "blend", share=0.25, consistency=quarter),
        candidate("50%", "blend", share=0.5, consistency=0.795),
        candidate("propagate", "stage"),
    ]
    assert choose([incoming(), *trained]).chosen == chosen


@pytest.mark.parametrize(("images", "chosen"), [(1, "incoming"), (3, "incoming"), (4, "50%"), (None, "50%")])
def test_nothing_that_was_trained_on_three_images_is_trusted(images, chosen):
    verdict = choose([incoming(), *blends()], images)
    assert verdict.chosen == chosen
    if images == 1:
        assert "1 image is too few" in verdict.reason


UNSURE = replace(SIGNALS, entropy=0.3)


@pytest.mark.parametrize(
    ("tried", "signals", "consistency", "chosen"),
    [
        (False, UNSURE, 0.96, "propagate"),
        (False, UNSURE, 0.94, "50%"),
        (False, SIGNALS, 0.96, "50%"),
        (True, UNSURE, 0.96, "50%"),
    ],
)
def test_without_norm_statistics_a_model_that_was_unsure_and_learnt_much_did_not_fit(
    tried, signals, consistency, chosen
):
    trained = [*blends(), candidate("propagate", "stage", consistency=consistency)]
    assert choose([replace(incoming(), signals=signals), *trained], statistics_tried=tried).chosen == chosen


@pytest.mark.parametrize(
    ("change", "chosen"), [({}, "propagate"), ({"share_shift": 0.45}, "75%"), ({"sure_agreement": 0.5}, "75%")]
)
def test_there_the_last_stage_is_judged_as_where_statistics_were_re_estimated(change, chosen):
    trained = [*blends(), candidate("propagate", "stage", consistency=0.96, **change)]
    assert choose([replace(incoming(), signals=UNSURE), *trained], statistics_tried=False).chosen == chosen


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"share_shift": 0.14}, None),
        ({"share_shift": 0.16}, "16%"),
        ({"least_share": 0.76}, None),
        ({"least_share": 0.74}, "74%"),
        ({"consistency": 0.861}, None),
        ({"consistency": 0.859}, "hardly made it more"),
        ({"consistency": 0.881, "sure_agreement": 0.96}, None),
        ({"consistency": 0.879, "sure_agreement": 0.96}, "hardly made it more"),
        ({"signals": replace(SIGNALS, entropy=0.101)}, None),
        ({"signals": replace(SIGNALS, entropy=0.099)}, "sure of nearly everything"),
    ],
)
def test_blends_with_a_stage_that_did_harm_to_a_model_that_fits_are_not_taken(change, word):
    verdict = choose([incoming(), *blends(), candidate("propagate", "stage", **change)])
    assert verdict.chosen == ("incoming" if word else "50%")
    assert word is None or word in {c["name"]: c["rejected"] for c in verdict.candidates}["50%"]


@pytest.mark.parametrize(("images", "chosen"), [(15, "50%"), (16, "propagate")])
def test_few_images_are_learnt_by_heart(images, chosen):
    trained = [*blends(), candidate("propagate", "stage", consistency=0.96)]
    first = replace(incoming(), signals=UNSURE)
    assert choose([first, *trained], images, statistics_tried=False).chosen == chosen


def test_there_no_candidate_may_be_less_consistent():
    trained = [
        candidate("75%", "blend", share=0.75, consistency=0.79),
        candidate("propagate", "stage", share_shift=0.5),
    ]
    trained[-1] = replace(trained[-1], consistency=0.96)
    assert choose([replace(incoming(), signals=UNSURE), *trained], statistics_tried=False).chosen == "incoming"


def test_a_stage_that_fails_leaves_the_one_before_it():
    stages = [candidate("align", "stage"), candidate("selftrain", "stage", share_shift=0.9)]
    assert choose([incoming(), statistics(), *stages]).chosen == "align"


def test_the_verdict_is_json():
    said = json.loads(json.dumps(choose([incoming(), candidate("align", "stage")]).to_dict()))
    assert said["chosen"] == "incoming"
    assert {"name", "kind", "signals", "consistency", "rejected"} <= said["candidates"][1].keys()


def test_signals_of_candidates_are_measured_against_the_untrained_model():
    """The third gives every pixel to one class: the classes that the untrained model saw are lost."""
    segmenter = pointwise_network()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    one_class = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        one_class["model.3.bias"] += torch.tensor([1e3, 0.0, 0.0])
    images = [torch.rand(2, 3, 16, 16), torch.rand(1, 3, 12, 20)]
    states = [State("incoming", "incoming", lambda: before), State("trained", "stage", lambda: one_class)]
    first, second = measure_candidates(segmenter, states, images, ("a", "b", "c"))
    assert (first.share_shift, first.sure_agreement, first.agreement, first.lost) == (0.0, 1.0, 1.0, [])
    assert second.agreement < 0.5
    assert (first.least_share, second.least_share) == (1.0, 0.0)
    shares = torch.tensor(first.signals.shares)
    seen = {name for name, share in zip("abc", shares.tolist(), strict=True) if share > 0.01}
    assert set(second.lost) >= seen - {"a"}
    assert second.share_shift == pytest.approx(1 - shares[0].item(), abs=0.03)


@pytest.mark.parametrize(
    ("agreement", "entropy", "chosen"),
    [(0.74, 0.3, "50%"), (0.72, 0.3, "propagate"), (0.74, 0.32, "propagate")],
)
def test_a_model_that_is_sure_and_keeps_its_labels_fits_whatever_the_statistics_say(agreement, entropy, chosen):
    first = replace(incoming(), agreement=agreement, signals=replace(SIGNALS, entropy=entropy))
    last = candidate("propagate", "stage", consistency=0.88)
    assert choose([first, statistics(), *blends(), last]).chosen == chosen


def test_and_where_nothing_is_to_be_trusted_it_is_handed_back_as_it_came():
    first = replace(incoming(), agreement=0.9, signals=replace(SIGNALS, entropy=0.1))
    assert choose([first, statistics(), candidate("propagate", "stage", lost=["car"])]).chosen == "incoming"


@pytest.mark.parametrize(("share_shift", "chosen"), [(0.24, "propagate"), (0.26, "statistics")])
def test_after_re_estimated_statistics_class_shares_change_less(share_shift, chosen):
    assert choose([incoming(), statistics(), candidate("propagate", "stage", share_shift=share_shift)]).chosen == chosen
