"""Refining by the image's own colours and edges, against the equations written anew in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from das3.refine import by_colour, by_edges, refined


def scene(seed=0, height=24, width=30):
    """A bright disc (class 1) on dark ground, and a model's blurred idea of it."""
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < 49
    image = np.where(disc, [[[0.8]], [[0.7]], [[0.2]]], [[[0.2]], [[0.3]], [[0.4]]])
    image = image + np.random.default_rng(seed).normal(0, 0.01, image.shape)
    idea = 1 / (1 + np.exp(((rows - height / 2) ** 2 + (columns - width / 2 - 3) ** 2 - 60) / 40))
    return torch.tensor(np.stack([1 - idea, idea])).float(), torch.tensor(image).float().clamp(0, 1), disc


def guided(p, image, radius, epsilon):
    """He et al.'s equations, window by window; p is one class's map."""
    _, height, width = image.shape
    pad = ((0, 0), (radius, radius), (radius, radius))
    guide, target = np.pad(image, pad, mode="edge"), np.pad(p[None], pad, mode="edge")[0]
    side = 2 * radius + 1
    slope, offset = np.zeros((3, height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            colours = guide[:, y : y + side, x : x + side].reshape(3, -1)
            values = target[y : y + side, x : x + side].ravel()
            covariance = np.cov(colours, bias=True) + epsilon * np.eye(3)
            both = (colours * values).mean(axis=1) - colours.mean(axis=1) * values.mean()
            slope[:, y, x] = np.linalg.solve(covariance, both)
            offset[y, x] = values.mean() - slope[:, y, x] @ colours.mean(axis=1)
    slope, offset = np.pad(slope, pad, mode="edge"), np.pad(offset[None], pad, mode="edge")[0]
    fitted = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            mean = slope[:, y : y + side, x : x + side].reshape(3, -1).mean(axis=1)
            fitted[y, x] = mean @ image[:, y, x] + offset[y : y + side, x : x + side].mean()
    return fitted


@pytest.mark.parametrize("radius", [1, 3])
def test_by_edges_equals_the_guided_filter(radius):
    rng = np.random.default_rng(0)
    image, probs = rng.random((3, 9, 11)), rng.dirichlet(np.ones(3), (9, 11)).transpose(2, 0, 1)
    expected = np.stack([guided(p, image, radius, 1e-2) for p in probs]).clip(1e-4)
    ours = by_edges(torch.tensor(probs), torch.tensor(image), radius=radius, epsilon=1e-2)
    np.testing.assert_allclose(ours, expected / expected.sum(axis=0), rtol=1e-5, atol=1e-7)


def test_by_colour_multiplies_by_what_the_colour_is_usually():
    """Two colours far apart: every pixel of a colour is multiplied by the mean prediction of that colour."""
    rng = np.random.default_rng(0)
    dark = rng.random((60, 60)) < 0.6
    probs = torch.tensor(rng.dirichlet([2, 1, 1], (60, 60)).transpose(2, 0, 1))
    probs[:, dark] = probs[:, dark].roll(1, 0)
    image = torch.tensor(np.where(dark, 0.1, 0.9)).expand(3, 60, 60).double()
    ours = by_colour(probs, image)
    usual = probs.mean(dim=(1, 2))
    doubt = 0.002 * 3600
    for where in (torch.tensor(dark), torch.tensor(~dark)):
        q = (probs[:, where].sum(1) + doubt * usual) / (where.sum() + doubt)
        expected = probs[:, where] * (q / usual)[:, None]
        torch.testing.assert_close(ours[:, where], expected / expected.sum(0))


@pytest.mark.parametrize("refine", [by_colour, by_edges, refined])
def test_a_blurred_idea_comes_to_the_disc(refine):
    probs, image, disc = scene()
    before, after = probs.argmax(0).numpy() == disc, refine(probs, image).argmax(0).numpy() == disc
    assert after.mean() > before.mean()


def test_the_disc_is_found():
    probs, image, disc = scene()
    assert (refined(probs, image).argmax(0).numpy() == disc).mean() > 0.99


@pytest.mark.parametrize("refine", [by_colour, by_edges, refined])
@given(seed=st.integers(0, 2**16))
def test_sum_is_one_and_classes_permute(refine, seed):
    rng = np.random.default_rng(seed)
    image = torch.tensor(rng.random((3, 8, 9)))
    probs = torch.tensor(rng.dirichlet(np.full(4, 0.3), (8, 9)).transpose(2, 0, 1))
    ours = refine(probs, image)
    assert (ours >= 0).all()
    torch.testing.assert_close(ours.sum(0), torch.ones(8, 9).double())
    order = torch.tensor(rng.permutation(4))
    torch.testing.assert_close(refine(probs[order], image), ours[order])


@pytest.mark.parametrize("refine", [by_colour, by_edges, refined])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_image_of_one_colour_says_nothing(refine, value):
    """But that probabilities are smoothed where nothing tells pixels apart."""
    probs = torch.tensor([0.7, 0.3, 0.0]).view(3, 1, 1).expand(3, 12, 12)
    torch.testing.assert_close(refine(probs, torch.full((3, 12, 12), value)), probs, atol=2e-4, rtol=0)
