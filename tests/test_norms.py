"""Batch-norm statistics: re-estimated, blended, held, restored."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from das3.norms import batch_norms, needs_reestimation, reestimate, restored_running_statistics, set_norm_mode


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def batches(count=5):
    return list(torch.randn(count, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1)


def test_statistics_are_the_mean_over_the_batches():
    model = network()
    reestimate(model, batches())
    with torch.no_grad():
        outputs = [model[0](b) for b in batches()]
    torch.testing.assert_close(model[1].running_mean, torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0))


@pytest.mark.parametrize("target_weight", [0.0, 0.3, 1.0])
def test_target_weight(target_weight):
    whole, mixed = network(), network()
    reestimate(whole, batches())
    reestimate(mixed, batches(), target_weight=target_weight)
    torch.testing.assert_close(mixed[1].running_mean, target_weight * whole[1].running_mean)
    torch.testing.assert_close(mixed[1].running_var, target_weight * whole[1].running_var + (1 - target_weight))


def test_nothing_but_the_statistics_changes():
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reestimate(model, batches())
    after = model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} <= {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert all(m.training for m in model.modules())
    assert model[1].momentum == 0.1


def test_statistics_are_restored_whatever_happens_in_between():
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with suppress(KeyError), restored_running_statistics(model):
        reestimate(model, batches())
        assert not torch.equal(before["1.running_mean"], model[1].running_mean)
        raise KeyError
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_networks_without_batch_norm_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reestimate(model, batches())
    assert list(batch_norms(model)) == []
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_modes():
    model = network().train()
    set_norm_mode(model, "frozen")
    assert not model[1].training
    assert model[2].training
    set_norm_mode(model, "batch")
    assert model[1].training


@pytest.mark.parametrize(
    ("mode", "earlier", "needed"),
    [
        ("batch", [], True),
        ("batch", ["frozen", "frozen"], True),
        ("batch", ["frozen", "batch"], False),
        ("batch", ["target"], False),
        ("target", [], True),
        ("target", ["batch"], True),
        ("frozen", [], False),
        ("frozen", ["batch"], False),
    ],
)
def test_statistics_are_re_estimated_before_the_first_stage_that_trains_on_batches(mode, earlier, needed):
    assert needs_reestimation(mode, earlier) == needed
