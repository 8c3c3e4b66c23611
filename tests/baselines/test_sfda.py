"""SFDA: its losses against NumPy, its generator and discriminator."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import reference
from das3.baselines.bn_statistics import recorded_batch_statistics
from das3.baselines.sfda import attention_kl, attentions, dual_attention, easy_and_hard, statistics_loss
from das3.baselines.sfda_networks import Generator, PatchDiscriminator, reverse
from das3.errors import ModelError
from das3.norms import batch_norms, running_statistics
from das3.registry import find_stage
from reference import close, pixels
from worlds import network, pointwise_network, stage_context

pytestmark = pytest.mark.usefixtures("seeded")


def test_statistics_loss():
    segmenter = pointwise_network()
    norm = next(batch_norms(segmenter))
    with torch.no_grad():
        norm.running_mean += 0.5
        norm.running_var += 0.25
    x = torch.randn(3, 4, 5, 6)
    flat = pixels(x)
    expected = ((flat.mean(1) - 0.5) ** 2).sum() + ((flat.var(1) - 1.25) ** 2).sum()
    then = running_statistics(segmenter)
    with recorded_batch_statistics(segmenter) as now:
        norm(x)
    assert statistics_loss(now, then).item() == close(expected)


def test_dual_attention(rng):
    x, y = (torch.from_numpy(rng.normal(size=(2, 3, 2, 2))) for _ in range(2))
    kl = 0.0
    for b in range(2):
        f, g = (t[b].numpy().reshape(3, 4) for t in (x, y))
        # Columns of S and rows of R are distributions.
        spatial, channel = ([reference.softmax(v.T @ v), reference.softmax((v @ v.T).T).T] for v in (f, g))
        np.testing.assert_allclose(attentions(x)[0][b], spatial[0], rtol=1e-6)
        np.testing.assert_allclose(attentions(x)[1][b], spatial[1], rtol=1e-6)
        both = np.concatenate([f @ spatial[0], spatial[1] @ f])
        np.testing.assert_allclose(dual_attention(x)[b], both, rtol=1e-6)
        for p, q, n in zip(spatial, channel, (4, 3), strict=True):
            kl += (p * np.log(p / q)).sum() / n / 2
    assert attention_kl(x, y).item() == close(kl)
    assert attention_kl(x, x).item() == close(0)


def test_patches_are_ranked_place_by_place(rng):
    probs = torch.from_numpy(rng.normal(0, 3, (5, 3, 7, 9))).softmax(1)
    easy, hard, places = easy_and_hard(probs, 2)
    assert easy.shape == hard.shape == (8, 3, 3, 4)
    assert sorted(places.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    for place in range(4):
        top, left = place // 2 * 3, place % 2 * 4
        patches = probs[:, :, top : top + 3, left : left + 4]
        entropies = [reference.entropy(pixels(p[None])).mean() for p in patches]
        order = np.argsort(entropies)
        assert torch.equal(easy[places == place], patches[order[:2].tolist()])
        assert torch.equal(hard[places == place], patches[order[-2:].tolist()])
    assert len(easy_and_hard(probs[:1], 2)[0]) == 0


def test_reversed_gradients():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = reverse(x, 0.5)
    assert torch.equal(x, y)
    (3 * y).sum().backward()
    assert x.grad.tolist() == [-1.5, -1.5]


@pytest.mark.parametrize("size", [(16, 24), (13, 21)])
def test_generator_and_discriminator(size):
    images = Generator(size)(torch.randn(2, 256))
    assert images.shape == (2, 3, *size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert PatchDiscriminator(4, 9)(torch.rand(3, 4, 5, 7), torch.tensor([0, 8, 4])).shape == (3,)


def test_the_generator_seeks_images_on_which_the_models_differ_and_the_segmenter_follows(tmp_path):
    """One step against each gradient alone: the difference grows for the generator and shrinks for the segmenter."""
    segmenter = pointwise_network()
    stage = find_stage("sfda")(find_stage("sfda").Options())
    stage.prepare(stage_context(segmenter, tmp_path, size=(32, 32)))
    with torch.no_grad():
        segmenter.model[3].weight += torch.randn_like(segmenter.model[3].weight)
    segmenter.eval()

    def difference():
        torch.manual_seed(1)
        return stage._transfer(segmenter, torch.randn(2, 4, 16, 16))["output"]

    before = difference()
    before.backward()
    for module, grows in ((stage.generator, True), (segmenter, False)):
        kept = {k: v.clone() for k, v in module.state_dict().items()}
        with torch.no_grad():
            for p in module.parameters():
                p -= 1e-3 * p.grad if p.grad is not None else 0
        assert (difference() > before) == grows
        module.load_state_dict(kept)


def test_generated_images_move_no_running_statistics(tmp_path):
    segmenter = pointwise_network()
    source = copy.deepcopy(segmenter.model[1].running_mean)
    stage = find_stage("sfda")(find_stage("sfda").Options())
    stage.prepare(stage_context(segmenter, tmp_path, size=(32, 32)))
    assert torch.equal(stage.source.model[1].running_mean, source)
    assert not torch.equal(segmenter.model[1].running_mean, source)
    image = torch.rand(2, 3, 8, 8)
    alone = copy.deepcopy(segmenter).train()
    alone(image)
    stage.loss(segmenter.train(), {"image": image, "valid": torch.ones(2, 8, 8, dtype=torch.bool)})
    torch.testing.assert_close(segmenter.model[1].running_mean, alone.model[1].running_mean)
    assert segmenter.model[1].momentum == alone.model[1].momentum


def test_sfda_needs_batch_norm(tmp_path):
    segmenter = network(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.raises(ModelError, match="batch-norm"):
        find_stage("sfda")(find_stage("sfda").Options()).prepare(stage_context(segmenter, tmp_path))
