"""Norm statistics that follow the weights."""

from __future__ import annotations

import torch
from torch import nn

from das3.norms import running_statistics
from das3.selection.carried_statistics import carry_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def put(net: nn.Sequential, images: torch.Tensor) -> None:
    """The statistics of images."""
    features = net[0](images)
    net[1].running_mean.copy_(features.mean(dim=(0, 2, 3)))
    net[1].running_var.copy_(features.var(dim=(0, 2, 3), correction=0))


@torch.no_grad()
def test_statistics_of_the_source_follow_weights_that_scale_and_shift() -> None:
    source, target = torch.rand(8, 3, 6, 6), 0.3 * torch.rand(8, 3, 6, 6)
    net = network()
    put(net, target)
    before = running_statistics(net)
    put(net, source)
    chosen = running_statistics(net)
    net[0].weight.mul_(1.7)
    net[0].bias.mul_(1.7).add_(0.4)
    put(net, source)
    expected = running_statistics(net)[0]
    put(net, target)
    carry_statistics(net, chosen, before)
    found = running_statistics(net)[0]
    torch.testing.assert_close(found.var, expected.var)
    # Means move by what the target's do; the source's, which lie elsewhere, move a little otherwise.
    moved = chosen[0].mean + 0.7 * before[0].mean + 0.4
    torch.testing.assert_close(found.mean, moved)


@torch.no_grad()
def test_untrained_weights_run_on_what_was_chosen() -> None:
    net = network()
    put(net, 0.3 * torch.rand(8, 3, 6, 6))
    before = running_statistics(net)
    chosen = [s._replace(mean=s.mean + 1, var=2 * s.var) for s in before]
    carry_statistics(net, chosen, before)
    torch.testing.assert_close(running_statistics(net)[0], chosen[0])
