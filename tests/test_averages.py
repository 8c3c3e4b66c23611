"""The average of the weights against its definition."""

import numpy as np
import torch
from torch import nn

from das3.averages import WeightAverage


def networks(count):
    for i in range(count):
        torch.manual_seed(i)
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        network(torch.rand(2, 3, 8, 8))
        yield network


def test_even_at_first_then_exponential():
    average = WeightAverage(next(networks(1)), 0.75)
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
    average = WeightAverage(network, 0.9)
    for _ in range(20):
        average.update(network)
    assert all(torch.equal(value, average.values[name]) for name, value in network.state_dict().items())


def test_it_goes_on_where_it_stopped():
    whole, first, second = (WeightAverage(next(networks(1)), 0.8) for _ in range(3))
    for step, network in enumerate(networks(6)):
        whole.update(network)
        (first if step < 3 else second).update(network)
        if step == 2:
            second.load_state_dict(first.state_dict())
    target = next(networks(1))
    second.copy_to(target)
    assert all(torch.equal(value, whole.values[name]) for name, value in target.state_dict().items())
