import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from das3.pseudo_labels import (
    adjusted,
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


shares = st.floats(0.01, 1)


@given(predictions(), shares)
def test_thresholds_equal_reference(probs, share):
    confidence, prediction = probs.max(0)
    ours = class_thresholds(confidence, prediction, share=share, num_classes=len(probs))
    expected = reference.thresholds(confidence.flatten().tolist(), prediction.flatten().tolist(), share, len(probs))
    np.testing.assert_array_equal(ours, expected)


@given(predictions(), shares)
def test_no_class_of_an_image_loses_all_its_labels(probs, share):
    labels = positive_labels(probs, share=share)
    kept = set(labels.unique().tolist()) - {255}
    assert kept == set(probs.argmax(0).unique().tolist())


@given(predictions(), shares)
def test_labels_are_the_prediction_and_at_least_the_share_is_kept(probs, share):
    labels, prediction = positive_labels(probs, share=share), probs.argmax(0)
    assert ((labels == 255) | (labels == prediction)).all()
    for c in prediction.unique():
        assert (labels == c).sum() >= np.ceil((prediction == c).sum().item() * share - 1e-6)
    assert (positive_labels(probs, share=1.0) == prediction).all()


@given(predictions(), shares, st.integers(0, 2**16))
def test_permuting_classes_permutes_the_labels(probs, share, seed):
    # A pixel whose two best classes tie may go to either; leave such images out.
    top = probs.sort(dim=0, descending=True).values
    if len(probs) > 1 and (top[0] == top[1]).any():
        return
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(probs)))
    inverse = torch.cat([order.argsort(), torch.full((256 - len(probs),), 255)])
    labels, shuffled = positive_labels(probs, share=share), positive_labels(probs[order], share=share)
    assert (inverse[labels.long()] == shuffled.long()).all()
    assert (negative_labels(probs[order]) == negative_labels(probs)[order]).all()


@given(predictions(), shares)
def test_padding_changes_nothing(probs, share):
    padded = torch.full((probs.shape[0], probs.shape[1] + 2, probs.shape[2] + 1), 0.9, dtype=torch.float64)
    padded[:, : probs.shape[1], : probs.shape[2]] = probs
    valid = torch.zeros(padded.shape[1:], dtype=torch.bool)
    valid[: probs.shape[1], : probs.shape[2]] = True
    labels = positive_labels(padded, share=share, valid=valid)
    assert (labels[valid].view(probs.shape[1:]) == positive_labels(probs, share=share)).all()
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


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match="share"):
        positive_labels(torch.rand(2, 3, 3), share=share)


@given(predictions(), st.floats(0, 1), st.floats(0, 2), st.integers(0, 2**16))
def test_adjusted_equals_reference_and_permutes_with_the_classes(probs, balance, place, seed):
    rng = np.random.default_rng(seed)
    layout = torch.from_numpy(rng.dirichlet(np.ones(len(probs)), probs.shape[1:])).permute(2, 0, 1) + 1e-3
    underprediction_ratio = torch.from_numpy(rng.uniform(0.2, 5, len(probs)))
    ours = adjusted(probs.double(), layout, underprediction_ratio, balance=balance, place=place)
    flat = probs.double().flatten(1).numpy(), layout.flatten(1).numpy(), underprediction_ratio.numpy()
    theirs = reference.adjusted(*flat, balance, place)
    np.testing.assert_allclose(ours, theirs.reshape(probs.shape), rtol=1e-6, atol=1e-12)
    order = torch.from_numpy(rng.permutation(len(probs)))
    again = adjusted(probs.double()[order], layout[order], underprediction_ratio[order], balance=balance, place=place)
    np.testing.assert_allclose(again, ours[order])


def test_balance_finds_the_class_that_wins_too_little_where_the_model_is_in_doubt_alone():
    probs = torch.tensor([[0.99, 0.6], [0.01, 0.4]]).view(2, 1, 2)
    layout, underprediction_ratio = torch.tensor([0.95, 0.05]).view(2, 1, 1), torch.tensor([0.96, 4.0])
    assert adjusted(probs, layout, underprediction_ratio, balance=0, place=0).argmax(0).tolist() == [[0, 0]]
    assert adjusted(probs, layout, underprediction_ratio, balance=0.5, place=0).argmax(0).tolist() == [[0, 1]]


def test_balance_leaves_a_rare_class_alone_that_gets_its_due():
    probs = torch.tensor([0.6, 0.4]).view(2, 1, 1)
    layout = torch.tensor([0.95, 0.05]).view(2, 1, 1)
    torch.testing.assert_close(adjusted(probs, layout, torch.ones(2), balance=1, place=0), probs)


def test_place_moves_doubtful_pixels_to_the_class_that_is_usual_there():
    """Class 0 is seen above, class 1 below; the model leans to 1 everywhere, surely so in the last column."""
    probs = torch.tensor([0.45, 0.45, 0.05]).expand(4, 3)
    probs = torch.stack([probs, 1 - probs])
    layout = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).view(2, 2, 1)
    assert adjusted(probs, layout, torch.ones(2), balance=0, place=1).argmax(0).tolist() == [
        [0, 0, 1],
        [0, 0, 1],
        [1, 1, 1],
        [1, 1, 1],
    ]


def test_alike_everywhere_means_unchanged():
    probs = torch.rand(3, 5, 7).softmax(0)
    layout = torch.rand(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(adjusted(probs, layout, torch.rand(3), balance=0, place=1), probs)
