"""The baselines' losses against float64 NumPy, one pixel at a time."""

import numpy as np
import pytest
import torch

import reference
from das3.baselines.cbst import confidence_regularizer
from das3.baselines.hcl import category_loss, historical_consistency, instance_loss
from das3.baselines.ld import complementary_labels
from das3.baselines.maxsquare import max_square_loss
from das3.baselines.shot import information_losses
from das3.baselines.urma import uncertainty_loss
from das3.registry import find_stage
from reference import B, C, H, W, close, pixels
from worlds import pointwise_network, stage_context

pytestmark = pytest.mark.usefixtures("seeded")


def test_maximum_squares(logits, valid):
    plain = weighted = 0.0
    for b in range(B):
        p = pixels(logits[b : b + 1].softmax(1), valid[b])
        prediction, n = p.argmax(axis=0), p.shape[1]
        for i in range(n):
            squares = sum(p[c, i] ** 2 for c in range(C))
            plain -= squares / (2 * n * B)
            weighted -= squares / (2 * B * (prediction == prediction[i]).sum() ** 0.2 * n**0.8)
    assert max_square_loss(logits, valid, ratio=0.0).item() == close(plain)
    assert max_square_loss(logits, valid, ratio=0.2).item() == close(weighted)
    assert max_square_loss(logits, torch.zeros_like(valid), ratio=0.2).item() == 0


def test_information_maximisation(logits, valid):
    p = pixels(logits.softmax(1), valid)
    entropy, diversity = information_losses(logits, valid)
    assert entropy.item() == close(reference.entropy(p).mean() * np.log(C))
    mean = p.mean(axis=1)
    assert diversity.item() == close(sum(m * np.log(m) for m in mean))


@pytest.mark.parametrize("kind", ["kld", "ent"])
def test_confidence_regularizers(logits, valid, kind):
    p = pixels(logits.softmax(1), valid)
    expected = -np.log(p).mean(axis=0) if kind == "kld" else -reference.entropy(p) * np.log(C)
    assert confidence_regularizer(logits, valid, kind).item() == close(expected.mean())
    # Both are least where all classes are equally likely.
    flat = confidence_regularizer(torch.zeros_like(logits), valid, kind)
    assert flat < confidence_regularizer(logits, valid, kind)


def test_uncertainty(logits, valid, rng):
    others = [torch.from_numpy(rng.normal(0, 3, (B, C, H, W))).float().requires_grad_() for _ in range(2)]
    main = logits.requires_grad_()
    p = pixels(main.softmax(1), valid)
    expected = sum(((pixels(z.softmax(1), valid) - p) ** 2).mean() for z in others)
    loss = uncertainty_loss(main, others, valid)
    assert loss.item() == close(expected)
    loss.backward()
    assert main.grad is None
    assert others[0].grad.abs().sum() > 0


@pytest.mark.parametrize("rank", [2, 3, C])
def test_complementary_labels_name_the_class_of_that_rank(logits, rank):
    chosen = pixels(complementary_labels(logits, rank))
    for z, n in zip(pixels(logits).T, chosen.T, strict=True):
        assert n.sum() == 1
        assert sorted(z, reverse=True)[rank - 1] == z[n.argmax()]


def test_instance_discrimination(rng):
    queries, keys = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3))
    reliability, inside = rng.uniform(0.5, 1, (2, 4)), np.array([[True, True, False, True], [True, True, True, True]])
    losses = []
    for b in range(2):
        places = [s for s in range(4) if inside[b, s]]
        for s in places:
            cosine = [
                queries[b, s] @ keys[b, t] / np.linalg.norm(queries[b, s]) / np.linalg.norm(keys[b, t])
                for t in range(4)
            ]
            score = [reliability[b, t] * np.exp(cosine[t] / 0.07) for t in range(4)]
            losses.append(-np.log(score[s] / sum(score[t] for t in places)))
    found = instance_loss(*map(torch.from_numpy, (queries, keys, reliability, inside)), temperature=0.07)
    assert found.item() == close(np.mean(losses))
    nowhere = torch.zeros(2, 4, dtype=torch.bool)
    assert instance_loss(*map(torch.from_numpy, (queries, keys, reliability)), nowhere, 0.07).item() == 0


def test_category_discrimination(logits, valid, rng):
    old = torch.from_numpy(rng.normal(0, 3, (B, C, H, W))).float()
    labels = torch.from_numpy(rng.integers(0, C, (B, H, W))).masked_fill(~valid, 255)
    p, q, y = pixels(logits.softmax(1)), pixels(old.softmax(1)), labels.numpy().flatten()
    agreement = [1 - 1 / (1 + np.exp(-sum(abs(p[c, i] - q[c, i]) for c in range(C)))) for i in range(len(y))]
    found = historical_consistency(logits.softmax(1), old.softmax(1))
    np.testing.assert_allclose(found.flatten(), agreement, rtol=1e-5)
    expected = np.mean([-agreement[i] * np.log(p[y[i], i]) for i in range(len(y)) if y[i] != 255])
    assert category_loss(logits, labels, found).item() == close(expected)


def test_atp_losses(tmp_path, valid, rng):
    segmenter = pointwise_network().eval()
    image = torch.from_numpy(rng.random((B, 3, H, W))).float()
    with torch.no_grad():
        segmenter.model[3].weight *= 10
    p = pixels(segmenter(image).softmax(1), valid)
    align = find_stage("atp-align")(find_stage("atp-align").Options())
    align.prepare(stage_context(segmenter, tmp_path))
    losses = align.loss(segmenter, {"image": image, "valid": valid})
    assert losses["focal_entropy"].item() == close(reference.focal_entropy(p, 1e-3, 5))
    assert losses["diversity"].item() == close(1e-4 * reference.diversity(reference.mean_prediction(p, 3)))
    kind = find_stage("atp-selftrain")
    labels = torch.full((B, H, W), 255)
    batch = {"image": image, "valid": valid, "labels": labels}
    found = kind(kind.Options()).loss(segmenter, batch)
    assert found["negative"].item() == close(reference.negative(p, p < 0.04, "pooled"))
    assert found["negative"] > 0
    assert kind.Options().source_weight == 0  # the release hands on what it trained
    assert kind(kind.Options(pairwise_weight=1.0)).loss(segmenter, batch)["pairwise"] > 0
