"""Evaluation against the plain count over predictions, at the labels' own size."""

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled
from das3.errors import ModelError
from das3.evaluation.evaluate import evaluate
from das3.evaluation.metrics import BoundaryIoU
from das3.evaluation.predict import predict_labels
from das3.segmenter import Preprocess, Segmenter

COLORS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)


class Reader(nn.Module):
    """Reads the class from the strongest channel: red 0, green 1, blue 2."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, classes, 1)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.eye(classes, 3)[..., None, None] * 9)
            self.classifier.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)


def reader(size: int | None = None, classes: int = 3) -> Segmenter:
    return Segmenter(Reader(classes), preprocess=Preprocess(mean=(0, 0, 0), std=(1, 1, 1), size=size))


@pytest.fixture
def world(tmp_path: Path) -> Labelled:
    """Images that show their labels with some noise; of several sizes, with ignored pixels, without class 2 in one."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i, (height, width) in enumerate(((40, 60), (33, 47), (64, 48))):
        classes = np.kron(rng.integers(0, 2 if i == 1 else 3, (8, 8)), np.ones((8, 8), int))[:height, :width]
        classes = np.pad(classes, ((0, 0), (0, width - classes.shape[1])))
        shown = np.where(rng.random(classes.shape) < 0.2, rng.integers(0, 3, classes.shape), classes)
        label = np.where(rng.random(classes.shape) < 0.1, 255, classes).astype(np.uint8)
        Image.fromarray(COLORS[shown]).save(tmp_path / f"images/{i}.png")
        Image.fromarray(label).save(tmp_path / f"labels/{i}.png")
    return open_labelled(tmp_path / "images", tmp_path / "labels", num_classes=3)


def plainly(labelled: Labelled, model: Segmenter, **options: object) -> list[float]:
    hit, union = np.zeros(3), np.zeros(3)
    for i in range(len(labelled)):
        label = np.asarray(Image.open(labelled.paths[i]))
        guess = predict_labels(model, np.asarray(Image.open(labelled.images.paths[i])), **options)  # type: ignore
        for c in range(3):
            hit[c] += ((label == c) & (guess == c)).sum()
            union[c] += (((label == c) | (guess == c)) & (label != 255)).sum()
    return list(hit / union)


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (0.5, 1.0)}, {"size": 20}, {"tile": 64}])
def test_iou_is_counted_over_the_data_set_at_the_labels_size(world: Labelled, options: dict) -> None:
    model = reader()
    result = evaluate(model, world, **options)
    expected = plainly(world, model, **options)
    np.testing.assert_allclose(list(result.per_class_iou.values()), expected)
    assert list(result.per_class_iou) == ["class 0", "class 1", "class 2"]
    assert result.miou == pytest.approx(np.mean(expected))
    assert 0.3 < result.miou < 0.99
    kept = sum((world.label(i) != 255).sum() for i in range(3))
    assert result.confusion.counts.sum() == kept


def test_the_models_own_input_size_is_used(world: Labelled) -> None:
    assert evaluate(reader(size=16), world).per_class_iou == evaluate(reader(), world, size=16).per_class_iou
    assert evaluate(reader(size=16), world).miou != evaluate(reader(), world).miou


def test_the_mean_over_some_classes_and_edges_where_asked_for(world: Labelled) -> None:
    model = reader()
    whole = evaluate(model, world, boundary=True)
    some = evaluate(model, world, classes=(0, 2))
    assert some.per_class_iou == whole.per_class_iou
    assert some.miou == pytest.approx((whole.per_class_iou["class 0"] + whole.per_class_iou["class 2"]) / 2)
    assert some.boundary is None
    edges = BoundaryIoU(3)
    for i in range(3):
        edges.update(predict_labels(model, world.image(i)), world.label(i))
    assert whole.boundary is not None
    np.testing.assert_array_equal(whole.boundary.iou(), edges.iou())


def test_progress_wraps_the_images(world: Labelled) -> None:
    seen: list[object] = []

    def progress(items: Iterable[int], what: str, total: int) -> Iterable[int]:
        seen.extend([what, total])
        for i in items:
            seen.append(i)
            yield i

    evaluate(reader(), world, progress=progress)
    assert seen == ["evaluating", 3, 0, 1, 2]


def test_the_next_image_and_its_label_are_read_while_one_is_predicted(world: Labelled) -> None:
    read, model, at = [threading.Event() for _ in range(len(world))], reader(), iter(range(1, len(world) + 1))
    label = world.label

    def watched(i: int) -> np.ndarray:
        found = label(i)
        read[i].set()
        return found

    def wait(*_: object) -> None:
        after = next(at)
        assert after == len(world) or read[after].wait(10)

    expected = evaluate(model, world)
    world.label = watched  # type: ignore[method-assign]
    model.model.register_forward_pre_hook(wait)
    np.testing.assert_array_equal(evaluate(model, world).confusion.counts, expected.confusion.counts)


def test_a_user_s_own_images_are_read_by_the_thread_that_asks(world: Labelled) -> None:
    images = [world.image(i) for i in range(len(world))]
    read: list[int] = []

    class Own:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> np.ndarray:
            read.append(threading.get_ident())
            return images[i]

    own = world.read_as(open_images(Own()))
    np.testing.assert_array_equal(evaluate(reader(), own).confusion.counts, evaluate(reader(), world).confusion.counts)
    assert {*read} == {threading.get_ident()}


def test_a_model_of_other_classes_is_refused(world: Labelled) -> None:
    with pytest.raises(ModelError, match=r"2 classes but the labels have 3.*--class-map"):
        evaluate(reader(classes=2), world)
