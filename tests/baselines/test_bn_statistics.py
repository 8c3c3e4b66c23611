import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import worlds
from das3.api import adapt
from das3.baselines.bn_statistics import (
    BatchNormStatistics,
    _BatchMoments,
    moments_loss,
    recorded_batch_statistics,
    running_statistics,
)
from das3.norms import batch_norms, reestimate
from das3.stages.choose_transform import ConfidenceStatistics

values = st.lists(st.floats(-50, 50), min_size=4, max_size=4)
spreads = st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4)


def draw(seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def moments(mean, var):
    return BatchNormStatistics(torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64))


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


def test_nothing_is_left_on_the_network():
    network = worlds.pointwise()
    with pytest.raises(KeyError), recorded_batch_statistics(network):
        raise KeyError
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_remembered_moments_are_copies():
    network = worlds.pointwise()
    before = running_statistics(network)
    reestimate(network, [torch.rand(2, 3, 8, 8)])
    (layer,) = batch_norms(network)
    assert torch.equal(before[0].mean, torch.zeros(4))
    assert not torch.equal(layer.running_mean, before[0].mean)


@given(values, spreads, values, spreads)
def test_the_loss_is_the_integral_it_stands_for(mean, var, mean_s, var_s):
    """The Bhattacharyya distance is −log ∫ sqrt(p q); for normal densities both sides are known in float64."""
    terms = []
    for m, v, n, w in zip(mean, var, mean_s, var_s, strict=True):
        v, w = v + 1e-5, w + 1e-5
        overlap = math.sqrt(2 * math.sqrt(v * w) / (v + w))  # its exponent is left out: it would underflow
        terms.append((m - n) ** 2 / (4 * (v + w)) - math.log(overlap))
    ours = moments_loss({0: moments(mean, var)}, [moments(mean_s, var_s)])
    assert ours.item() == pytest.approx(sum(terms) / 4, rel=1e-9, abs=1e-9)
    back = moments_loss({0: moments(mean_s, var_s)}, [moments(mean, var)])
    assert ours.item() == pytest.approx(back.item(), rel=1e-9, abs=1e-12)
    assert ours.item() >= -1e-12


def test_the_closed_form_against_quadrature():
    x = np.linspace(-40, 40, 400_001)
    p, q = (np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v) for m, v in ((1.0, 2.0), (-0.5, 5.0)))
    expected = -np.log(np.sum(np.sqrt(p * q)) * (x[1] - x[0]))
    ours = moments_loss({0: moments([1.0], [2.0])}, [moments([-0.5], [5.0])])
    assert ours.item() == pytest.approx(expected, rel=1e-4)


def test_layers_that_were_not_called_do_not_count():
    then = [moments([0.0], [1.0]), moments([9.0], [1.0])]
    assert moments_loss({0: moments([0.0], [1.0])}, then).item() == 0


@pytest.fixture
def shifted():
    """A network that remembers smooth images, and images of noise."""
    torch.manual_seed(0)
    segmenter = worlds.network(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    )
    smooth = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    reestimate(segmenter, [nn.functional.interpolate(smooth, scale_factor=8, mode="bilinear")])
    noise = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(8)]
    return segmenter, noise


def distance(segmenter, images, then):
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with recorded_batch_statistics(segmenter.train()) as now, torch.no_grad():
        segmenter(batch)
    return moments_loss(now, then).item()


def matched(shifted, folder, **options):
    segmenter, images = shifted
    recipe = {"stages": ["match"], "match": {"steps": 30, "lr": 3e-3, **options}, "device": "cpu", "ema_decay": 0.0}
    return adapt(segmenter, images, out=folder, recipe=recipe, quiet=True).segmenter


def test_matching_brings_the_features_to_the_sources_moments_and_leaves_the_classifier(shifted, tmp_path, monkeypatch):
    segmenter, images = shifted
    then = running_statistics(segmenter)
    monkeypatch.setattr(ConfidenceStatistics, "improves_on", lambda self, other, by: True)
    after = matched(shifted, tmp_path / "30")
    still = matched(shifted, tmp_path / "0", steps=0)
    assert distance(after, images, then) < 0.5 * distance(still, images, then)
    (last,) = segmenter.classifier
    assert torch.equal(after.model.get_submodule(last).weight, segmenter.model.get_submodule(last).weight)


def test_what_tells_no_more_is_undone(shifted, tmp_path):
    """No model makes more of noise by all of log C."""
    segmenter, images = shifted
    after = matched(shifted, tmp_path, gain=1.0).state_dict()
    entered = copy.deepcopy(segmenter)
    reestimate(entered, [torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255])
    for name, value in entered.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(after[name], value, msg=name)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1))
def test_to_tell_more_a_model_must_also_be_surer(information, doubt, other, others_doubt, by):
    improves_on = ConfidenceStatistics(information, doubt).improves_on(ConfidenceStatistics(other, others_doubt), by)
    assert improves_on == (information > other + by and doubt < others_doubt)


def test_a_network_without_batch_norm_is_left_as_it_is(tmp_path):
    segmenter = worlds.network(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    images = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(3)]
    after = matched((segmenter, images), tmp_path, gain=-1.0).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in segmenter.state_dict().items())
