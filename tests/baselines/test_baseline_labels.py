"""The baselines' pseudo labels and mixtures against the same made pixel by pixel."""

import numpy as np
import pytest
import torch
from torch import nn

import reference
from das3.baselines.features import features_and_logits
from das3.baselines.mean_teacher import mix_batch, sure_labels
from das3.baselines.shot import NearestCentroid
from das3.errors import ModelError
from das3.registry import find_stage
from das3.segmenter import Segmenter
from das3.stages.thresholds import confidence_histogram, label_above, normalized_labels, thresholds_of
from reference import B, C, H, W, close, pixels
from worlds import pointwise_network, stage_context

pytestmark = pytest.mark.usefixtures("seeded")


def test_thresholds_over_the_data_set(rng):
    images = [torch.from_numpy(rng.normal(0, 6, (C, H, W))).softmax(0) for _ in range(20)]
    images = [torch.cat([p[:-1] + p[-1], torch.zeros_like(p[-1:])]) for p in images]  # the last class wins nowhere
    images = [p / p.sum(0) for p in images]
    histogram = confidence_histogram(torch.stack(images)).sum(dim=0)
    confidence = torch.stack([p.max(0).values for p in images]).numpy().flatten()
    prediction = torch.stack([p.argmax(0) for p in images]).numpy().flatten()
    for top_fraction in (0.2, 0.5, 1.0):
        exact = reference.thresholds(confidence, prediction, top_fraction, C)
        found = thresholds_of(histogram, top_fraction).numpy()
        assert found[-1] == 1
        # To within half a percent of the distance to 1.
        np.testing.assert_allclose(1 - found[:-1], 1 - exact[:-1], rtol=5e-3, atol=1e-6)
        for c in range(C - 1):
            kept = confidence[prediction == c] >= found[c]
            assert top_fraction <= kept.mean() + 1e-9
            assert kept.mean() <= top_fraction + 0.05


def test_class_normalized_labels(logits):
    probs = (logits[0] / 3).softmax(0)
    thresholds = torch.tensor([0.9, 0.5, 0.2, 0.99, 0.7])
    p = pixels(probs[None])
    normalized, plain = [], []
    for i in range(p.shape[1]):
        ratios = [p[c, i] / float(thresholds[c]) for c in range(C)]
        normalized.append(int(np.argmax(ratios)) if max(ratios) >= 1 else 255)
        best = int(p[:, i].argmax())
        plain.append(best if p[best, i] >= float(thresholds[best]) else 255)
    assert normalized_labels(probs, thresholds).flatten().tolist() == normalized
    assert label_above(probs, thresholds).flatten().tolist() == plain
    assert normalized != plain


def test_shot_labels_by_the_nearest_centroid(tmp_path):
    """The authors' procedure with all features in memory."""
    segmenter = pointwise_network().eval()
    with torch.no_grad():
        segmenter.model[3].weight *= 20
    context = stage_context(segmenter, tmp_path)
    stage = find_stage("shot")(find_stage("shot").Options())
    stage.prepare(context)
    assert not segmenter.training
    features, logits = zip(*(features_and_logits(segmenter, b) for b in context.batches()), strict=True)
    f = np.concatenate([pixels(x) for x in features], axis=1).T
    f = np.concatenate([f, np.ones((len(f), 1))], axis=1)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    weight = np.concatenate([pixels(z.softmax(1)) for z in logits], axis=1).T
    prediction = weight.argmax(axis=1)
    for _ in range(2):
        centroids = weight.T @ f / np.maximum(weight.sum(axis=0), 1e-8)[:, None]
        cosine = f @ centroids.T / np.maximum(np.linalg.norm(centroids, axis=1), 1e-8)
        cosine[:, np.bincount(prediction, minlength=3) == 0] = -1
        prediction = cosine.argmax(axis=1)
        weight = np.eye(3)[prediction]
    found = np.concatenate([stage.pseudo_labels[i]["labels"].flatten() for i in range(3)])
    assert (found == prediction).mean() > 0.999
    assert len(set(prediction)) > 1


def test_shot_needs_a_feature_map(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.first(x.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, x.shape[2:])

    segmenter = Segmenter(Tokens(), example_size=(8, 8))
    with pytest.raises(ModelError, match="last"):
        NearestCentroid(segmenter).fit(stage_context(segmenter, tmp_path), hard=False)


def test_confident_labels(logits, valid):
    labels, sure = sure_labels(logits.softmax(1), valid, 0.6)
    p, keep = pixels(logits.softmax(1)), valid.numpy().flatten()
    assert labels.flatten().tolist() == [int(c) if k else 255 for c, k in zip(p.argmax(0), keep, strict=True)]
    assert sure.item() == close((p.max(0)[keep] >= 0.6).mean())


def test_mixtures_hold_half_of_the_classes_of_one_image_over_the_next(rng):
    labels = torch.from_numpy(rng.integers(0, 4, (B, 8, 8)))
    images = torch.arange(B).view(B, 1, 1, 1).expand(B, 3, 8, 8).float()
    mixed, mixed_labels = mix_batch(images, labels, rng)
    for b in range(B):
        after = (b + 1) % B
        pasted = mixed[b, 0] == b
        assert (mixed[b, 0][~pasted] == after).all()
        assert torch.equal(mixed_labels[b], torch.where(pasted, labels[b], labels[after]))
        classes = set(labels[b][pasted].tolist())
        assert len(classes) == 2
        assert not classes & set(labels[b][~pasted].tolist())
