"""Rare-class sampling: a class first, the rarer the more often, then an image that shows enough of it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3.data.rare_classes import RareClasses


def reference(labels, temperature):
    """Chance of each (image, class), one at a time."""
    counts = [{c: int((one == c).sum()) for c in range(255) if (one == c).any()} for one in labels]
    totals = {c: sum(count.get(c, 0) for count in counts) for c in set().union(*counts)}
    drawn = {c: math.exp((1 - total / sum(totals.values())) / temperature) for c, total in totals.items()}
    chances = {}
    for c, weight in drawn.items():
        some = sorted(count[c] for count in counts if c in count)
        median = (some[(len(some) - 1) // 2] + some[len(some) // 2]) / 2
        enough = [i for i, count in enumerate(counts) if count.get(c, 0) >= max(median / 2, 1)]
        chances |= {(i, c): weight / sum(drawn.values()) / len(enough) for i in enough}
    return chances


def chances_of(rare):
    shown = rare.shown / rare.shown.sum(axis=0) * rare.chances
    return {(i, int(c)): shown[i, k] for i in range(len(shown)) for k, c in enumerate(rare.classes) if shown[i, k]}


def maps(seed, count=6, classes=5):
    """Label maps of various sizes that show some of the classes each, and pixels without a label."""
    rng = np.random.default_rng(seed)
    shown = [[255, *rng.permutation(classes)[: rng.integers(1, classes + 1)]] for _ in range(count)]
    return [rng.choice(ids, (4, rng.integers(3, 9))).astype(np.uint8) for ids in shown]


@given(st.integers(0, 2**16), st.sampled_from([0.03, 0.1, 1.0]))
def test_chances_equal_reference(seed, temperature):
    labels = maps(seed)
    found, expected = chances_of(RareClasses(iter(labels), temperature)), reference(labels, temperature)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected)


def test_images_and_classes_are_drawn_by_their_chances():
    labels = maps(3)
    rare, rng = RareClasses(labels, 0.1), np.random.default_rng(0)
    drawn = Counter(rare.draw(np.arange(6), rng) for _ in range(4000))
    expected = reference(labels, 0.1)
    assert drawn.keys() <= expected.keys()
    assert {key: drawn[key] / 4000 for key in expected} == pytest.approx(expected, abs=0.03)


def test_among_some_images_only_the_classes_count_that_they_show():
    labels = [np.full((2, 2), c, np.uint8) for c in (0, 1, 2, 2)]
    rare, rng = RareClasses(labels, 0.1), np.random.default_rng(0)
    drawn = Counter(rare.draw(np.array([1, 3]), rng) for _ in range(2000))
    assert drawn.keys() == {(1, 1), (3, 2)}
    # Of all labels a quarter is of class 1 and a half of class 2.
    assert drawn[1, 1] / 2000 == pytest.approx(1 / (1 + math.exp(-2.5)), abs=0.03)


def scene(**shares):
    """A label map of 100 pixels: c3=10 are ten pixels of class 3, the others are of class 0."""
    label = np.zeros(100, np.uint8)
    start = 0
    for name, share in shares.items():
        label[start : start + share] = int(name[1:])
        start += share
    return label.reshape(10, 10)


def test_the_rarer_a_class_the_more_often_it_is_drawn_and_the_more_so_the_lower_the_temperature():
    labels = [scene(), scene(c1=40), scene(c1=40), scene(c1=40, c2=4)]
    cold, mild, warm = (RareClasses(labels, t).chances for t in (1e-6, 0.1, 1e6))
    assert cold.tolist() == [0, 0, 1]
    assert mild[0] < mild[1] < mild[2] < 1
    assert warm == pytest.approx([1 / 3] * 3)


def test_a_few_stray_pixels_do_not_make_an_image_one_of_their_class():
    rare = RareClasses([scene(c1=20), scene(c1=20), scene(c1=3)], 0.1)
    assert rare.shown.tolist() == [[True, True], [True, True], [True, False]]


def test_images_without_labels_are_left_out_and_if_none_has_any_nothing_is_drawn():
    nothing, rng = np.full((10, 10), 255, np.uint8), np.random.default_rng(0)
    rare = RareClasses([nothing, scene(c1=20)], 0.1)
    assert {rare.draw(np.arange(2), rng)[0] for _ in range(50)} == {1}
    assert rare.draw(np.array([0]), rng) is None
    assert RareClasses([nothing] * 4, 0.1).draw(np.arange(4), rng) is None
