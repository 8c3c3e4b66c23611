"""The paper's equations written anew in float64 NumPy, one pixel at a time, to check the library against."""

import itertools

import numpy as np
import pytest

B, C, H, W = 3, 5, 4, 6
"""Shape of the fixture `logits`."""


def pixels(tensor, keep=None):
    """B×K×H×W to K×N float64, those that count."""
    flat = tensor.detach().double().numpy().transpose(1, 0, 2, 3).reshape(tensor.shape[1], -1)
    return flat if keep is None else flat[:, keep.numpy().flatten()]


def close(value):
    return pytest.approx(value, rel=1e-5, abs=1e-7)


def softmax(z):
    """z: C×N logits."""
    e = np.exp(z - z.max(axis=0, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


def entropy(p):
    """p: C×N probabilities; N entropies in [0, 1]."""
    total = np.zeros(p.shape[1])
    for c in range(p.shape[0]):
        for i in range(p.shape[1]):
            if p[c, i] > 0:
                total[i] -= p[c, i] * np.log(p[c, i])
    return total / np.log(p.shape[0])


def focal_entropy(p, alpha, gamma):
    h = entropy(p)
    return sum(alpha * (1 - x) ** gamma * x for x in h) / len(h)


def mean_prediction(p, entropy_weight):
    w = np.exp(-entropy_weight * entropy(p))
    return np.array([sum(w[i] * p[c, i] for i in range(p.shape[1])) / p.shape[1] for c in range(p.shape[0])])


def diversity(mean):
    return sum(m * np.log(m) for m in mean if m > 0) / np.log(len(mean))


def adjust_posteriors(p, spatial_prior, underprediction_ratio, class_balance, spatial_prior_weight):
    """p: C×N probabilities; spatial_prior: C×N, how often class c is seen where pixel i is; the ratios: C."""
    classes, pixels = p.shape
    usual = [sum(spatial_prior[c]) / pixels for c in range(classes)]
    raised = np.zeros_like(p)
    for c in range(classes):
        for i in range(pixels):
            by_place = (spatial_prior[c, i] / usual[c]) ** spatial_prior_weight
            raised[c, i] = p[c, i] * by_place * underprediction_ratio[c] ** class_balance
    return np.array([[raised[c, i] / sum(raised[:, i]) for i in range(pixels)] for c in range(classes)])


def cross_entropy(p, labels, ignore=255):
    terms = [-np.log(p[y, i]) for i, y in enumerate(labels) if y != ignore]
    return sum(terms) / len(terms) if terms else 0.0


def negative(p, n, form):
    total = 0.0
    for i in range(p.shape[1]):
        if form == "separate":
            total -= sum(np.log(1 - p[c, i]) for c in range(p.shape[0]) if n[c, i])
        else:
            total -= np.log(1 - sum(p[c, i] for c in range(p.shape[0]) if n[c, i]))
    return total / p.shape[1]


def pairwise(p, x, inside, contrast=0.03):
    """p: B×C×h×w probabilities and x: B×3×h×w colours, both at half resolution; inside: B×h×w. Pixel by pixel."""
    batch, _, height, width = p.shape
    x = np.log(x + 0.05)

    def pairs(b, rows, columns):
        for i in range(height - rows):
            for j in range(width):
                if 0 <= j + columns < width and inside[b, i, j] and inside[b, i + rows, j + columns]:
                    yield (b, slice(None), i, j), (b, slice(None), i + rows, j + columns)

    usual = []
    for b in range(batch):
        steps = [((x[one] - x[other]) ** 2).sum() for o in ((0, 1), (1, 0)) for one, other in pairs(b, *o)]
        usual.append(sum(steps) / max(len(steps), 1))
    means = []
    for rows, columns in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 3), (3, 0), (3, 3), (3, -3)):
        reach = max(rows, columns)
        terms = []
        for b in range(batch):
            for one, other in pairs(b, rows, columns):
                way = [
                    (b, slice(None), one[2] + t * rows // reach, one[3] + t * columns // reach)
                    for t in range(reach + 1)
                ]
                apart = [((x[k] - x[m]) ** 2).sum() for k, m in [(one, other), *itertools.pairwise(way)]]
                kernel = np.exp(-max(apart) / (contrast * usual[b] + 1e-5))
                terms.append(kernel * ((p[one] - p[other]) ** 2).sum())
        means.append(sum(terms) / max(len(terms), 1))
    return sum(means) / len(means)


def thresholds(confidence, prediction, top_fraction, num_classes):
    """λ_c of one image by sorting each class on its own."""
    result = np.full(num_classes, np.inf)
    for c in range(num_classes):
        values = sorted((v for v, k in zip(confidence, prediction, strict=True) if k == c), reverse=True)
        if values:
            result[c] = values[max(1, int(np.ceil(len(values) * top_fraction - 1e-6))) - 1]
    return result
