"""Label-free signals against plain float64 references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from das3.selection.signals import (
    COLOR_VIEWS,
    VIEWS,
    Signals,
    ViewPredictions,
    agreement,
    by_matrices,
    class_shares,
    ensemble_agreement,
    measure_color_consistency,
    measure_signals,
    neighbourhood_density,
    share_shift,
    signals_of,
    sure_agreement,
    view_predictions,
)
from worlds import memory_for_one_image


def probs_of(*shape: int, seed: int = 0, sharp: float = 2.0) -> Tensor:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharp * logits).softmax(dim=1)


def test_neighbourhood_density_is_the_mean_entropy_of_similarities() -> None:
    rows = probs_of(12, 4).numpy()
    expected = []
    for i in range(12):
        cosines = [rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]) for j in range(12) if j != i]
        weights = np.exp(np.array(cosines) / 0.05)
        weights /= weights.sum()
        expected.append(-(weights * np.log(weights)).sum())
    assert neighbourhood_density(torch.tensor(rows)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_neighbourhood_density_of_equal_rows_is_its_largest_value() -> None:
    assert neighbourhood_density(torch.full((9, 3), 1 / 3)) == pytest.approx(math.log(8), rel=1e-5)


def test_neighbourhood_density_compares_evenly_spread_rows() -> None:
    rows = probs_of(101, 3)
    assert neighbourhood_density(rows, most=11) == pytest.approx(neighbourhood_density(rows[::10]), rel=1e-6)


def test_agreement_counts_pixels_and_ious() -> None:
    one, other = (torch.randint(0, 5, (2, 6, 7), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    other[other == 4] = 0  # class 4 is seen by one of them alone
    equal = sum(int(a == b) for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))
    ious = []
    for c in range(5):
        pairs = [(a == c, b == c) for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)]
        ious.append(sum(a and b for a, b in pairs) / sum(a or b for a, b in pairs))
    share, miou = agreement(one, other)
    assert share == pytest.approx(equal / one.numel())
    assert miou == pytest.approx(np.mean(ious))
    assert ious[4] == 0


def test_agreement_leaves_out_classes_of_a_few_pixels() -> None:
    one = torch.zeros(40, 50, dtype=torch.long)
    other = one.clone()
    one[:20] = other[:20] = 1
    one[0, :3] = 2  # 3 of 2000 pixels, nowhere in the other
    assert agreement(one, other)[1] == pytest.approx((997 / 1000 + 1) / 2)
    assert agreement(one, other, least=0.0)[1] == pytest.approx((997 / 1000 + 1) / 3)


def test_agreement_where_nothing_counts_is_complete() -> None:
    labels = torch.zeros(2, 3, dtype=torch.long)
    assert agreement(labels, labels + 1, where=torch.zeros(2, 3, dtype=torch.bool)) == (1.0, 1.0)


def test_sure_agreement_looks_at_sure_pixels_alone() -> None:
    incoming, labels = probs_of(2, 3, 5, 4), torch.randint(0, 3, (2, 5, 4), generator=torch.Generator().manual_seed(3))
    hits = total = 0
    for n, y, x in itertools.product(range(2), range(5), range(4)):
        p = incoming[n, :, y, x].tolist()
        if max(p) >= 0.8:
            total += 1
            hits += p.index(max(p)) == labels[n, y, x]
    assert 0 < total < 40
    assert sure_agreement(labels, incoming, sure=0.8) == pytest.approx(hits / total)


def test_shares_and_their_shift() -> None:
    one, other = probs_of(2, 4, 6, 5, seed=4), probs_of(2, 4, 6, 5, seed=5)
    counts = np.bincount(one.numpy().argmax(axis=1).ravel(), minlength=4) / 60
    assert class_shares(one).tolist() == pytest.approx(counts.tolist())
    rest = np.bincount(other.numpy().argmax(axis=1).ravel(), minlength=4) / 60
    assert share_shift(class_shares(one), class_shares(other)) == pytest.approx(np.abs(counts - rest).sum() / 2)


def test_ensemble_agreement_compares_with_the_mean_prediction() -> None:
    candidates = [probs_of(2, 3, 4, 4, seed=s) for s in range(3)]
    mean = np.mean([c.numpy() for c in candidates], axis=0).argmax(axis=1)
    expected = [(c.numpy().argmax(axis=1) == mean).mean() for c in candidates]
    assert [share for share, _ in ensemble_agreement(candidates)] == pytest.approx(expected)


class Brightness(nn.Module):
    """Two classes by brightness and, if asked, by which half of the image it is."""

    def __init__(self, *, half: bool = False) -> None:
        super().__init__()
        self.half, self.norm = half, nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.norm.training
        bright = 20 * (images.mean(dim=1) - 0.5)
        if self.half:
            bright = bright + torch.linspace(-30, 30, images.shape[-1])
        return torch.stack([-bright, bright], dim=1)


def test_a_model_is_consistent_under_what_it_does_not_look_at() -> None:
    images = [torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(6)) for _ in range(2)]
    model = Brightness().train()
    assert measure_color_consistency(model, images) == pytest.approx(measure_signals(model, images).color_consistency)
    plain, half = measure_signals(model, images), measure_signals(Brightness(half=True), images)
    assert model.norm.training  # put back
    assert plain.consistency["mirror"] == plain.consistent_miou["mirror"] == 1
    assert half.consistency["mirror"] < 0.2
    assert 0 < plain.consistency["darker"] < 1


def test_views_lie_on_the_image_and_are_no_larger_than_the_grid() -> None:
    images = [torch.rand(1, 3, 200, 256, generator=torch.Generator().manual_seed(7))]
    found = view_predictions(Brightness(half=True), images)
    assert list(found.labels) == ["plain", *VIEWS]
    assert found.probs[0].shape == (1, 2, 100, 128)
    assert torch.equal(found.probs[0].argmax(dim=1), found.labels["plain"][0])
    assert {tuple(maps[0].shape) for maps in found.labels.values()} == {(1, 100, 128)}
    right = found.labels["smaller"][0][0, :, -10:].float().mean()
    assert right > 0.9


def test_batches_that_do_not_fit_into_the_memory_are_predicted_in_parts() -> None:
    images = [torch.rand(n, 3, 16, 20, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 2)]
    whole = view_predictions(Brightness(half=True), images)
    parts = view_predictions(memory_for_one_image(Brightness(half=True)), images)
    for one, other in zip([whole.probs, *whole.labels.values()], [parts.probs, *parts.labels.values()], strict=True):
        assert list(map(len, one)) == list(map(len, other)) == [3, 1, 2]
        torch.testing.assert_close(torch.cat(other), torch.cat(one))


def test_what_is_finer_than_the_grid_is_averaged() -> None:
    stripes = torch.zeros(2, 3, 64, 512)
    stripes[..., ::4] = 1
    model = Brightness().eval()
    found = view_predictions(model, [stripes])
    bright, dark = (model(torch.full((1, 3, 1, 1), float(v))).softmax(dim=1)[0, 1, 0, 0] for v in (1, 0))
    torch.testing.assert_close(
        found.probs[0][:, 1, 2:-2, 2:-2], torch.full((2, 12, 124), float(bright + 3 * dark) / 4), rtol=0, atol=0.02
    )


@given(
    st.tuples(st.integers(1, 40), st.integers(2, 40)),
    st.tuples(st.integers(1, 40), st.integers(2, 40)),  # PyTorch antialiases wrongly where the result is 1 wide
    st.integers(0, 9),
)
def test_two_matrix_products_resize_as_pytorch_does(before, after, seed):
    images = torch.randn(2, 3, *before, generator=torch.Generator().manual_seed(seed))
    for antialias in (False, True):
        expected = F.interpolate(images.double(), size=after, mode="bilinear", antialias=antialias)
        with torch.autocast("cpu", torch.bfloat16):  # as where signals are measured on a GPU
            found = by_matrices(images, after, antialias)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_signals_are_those_of_all_images_together() -> None:
    probs = [probs_of(2, 3, 5, 4, seed=s).float() for s in (8, 9)]
    labels = {name: [one.argmax(dim=1) for one in probs] for name in ("plain", *VIEWS)}
    found = signals_of(ViewPredictions(probs, labels))
    p = torch.cat(probs).double().numpy()
    entropy = -(p * np.log(p)).sum(axis=1) / np.log(3)
    mean = p.mean(axis=(0, 2, 3))
    assert found.entropy == pytest.approx(entropy.mean(), rel=1e-5)
    assert found.mutual_information == pytest.approx(
        -(mean * np.log(mean)).sum() / np.log(3) - entropy.mean(), rel=1e-4
    )
    assert found.consistency == dict.fromkeys(VIEWS, 1.0)
    assert sum(found.shares) == pytest.approx(1)


def test_color_consistency_is_not_about_mirrors_and_zooms() -> None:
    views = {"mirror": 0.0, "smaller": 0.0, "darker": 0.9, "lighter": 0.8, "warm": 0.5, "cold": 0.6, "grayscale": 0.7}
    assert set(COLOR_VIEWS) < set(views) == set(VIEWS)
    assert Signals(0.1, 0.5, 6.0, views, views, [0.5, 0.5]).color_consistency == pytest.approx(0.7)


def test_tints_change_colour_and_grey_takes_it_out() -> None:
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(10)) * 0.8
    warm, cold, grey = (VIEWS[v](image) for v in ("warm", "cold", "grayscale"))
    assert (warm[:, 0] > image[:, 0]).all()
    assert (warm[:, 2] < image[:, 2]).all()
    assert (cold[:, 2] > image[:, 2]).all()
    assert torch.equal(grey[:, 0], grey[:, 2])
