import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from das3.pseudo_labels import (
    adjust_posteriors,
    class_thresholds,
    negative_labels,
    pack_negatives,
    positive_labels,
    unpack_negatives,
)


@st.composite
def predictions(draw, max_classes=9):
    """Probabilities of a small image; coarse logits, so that ties are common."""
    classes = draw(st.integers(2, max_classes))
    shape = (classes, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    logits = draw(hnp.arrays(np.int8, shape, elements=st.integers(-4, 4)))
    return torch.from_numpy(logits.astype(np.float64)).softmax(0)


top_fractions = st.floats(0.01, 1)


@given(predictions(), top_fractions)
def test_thresholds_equal_reference(probs, top_fraction):
    confidence, prediction = probs.max(0)
    ours = class_thresholds(confidence, prediction, top_fraction=top_fraction, num_classes=len(probs))
    expected = reference.thresholds(
        confidence.flatten().tolist(), prediction.flatten().tolist(), top_fraction, len(probs)
    )
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("classes", [255, 256, 257, 300])
def test_thresholds_of_more_classes_than_a_byte_counts(classes):
    rng = np.random.default_rng(classes)
    confidence, prediction = (
        torch.from_numpy(rng.random((2, 1000))),
        torch.from_numpy(rng.integers(0, classes, (2, 1000))),
    )
    ours = class_thresholds(confidence, prediction, top_fraction=0.3, num_classes=classes)
    np.testing.assert_array_equal(
        ours, reference.thresholds(confidence.flatten().tolist(), prediction.flatten().tolist(), 0.3, classes)
    )


@given(predictions(), top_fractions)
def test_no_class_of_an_image_loses_all_its_labels(probs, top_fraction):
    labels = positive_labels(probs, top_fraction=top_fraction)
    kept = set(labels.unique().tolist()) - {255}
    assert kept == set(probs.argmax(0).unique().tolist())


@given(predictions(), top_fractions)
def test_labels_are_the_prediction_and_at_least_the_share_is_kept(probs, top_fraction):
    labels, prediction = positive_labels(probs, top_fraction=top_fraction), probs.argmax(0)
    assert ((labels == 255) | (labels == prediction)).all()
    for c in prediction.unique():
        assert (labels == c).sum() >= np.ceil((prediction == c).sum().item() * top_fraction - 1e-6)
    assert (positive_labels(probs, top_fraction=1.0) == prediction).all()


@given(predictions(), top_fractions, st.integers(0, 2**16))
def test_permuting_classes_permutes_the_labels(probs, top_fraction, seed):
    # A pixel whose two best classes tie may go to either; leave such images out.
    top = probs.sort(dim=0, descending=True).values
    if len(probs) > 1 and (top[0] == top[1]).any():
        return
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(probs)))
    inverse = torch.cat([order.argsort(), torch.full((256 - len(probs),), 255)])
    labels, shuffled = (
        positive_labels(probs, top_fraction=top_fraction),
        positive_labels(probs[order], top_fraction=top_fraction),
    )
    assert (inverse[labels.long()] == shuffled.long()).all()
    assert (negative_labels(probs[order]) == negative_labels(probs)[order]).all()


@given(predictions(), predictions(), top_fractions, st.integers(0, 2**16))
def test_a_batch_is_its_images_one_by_one(one, other, top_fraction, seed):
    height, width = (min(a, b) for a, b in zip(one.shape[1:], other.shape[1:], strict=True))
    classes = min(len(one), len(other))
    batch = torch.stack([p[:classes, :height, :width] for p in (one, other)])
    rng = torch.Generator().manual_seed(seed)
    prior, ratio = torch.rand(classes, 3, 3, generator=rng) + 0.1, torch.rand(classes, generator=rng) + 0.5
    valid = torch.rand(batch[:, 0].shape, generator=rng) < 0.7
    for label in (
        lambda p, v: adjust_posteriors(p, prior, ratio, class_balance=0.5, spatial_prior_weight=0.5),
        lambda p, v: positive_labels(p, top_fraction=top_fraction),
        lambda p, v: positive_labels(p, top_fraction=top_fraction, valid=v),
        lambda p, v: negative_labels(p, threshold=0.3, valid=v),
        lambda p, v: pack_negatives(negative_labels(p, threshold=0.3)),
    ):
        assert torch.equal(label(batch, valid), torch.stack([label(*pair) for pair in zip(batch, valid, strict=True)]))


@given(predictions(), top_fractions)
def test_padding_changes_nothing(probs, top_fraction):
    padded = torch.full((probs.shape[0], probs.shape[1] + 2, probs.shape[2] + 1), 0.9, dtype=torch.float64)
    padded[:, : probs.shape[1], : probs.shape[2]] = probs
    valid = torch.zeros(padded.shape[1:], dtype=torch.bool)
    valid[: probs.shape[1], : probs.shape[2]] = True
    labels = positive_labels(padded, top_fraction=top_fraction, valid=valid)
    assert (labels[valid].view(probs.shape[1:]) == positive_labels(probs, top_fraction=top_fraction)).all()
    assert (labels[~valid] == 255).all()
    negatives = negative_labels(padded, valid=valid)
    assert (negatives[:, valid].view_as(probs) == negative_labels(probs)).all()
    assert not negatives[:, ~valid].any()


@given(predictions(), st.floats(0.001, 0.999))
def test_negatives_never_contain_the_positive_class(probs, threshold):
    negatives = negative_labels(probs, threshold=threshold)
    assert not negatives.gather(0, probs.argmax(0, keepdim=True)).any()
    assert (probs[negatives] < threshold).all()


def test_negatives_of_the_papers_example():
    probs = torch.tensor([0.48, 0.47, 0.02, 0.03]).view(4, 1, 1)
    assert negative_labels(probs).flatten().tolist() == [False, False, True, True]


def test_many_classes_that_are_all_unlikely_keep_the_likeliest():
    probs = torch.full((100, 1, 1), 0.0099)
    probs[42] = 0.0199
    assert not negative_labels(probs)[42].any()
    assert negative_labels(probs).sum() == 99


@given(st.integers(1, 40), st.integers(0, 2**16))
def test_packing_is_lossless(classes, seed):
    negatives = torch.from_numpy(np.random.default_rng(seed).random((classes, 3, 5)) < 0.5)
    planes = pack_negatives(negatives)
    assert planes.dtype == torch.uint8
    assert planes.shape == (-(-classes // 8), 3, 5)
    assert (unpack_negatives(planes, classes) == negatives).all()
    assert (unpack_negatives(torch.stack([planes, planes]), classes)[1] == negatives).all()


@pytest.mark.parametrize("top_fraction", [0.0, -1.0, 1.1])
def test_a_top_fraction_out_of_range(top_fraction):
    with pytest.raises(ValueError, match="top_fraction"):
        positive_labels(torch.rand(2, 3, 3), top_fraction=top_fraction)


@given(predictions(), st.floats(0, 1), st.floats(0, 2), st.integers(0, 2**16))
def test_adjusted_posteriors_equal_reference_and_permute_with_the_classes(probs, balance, weight, seed):
    rng = np.random.default_rng(seed)
    prior = torch.from_numpy(rng.dirichlet(np.ones(len(probs)), probs.shape[1:])).permute(2, 0, 1) + 1e-3
    ratio = torch.from_numpy(rng.uniform(0.2, 5, len(probs)))
    options = {"class_balance": balance, "spatial_prior_weight": weight}
    ours = adjust_posteriors(probs.double(), prior, ratio, **options)
    flat = probs.double().flatten(1).numpy(), prior.flatten(1).numpy(), ratio.numpy()
    theirs = reference.adjust_posteriors(*flat, balance, weight)
    np.testing.assert_allclose(ours, theirs.reshape(probs.shape), rtol=1e-6, atol=1e-12)
    order = torch.from_numpy(rng.permutation(len(probs)))
    again = adjust_posteriors(probs.double()[order], prior[order], ratio[order], **options)
    np.testing.assert_allclose(again, ours[order])


def adjusted(probs, spatial_prior, underprediction_ratio, class_balance=0.0, spatial_prior_weight=0.0):
    return adjust_posteriors(
        probs,
        spatial_prior,
        underprediction_ratio,
        class_balance=class_balance,
        spatial_prior_weight=spatial_prior_weight,
    )


def test_class_balance_raises_an_underpredicted_class_only_where_the_model_is_unsure():
    probs = torch.tensor([[0.99, 0.6], [0.01, 0.4]]).view(2, 1, 2)
    prior, ratio = torch.tensor([0.95, 0.05]).view(2, 1, 1), torch.tensor([0.96, 4.0])
    assert adjusted(probs, prior, ratio).argmax(0).tolist() == [[0, 0]]
    assert adjusted(probs, prior, ratio, class_balance=0.5).argmax(0).tolist() == [[0, 1]]


def test_class_balance_leaves_a_rare_class_alone_that_is_not_underpredicted():
    probs = torch.tensor([0.6, 0.4]).view(2, 1, 1)
    prior = torch.tensor([0.95, 0.05]).view(2, 1, 1)
    torch.testing.assert_close(adjusted(probs, prior, torch.ones(2), class_balance=1), probs)


def test_the_spatial_prior_moves_unsure_pixels_to_the_class_that_is_usual_there():
    """Class 0 is seen above, class 1 below; the model leans to 1 everywhere, surely so in the last column."""
    probs = torch.tensor([0.45, 0.45, 0.05]).expand(4, 3)
    probs = torch.stack([probs, 1 - probs])
    prior = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).view(2, 2, 1)
    assert adjusted(probs, prior, torch.ones(2), spatial_prior_weight=1).argmax(0).tolist() == [
        [0, 0, 1],
        [0, 0, 1],
        [1, 1, 1],
        [1, 1, 1],
    ]


def test_a_spatial_prior_that_is_alike_everywhere_changes_nothing():
    probs = torch.rand(3, 5, 7).softmax(0)
    prior = torch.rand(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(adjusted(probs, prior, torch.rand(3), spatial_prior_weight=1), probs)
