"""Metrics against the Cityscapes evaluator itself, against plain definitions, and by their properties."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from das3.data.published.classes import CITYSCAPES, SUBSETS
from das3.evaluation.metrics import BoundaryIoU, ConfusionMatrix, gap_closed

CLASSES = 4
SHAPE = (6, 7)
labels = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 2, 3, 255]))
predictions = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, CLASSES - 1))


def counted(*pairs: tuple[np.ndarray, np.ndarray]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(CLASSES)
    for prediction, label in pairs:
        matrix.update(prediction, label)
    return matrix


@given(predictions, labels)
def test_iou_precision_and_recall_are_what_sets_of_pixels_give(prediction: np.ndarray, label: np.ndarray) -> None:
    matrix = counted((prediction, label))
    for c in range(CLASSES):
        truth = label == c
        guess = (prediction == c) & (label != 255)
        for value, part, whole in (
            (matrix.iou()[c], truth & guess, truth | guess),
            (matrix.precision()[c], truth & guess, guess),
            (matrix.recall()[c], truth & guess, truth),
        ):
            expected = part.sum() / whole.sum() if whole.any() else math.nan
            np.testing.assert_allclose(value, expected, rtol=1e-12)
    kept = label != 255
    accuracy = (prediction == label)[kept].mean() if kept.any() else math.nan
    np.testing.assert_allclose(matrix.pixel_accuracy(), accuracy)


@given(predictions, labels, st.permutations(range(CLASSES)))
def test_permuting_classes_permutes_iou(prediction: np.ndarray, label: np.ndarray, order: list[int]) -> None:
    table = np.full(256, 255, np.uint8)
    table[:CLASSES] = order
    before, after = counted((prediction, label)), counted((table[prediction], table[label]))
    np.testing.assert_array_equal(after.iou()[order], before.iou())
    np.testing.assert_allclose(after.miou(), before.miou())


@given(predictions, predictions, labels)
def test_predictions_on_ignored_pixels_change_nothing(one: np.ndarray, other: np.ndarray, label: np.ndarray) -> None:
    elsewhere = np.where(label == 255, other, one)
    np.testing.assert_array_equal(counted((one, label)).counts, counted((elsewhere, label)).counts)
    edges, edges_elsewhere = BoundaryIoU(CLASSES), BoundaryIoU(CLASSES)
    edges.update(one, label)
    edges_elsewhere.update(elsewhere, label)
    np.testing.assert_array_equal(edges.iou(), edges_elsewhere.iou())


@given(predictions, labels, predictions, labels)
def test_counts_of_two_images_are_the_sum(p1: np.ndarray, l1: np.ndarray, p2: np.ndarray, l2: np.ndarray) -> None:
    together = counted((np.concatenate([p1, p2]), np.concatenate([l1, l2])))
    np.testing.assert_array_equal(together.counts, counted((p1, l1), (p2, l2)).counts)
    np.testing.assert_array_equal(together.counts, (counted((p1, l1)) + counted((p2, l2))).counts)


def test_the_perfect_prediction_scores_one_and_counts_exactly() -> None:
    label = np.repeat(np.arange(4, dtype=np.uint8), 9).reshape(6, 6)
    matrix = counted((label, label))
    np.testing.assert_array_equal(matrix.iou(), np.ones(4))
    np.testing.assert_array_equal(matrix.counts, 9 * np.eye(4))
    assert matrix.counts.dtype == np.int64


def test_counts_go_beyond_what_floats_hold() -> None:
    matrix = ConfusionMatrix(1)
    matrix._counts[0] = 2**53
    matrix.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    assert matrix.counts[0, 0] == 2**53 + 1


def test_images_are_counted_in_pieces_without_losing_any(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 4, (2, 31, 17), dtype=np.uint8)
    whole = counted((prediction, label)).counts
    monkeypatch.setattr("das3.evaluation.metrics._AT_ONCE", 10)
    np.testing.assert_array_equal(counted((prediction, label)).counts, whole)


def test_absent_classes_leave_the_mean_and_invented_ones_do_not() -> None:
    label, right = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    assert counted((right, label)).miou() == 1.0
    assert np.isnan(counted((right, label)).iou()[1:]).all()
    invented = right.copy()
    invented[0, 0] = 2
    np.testing.assert_array_equal(counted((invented, label)).iou(), [7 / 8, math.nan, 0, math.nan])
    assert counted((invented, label)).miou() == 7 / 16


def test_nothing_counted_has_no_mean() -> None:
    matrix = counted((np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.pixel_accuracy())


def test_a_subset_of_the_classes_is_averaged_alone_while_the_others_still_take_pixels() -> None:
    label = np.array([[0, 0, 1, 1, 2, 2, 3, 3]], np.uint8)
    prediction = np.array([[0, 3, 1, 1, 2, 0, 3, 3]], np.uint8)
    matrix = counted((prediction, label))
    np.testing.assert_allclose(matrix.iou(), [1 / 3, 1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(matrix.miou([0, 1]), (1 / 3 + 1) / 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_every_integer_type_counts_the_same(dtype: type) -> None:
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 4, SHAPE), rng.choice([0, 1, 2, 3, 255], SHAPE)
    expected = counted((prediction, label)).counts
    np.testing.assert_array_equal(counted((prediction.astype(dtype), label.astype(dtype))).counts, expected)
    assert expected.sum() == (label != 255).sum()


@pytest.mark.parametrize(
    ("prediction", "label", "match"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "differ in shape"),
        (np.full((2, 2), 4), np.zeros((2, 2)), r"0 … 3, found 0 … 4"),
        (np.zeros((2, 2)), np.full((2, 2), -1), r"found -1"),
        (np.full((2, 2), 255), np.zeros((2, 2)), r"found 0 … 255"),
    ],
)
def test_what_can_not_be_counted_is_refused_and_leaves_no_trace(
    prediction: np.ndarray, label: np.ndarray, match: str
) -> None:
    matrix = ConfusionMatrix(CLASSES)
    with pytest.raises(ValueError, match=match):
        matrix.update(prediction.astype(np.int64), label.astype(np.int64))
    assert matrix.counts.sum() == 0


def test_matrices_of_different_classes_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="different classes"):
        ConfusionMatrix(3) + ConfusionMatrix(4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counting_stays_on_the_device() -> None:
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 4, (2, 64, 64), dtype=np.uint8)
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(torch.from_numpy(prediction).cuda(), torch.from_numpy(label))
    assert matrix._counts.is_cuda
    np.testing.assert_array_equal(matrix.counts, counted((prediction, label)).counts)


# --- the Cityscapes evaluator ------------------------------------------------------------------------------------


def scene(rng: np.random.Generator, ids: list[int]) -> np.ndarray:
    """Blocks of label ids, 32×64."""
    return np.kron(rng.choice(ids, (8, 16)), np.ones((4, 4))).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize(
    "case", ["everything occurs", "some labels absent", "absent ones predicted", "ignored labels only in one image"]
)
def test_iou_is_that_of_the_cityscapes_evaluator(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which NumPy 2.4 no longer has
    rng = np.random.default_rng(3)
    every = list(range(34))
    evaluated = [value for value, c in CITYSCAPES.ids.items() if c != 255]
    few = [0, 3, 7, 8, 11, 23]
    shown, guessed = {
        "everything occurs": (every, evaluated),
        "some labels absent": (few, [7, 8, 11, 23]),
        "absent ones predicted": (few, evaluated),
        "ignored labels only in one image": ([0, 1, 2, 3, 4, 5, 6, 9, 10], evaluated),
    }[case]
    table = np.array([CITYSCAPES.ids[value] for value in range(34)], np.uint8)
    matrix, truths, results = ConfusionMatrix(19), [], []
    for i in range(3):
        name = f"aachen_{i:06d}_000019"
        truth = scene(rng, every if case.startswith("ignored") and i == 0 else shown)
        guess = np.where(rng.random(truth.shape) < 0.5, scene(rng, guessed), truth)
        guess = np.where(np.isin(guess, guessed), guess, guessed[0]).astype(np.uint8)
        truths.append(write(tmp_path / "gtFine/val/aachen" / f"{name}_gtFine_labelIds.png", truth))
        write(tmp_path / "gtFine/val/aachen" / f"{name}_gtFine_instanceIds.png", truth.astype(np.uint16))
        results.append(write(tmp_path / "results" / f"{name}_pred.png", guess))
        matrix.update(table[guess], table[truth])
    monkeypatch.setattr(official.args, "JSONOutput", False)
    monkeypatch.setattr(official.args, "quiet", True)
    found = official.evaluateImgLists(results, truths, official.args)
    theirs = np.array([found["classScores"][name] for name in CITYSCAPES.names])
    np.testing.assert_allclose(matrix.iou(), theirs, atol=1e-6)
    assert abs(matrix.miou() - found["averageScoreClasses"]) < 1e-6
    assert np.isnan(theirs).any() == (case == "some labels absent")
    assert (theirs == 0).any() == (case == "absent ones predicted")


def test_the_subsets_are_the_protocols_of_synthia() -> None:
    out = {n: [CITYSCAPES.names[c] for c in range(19) if c not in SUBSETS[n]] for n in (16, 13)}
    assert out[16] == ["terrain", "truck", "train"]
    assert out[13] == ["wall", "fence", "pole", "terrain", "truck", "train"]


# --- edges -------------------------------------------------------------------------------------------------------


def edge_of(mask: np.ndarray, width: int) -> np.ndarray:
    """The paper's: the mask without what is left after `width` erosions, outside the image not being in the mask."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)


@given(predictions, labels, st.sampled_from([0.01, 0.2, 0.35]))
def test_boundary_iou_is_the_papers(prediction: np.ndarray, label: np.ndarray, ratio: float) -> None:
    measured = BoundaryIoU(CLASSES, ratio=ratio)
    measured.update(prediction, label)
    width = max(1, round(ratio * math.hypot(*SHAPE)))
    for c in range(CLASSES):
        truth, guess = (edge_of((x == c) & (label != 255), width) for x in (label, prediction))
        union = (truth | guess).sum()
        expected = (truth & guess).sum() / union if union else math.nan
        np.testing.assert_allclose(measured.iou()[c], expected)


def test_boundary_iou_sees_a_shift_that_iou_hardly_notices() -> None:
    label = np.zeros((100, 100), np.uint8)
    label[20:80, 20:80] = 1
    matrix, edges = ConfusionMatrix(2), BoundaryIoU(2, ratio=0.02)
    shifted = np.roll(label, 2, axis=1)
    matrix.update(shifted, label)
    edges.update(shifted, label)
    assert matrix.iou()[1] > 0.9
    assert edges.iou()[1] < 0.65
    assert edges.miou([1]) == edges.iou()[1]


def test_boundary_iou_counts_255_classes_over_several_images() -> None:
    label = np.arange(255, dtype=np.uint8).reshape(15, 17)
    edges = BoundaryIoU(255)
    edges.update(label, label)
    edges.update(np.zeros_like(label), np.full_like(label, 255))
    np.testing.assert_array_equal(edges.iou(), np.ones(255))
    with pytest.raises(ValueError, match="differ in shape"):
        edges.update(label, label.T)


# --- gap closed --------------------------------------------------------------------------------------------------


def test_gap_closed() -> None:
    assert gap_closed(20, 35, 50) == 0.5
    assert gap_closed(20, 15, 40) == -0.25
    assert gap_closed(20, 55, 50) > 1
    assert gap_closed(20, 30, 20) is None
    assert gap_closed(None, 30, 20) is None
    assert gap_closed(0.2, 0.3, None) is None
