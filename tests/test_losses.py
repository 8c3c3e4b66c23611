import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from das3.losses import (
    bidirectional_losses,
    diversity_loss,
    entropy_and_mean_prediction,
    entropy_of_probs,
    focal_entropy,
    focal_entropy_loss,
    mean_prediction,
    mutual_information,
    negative_loss,
    normalized_entropy,
    pairwise_loss,
    positive_loss,
)


def draw_logits(seed, batch=2, classes=5, height=3, width=4, spread=4.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, spread, (batch, classes, height, width)))


def flat(tensor):
    """B×C×H×W to C×N, float64."""
    return tensor.detach().numpy().transpose(1, 0, 2, 3).reshape(tensor.shape[1], -1).astype(np.float64)


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(2, 21))
def test_entropy_equals_reference_and_lies_in_unit_interval(seed, classes):
    logits = draw_logits(seed, classes=classes)
    expected = reference.entropy(reference.softmax(flat(logits)))
    ours = normalized_entropy(logits)
    np.testing.assert_allclose(ours.flatten(), expected, atol=1e-12)
    np.testing.assert_allclose(entropy_of_probs(logits.softmax(1)).flatten(), expected, atol=1e-12)
    assert ours.min() >= 0
    assert ours.max() <= 1 + 1e-12


def test_entropy_of_certain_and_of_uniform_pixels():
    logits = torch.tensor([[0.0, 500.0], [0.0, 0.0], [0.0, 0.0]]).T.reshape(1, 2, 3, 1).repeat(1, 1, 1, 1)
    assert normalized_entropy(torch.zeros(1, 7, 1, 1)).item() == pytest.approx(1)
    assert normalized_entropy(logits)[0, 0, 0].item() == pytest.approx(0, abs=1e-6)
    assert entropy_of_probs(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).item() == 0


@given(seeds, st.floats(0, 8), st.floats(0.01, 3))
def test_focal_entropy_equals_reference(seed, gamma, alpha):
    logits = draw_logits(seed)
    expected = reference.focal_entropy(reference.softmax(flat(logits)), alpha, gamma)
    assert focal_entropy_loss(logits, gamma=gamma, alpha=alpha).item() == pytest.approx(expected, rel=1e-9)


@given(seeds, st.floats(0, 5))
def test_diversity_equals_reference(seed, entropy_weight):
    logits = draw_logits(seed)
    expected = reference.mean_prediction(reference.softmax(flat(logits)), entropy_weight)
    mean = mean_prediction(logits, entropy_weight=entropy_weight)
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    assert diversity_loss(mean).item() == pytest.approx(reference.diversity(expected), rel=1e-9)


def test_diversity_is_lowest_at_equal_shares_and_with_a_prior_at_the_prior():
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert diversity_loss(equal) < diversity_loss(prior)
    assert diversity_loss(prior, prior).item() == pytest.approx(0, abs=1e-12)
    assert diversity_loss(equal, prior) > 0


@given(seeds, st.floats(0, 1))
def test_positive_equals_reference(seed, unlabelled):
    logits, rng = draw_logits(seed), np.random.default_rng(seed)
    labels = np.where(rng.random((2, 3, 4)) < unlabelled, 255, rng.integers(0, 5, (2, 3, 4)))
    expected = reference.cross_entropy(reference.softmax(flat(logits)), labels.flatten())
    ours = positive_loss(logits, torch.from_numpy(labels))
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seeds, st.sampled_from(["separate", "pooled"]))
def test_negative_equals_reference(seed, form):
    logits = draw_logits(seed, spread=1.0)
    negatives = logits.softmax(1) < 0.05
    expected = reference.negative(reference.softmax(flat(logits)), flat(negatives), form)
    assert negative_loss(logits, negatives, form=form).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


def all_losses(logits, valid=None):
    labels = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long)
    if valid is not None:
        labels[~valid] = 255
    negatives = torch.zeros_like(logits, dtype=torch.bool)
    negatives[:, 1::2] = True
    return {
        "focal": focal_entropy_loss(logits, valid=valid),
        "diversity": diversity_loss(mean_prediction(logits, valid=valid)),
        "positive": positive_loss(logits, labels),
        "negative": negative_loss(logits, negatives, valid=valid),
        "pooled": negative_loss(logits, negatives, valid=valid, form="pooled"),
    }


@given(seeds, st.booleans(), st.sampled_from(["separate", "pooled"]))
def test_losses_that_share_a_softmax_are_the_single_ones(seed, whole, form):
    """Values and gradients, and the gradient of both at once."""
    rng = np.random.default_rng(seed)
    valid = None if whole else torch.from_numpy(rng.random((2, 3, 4)) < 0.7)
    labels = torch.from_numpy(np.where(rng.random((2, 3, 4)) < 0.5, 255, rng.integers(0, 5, (2, 3, 4))))
    labels = labels if valid is None else labels.masked_fill(~valid, 255)
    logits, twin = (draw_logits(seed, spread=1.0).requires_grad_() for _ in range(2))
    negatives = twin.detach().softmax(1) < 0.1
    ours = bidirectional_losses(logits, labels, negatives, valid=valid, form=form)
    wanted = positive_loss(twin, labels), negative_loss(twin, negatives, valid=valid, form=form)
    entropy, mean = entropy_and_mean_prediction(logits, valid=valid)
    ours += focal_entropy(entropy, valid=valid), diversity_loss(mean)
    wanted += focal_entropy_loss(twin, valid=valid), diversity_loss(mean_prediction(twin, valid=valid))
    torch.testing.assert_close(ours, wanted)
    for losses in (ours, wanted):
        (losses[0] + 2 * losses[1] + 3 * losses[2] + 4 * losses[3]).backward()
    torch.testing.assert_close(logits.grad, twin.grad)


def test_a_softmax_that_is_shared_is_kept_once():
    """Of the logits' size autograd keeps one tensor of floats, and of bytes as many as there are classes and pixels."""
    logits = draw_logits(0, height=16, width=16).float().requires_grad_()
    labels, negatives = torch.zeros(2, 16, 16, dtype=torch.uint8), logits.detach() < 0
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append((t.numel(), t.dtype)) or t, lambda t: t):
        torch.stack(bidirectional_losses(logits, labels, negatives)).sum()
        torch.stack([x.sum() for x in entropy_and_mean_prediction(logits)]).sum()
    large = [dtype for numel, dtype in shapes if numel == logits.numel()]
    assert sorted(map(str, large)) == ["torch.bool", "torch.float32", "torch.float32"]


@pytest.mark.parametrize("name", list(all_losses(draw_logits(0))))
def test_gradients(name):
    logits = draw_logits(1, batch=1, classes=4, height=2, width=2, spread=1.0).requires_grad_()
    if name == "diversity":  # the weight is out of the graph on purpose: check at constant weight
        assert torch.autograd.gradcheck(lambda z: diversity_loss(mean_prediction(z, entropy_weight=0.0)), logits)
    else:
        assert torch.autograd.gradcheck(lambda z: all_losses(z)[name], logits)


def test_no_gradient_through_the_diversity_weight():
    logits = draw_logits(2).requires_grad_()
    diversity_loss(mean_prediction(logits, entropy_weight=3.0)).backward()
    weight = torch.exp(-3.0 * normalized_entropy(logits.detach()))
    twin = logits.detach().clone().requires_grad_()
    diversity_loss((weight.unsqueeze(1) * twin.softmax(1)).mean(dim=(0, 2, 3))).backward()
    torch.testing.assert_close(logits.grad, twin.grad)


@settings(max_examples=20)
@given(seeds)
def test_permuting_classes_changes_nothing(seed):
    logits = draw_logits(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(5))
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (2, 3, 4)))
    negatives = logits.softmax(1) < 0.05
    inverse = order.argsort()
    shuffled = logits[:, order]
    torch.testing.assert_close(focal_entropy_loss(shuffled), focal_entropy_loss(logits))
    torch.testing.assert_close(mean_prediction(shuffled), mean_prediction(logits)[order])
    torch.testing.assert_close(positive_loss(shuffled, inverse[labels]), positive_loss(logits, labels))
    torch.testing.assert_close(negative_loss(shuffled, negatives[:, order]), negative_loss(logits, negatives))


@pytest.mark.parametrize("garbage", [1e4, float("nan")])
def test_padding_changes_neither_loss_nor_gradient(garbage):
    logits = draw_logits(3)
    padded = torch.full((2, 5, 5, 6), garbage, dtype=torch.float64)
    padded[..., :3, :4] = logits
    valid = torch.zeros(2, 5, 6, dtype=torch.bool)
    valid[:, :3, :4] = True
    if garbage != garbage:  # NaN would pass through the network anyway; the forward value alone is asked for
        for name in ("focal", "negative", "pooled"):
            assert torch.isfinite(all_losses(padded, valid)[name])
        return
    logits.requires_grad_()
    padded.requires_grad_()
    for name, expected in all_losses(logits).items():
        ours = all_losses(padded, valid)[name]
        torch.testing.assert_close(ours, expected)
        (wanted,) = torch.autograd.grad(expected, logits)
        (got,) = torch.autograd.grad(ours, padded)
        torch.testing.assert_close(got[..., :3, :4], wanted)
        assert (got[~valid.unsqueeze(1).expand_as(got)] == 0).all()


def test_nothing_valid_gives_zero():
    none = torch.zeros(2, 3, 4, dtype=torch.bool)
    assert all(loss == 0 for loss in all_losses(draw_logits(4), none).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = (draw_logits(5) * 10).to(dtype)
    for name, loss in all_losses(logits).items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, all_losses(logits.float())[name])


def test_negative_loss_is_finite_where_the_model_is_certain_of_a_ruled_out_class():
    logits = torch.tensor([100.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    loss = negative_loss(logits, torch.tensor([True, False]).view(1, 2, 1, 1))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def draw_image(seed, batch=2, height=12, width=14):
    """Three flat colours a column each, with a little noise, float64."""
    rng = np.random.default_rng(seed)
    columns = rng.random((batch, 3, 1, 3)).repeat(height, 2).repeat(-(-width // 3), 3)[..., :width]
    return torch.from_numpy(np.clip(0.1 + 0.8 * columns + rng.normal(0, 0.02, columns.shape), 0, 1))


def halved(tensor):
    """B×K×H×W to float64 means of 2×2."""
    return np.stack([tensor.numpy()[..., i::2, j::2] for i in range(2) for j in range(2)]).mean(axis=0)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(0, 5), st.integers(0, 5), st.sampled_from([0.03, 1.0]))
def test_pairwise_equals_reference(seed, above, left, contrast):
    logits, image = draw_logits(seed, height=12, width=14), draw_image(seed)
    valid = torch.zeros(2, 12, 14, dtype=torch.bool)
    valid[0, above:, left:] = True
    valid[1] = True
    expected = reference.pairwise(
        halved(logits.softmax(1)), halved(image), halved(valid.double()[:, None])[:, 0] == 1, contrast
    )
    ours = pairwise_loss(logits, image, valid=valid, contrast=contrast)
    assert expected > 0
    assert ours.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(
        pairwise_loss(logits, image, contrast=contrast),
        pairwise_loss(logits, image, valid=torch.ones_like(valid), contrast=contrast),
    )


def test_pairwise_gradient_goes_to_the_logits_and_skips_padding():
    logits = draw_logits(1, batch=1, classes=3, height=8, width=8, spread=1.0).requires_grad_()
    image = draw_image(1, batch=1, height=8, width=8)
    assert torch.autograd.gradcheck(lambda z: pairwise_loss(z, image), logits)
    (wanted,) = torch.autograd.grad(pairwise_loss(logits, image), logits)
    padded = torch.full((1, 3, 12, 14), 1e4, dtype=torch.float64)
    padded[..., :8, :8] = logits.detach()
    padded.requires_grad_()
    around, valid = torch.ones(1, 3, 12, 14, dtype=torch.float64), torch.zeros(1, 12, 14, dtype=torch.bool)
    around[..., :8, :8], valid[:, :8, :8] = image, True
    ours = pairwise_loss(padded, around, valid=valid)
    torch.testing.assert_close(ours, pairwise_loss(logits, image).detach())
    (got,) = torch.autograd.grad(ours, padded)
    torch.testing.assert_close(got[..., :8, :8], wanted)
    assert not got[..., 8:, :].any()
    assert not got[..., :8, 8:].any()


def test_pairwise_loss_is_small_where_classes_end_at_colour_edges_and_in_noise():
    image = torch.full((1, 3, 16, 24), 0.2)
    image[..., 12:] = 0.7

    def split_at(column):
        logits = torch.zeros(1, 2, 16, 24)
        logits[:, 0, :, :column] = logits[:, 1, :, column:] = 6.0
        return logits

    assert pairwise_loss(split_at(12), image) < 1e-6
    assert pairwise_loss(split_at(16), image) > 0.05
    lined = torch.full((1, 3, 16, 24), 0.5)
    lined[..., 12:14] = 0.9  # equal colours on both sides of a line, one pixel wide at half resolution
    sides = split_at(12)
    sides[..., 12:14] = 0.0
    assert pairwise_loss(sides, lined) < 1e-6
    noise = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert pairwise_loss(split_at(16), noise) < 0.1 * pairwise_loss(split_at(16), image)
    assert pairwise_loss(torch.zeros(1, 2, 16, 24), noise) == 0


def test_pairwise_loss_under_other_illumination_in_half_precision_and_without_valid_pixels():
    logits, image = draw_logits(4, height=12, width=14).float(), draw_image(4).float()
    plain = pairwise_loss(logits, image)
    torch.testing.assert_close(pairwise_loss(logits, (0.5 * (image + 0.05) - 0.05).clamp(min=0)), plain)
    torch.testing.assert_close(pairwise_loss(logits.bfloat16(), image), plain, rtol=0.02, atol=0)
    nowhere = torch.zeros(2, 12, 14, dtype=torch.bool)
    assert pairwise_loss(logits, image, valid=nowhere) == 0
    assert pairwise_loss(logits[..., :3, :2], image[..., :3, :2]) == 0


@given(seeds, st.integers(2, 9), st.integers(1, 5))
def test_mutual_information_is_that_of_image_and_class(seed, classes, count):
    """Against I = Σ p(x, c) log p(c | x) / p(c), as a share of log C."""
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).clip(1e-12)
    marginal = p.mean(axis=0)
    expected = (p * np.log(p / marginal)).sum(axis=1).mean() / np.log(classes)
    entropies = -(p * np.log(p)).sum(axis=1) / np.log(classes)
    assert mutual_information(torch.tensor(p), torch.tensor(entropies)) == pytest.approx(expected, abs=1e-9)
