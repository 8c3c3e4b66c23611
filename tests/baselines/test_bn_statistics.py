"""What batch norm sees of a batch, measured, against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

import worlds
from das3.baselines.bn_statistics import _BatchMoments, recorded_batch_statistics
from das3.norms import batch_norms, reestimate, running_statistics


def draw(seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_each_layer_is_measured_as_numpy_does():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).train()
    with recorded_batch_statistics(network) as found:
        network(draw(0, mean=2.0, scale=3.0))
    inputs = draw(0, mean=2.0, scale=3.0), network[1](network[0](draw(0, mean=2.0, scale=3.0)))
    assert list(found) == [0, 1]
    for number, entered in enumerate(inputs):
        channels = entered.detach().double().numpy().transpose(1, 0, 2, 3).reshape(entered.shape[1], -1)
        np.testing.assert_allclose(found[number].mean.detach(), channels.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[number].var.detach(), channels.var(axis=1), rtol=1e-4)


def test_half_precision_is_measured_in_float32_and_its_gradient_is_half():
    half = draw(1, mean=40.0).bfloat16().requires_grad_()
    mean, var = _BatchMoments.apply(half)
    torch.testing.assert_close(var, half.float().var((0, 2, 3), correction=0))
    (mean.sum() + var.sum()).backward()
    assert half.grad.dtype == torch.bfloat16


def test_gradients():
    entered = draw(2)[:, :2, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(_BatchMoments.apply, (entered,))


def test_no_hook_is_left_on_the_network():
    network = worlds.pointwise_network()
    with pytest.raises(KeyError), recorded_batch_statistics(network):
        raise KeyError
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_running_statistics_are_copies():
    network = worlds.pointwise_network()
    before = running_statistics(network)
    reestimate(network, [torch.rand(2, 3, 8, 8)])
    (layer,) = batch_norms(network)
    assert torch.equal(before[0].mean, torch.zeros(4))
    assert not torch.equal(layer.running_mean, before[0].mean)


def test_layers_that_are_not_called_are_left_out_and_of_two_calls_the_last_counts():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)).train()
    with recorded_batch_statistics(network) as found:
        network[1](draw(3))
        network[1](draw(4, mean=5.0))
    assert list(found) == [1]
    torch.testing.assert_close(found[1].mean, draw(4, mean=5.0).mean((0, 2, 3)))
