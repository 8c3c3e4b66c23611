"""Averages of weights over time, and between two networks, against their definition."""

import numpy as np
import pytest
import torch
from torch import nn

from das3.ema import ExponentialMovingAverage, copy_weights, interpolate_weights


def networks(count):
    for i in range(count):
        torch.manual_seed(i)
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        network(torch.rand(2, 3, 8, 8))
        yield network


def test_even_at_first_then_exponential():
    average = ExponentialMovingAverage(next(networks(1)), 0.75)
    expected = None
    for step, network in enumerate(networks(8), 1):
        average.update(network)
        weight = network[0].weight.detach().double().numpy()
        share = max(0.25, 1 / step)
        expected = weight if expected is None else (1 - share) * expected + share * weight
        np.testing.assert_allclose(average.values["0.weight"], expected, rtol=1e-5, atol=1e-7)
    assert average.values["1.num_batches_tracked"] == 1


def test_what_stays_equal_stays_bit_equal():
    network = next(networks(1))
    average = ExponentialMovingAverage(network, 0.9)
    for _ in range(20):
        average.update(network)
    assert all(torch.equal(value, average.values[name]) for name, value in network.state_dict().items())


def test_it_goes_on_where_it_stopped():
    whole, first, second = (ExponentialMovingAverage(next(networks(1)), 0.8) for _ in range(3))
    for step, network in enumerate(networks(6)):
        whole.update(network)
        (first if step < 3 else second).update(network)
        if step == 2:
            second.load_state_dict(first.state_dict())
    target = next(networks(1))
    second.copy_to(target)
    assert all(torch.equal(value, whole.values[name]) for name, value in target.state_dict().items())


def test_it_follows_tensors_that_a_network_puts_in_place_of_others():
    network = next(networks(1))
    average = ExponentialMovingAverage(network, 0.5)
    for value in (1.0, 2.0, 4.0):
        network[0].weight = nn.Parameter(torch.full_like(network[0].weight, value))
        network[1].running_mean = torch.full((4,), value)
        average.update(network)
    for name in ("0.weight", "1.running_mean"):
        assert torch.equal(average.values[name], torch.full_like(average.values[name], 2.75))  # 1, then 1.5, then 2.75


def test_it_is_of_the_state_dict_where_that_is_not_what_the_layers_hold():
    class Doubled(nn.Linear):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight"] = 2 * destination[f"{prefix}weight"]

    network = nn.Sequential(Doubled(2, 2))
    average = ExponentialMovingAverage(network, 0.5)
    with torch.no_grad():
        network[0].weight.fill_(3.0)
    average.update(network)
    assert torch.equal(average.values["0.weight"], torch.full((2, 2), 6.0))


@pytest.mark.parametrize("source_weight", [0.0, 0.3, 1.0])
def test_weights_are_interpolated(source_weight):
    network, other = networks(2)
    before, after = copy_weights(network), copy_weights(other)
    network.load_state_dict(other.state_dict())
    interpolate_weights(network, before, source_weight)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == after[name]
        else:
            expected = (
                source_weight * before[name].double().numpy() + (1 - source_weight) * after[name].double().numpy()
            )
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_a_copy_stays_when_the_network_is_trained():
    network = next(networks(1))
    before = copy_weights(network)
    with torch.no_grad():
        network[0].weight.add_(1)
    torch.testing.assert_close(before["0.weight"] + 1, network[0].weight)
