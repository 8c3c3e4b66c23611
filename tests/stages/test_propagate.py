"""Stage 3: which images are easy, and what its samples show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3.data.rare_classes import RareClasses
from das3.data.samples import Augmentation, Samples
from das3.stages.propagate import EasyAndHard, split_by_entropy


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 1))
def test_easy_images_are_those_of_lowest_entropy(entropies, easy_share):
    easy, hard = split_by_entropy(entropies, easy_share)
    assert sorted([*easy, *hard]) == list(range(len(entropies)))
    ordered = [entropies[i] for i in [*easy, *hard]]
    assert ordered == sorted(ordered)
    assert abs(len(easy) - easy_share * len(entropies)) <= 1
    if easy_share in (0, 1):
        assert not (hard if easy_share else easy)
    elif len(entropies) > 1:
        assert easy
        assert hard


def test_the_split_on_an_example():
    assert split_by_entropy([0.4, 0.1, 0.3, 0.2], 0.25) == ([1], [3, 2, 0])


class Halves:
    """Label maps of image i: 2i on the left, 2i + 1 on the right."""

    def __call__(self, i):
        return {"labels": np.repeat(np.array([2 * i, 2 * i + 1], np.uint8), 6)[None].repeat(8, axis=0)}


def shown(easy, hard, *, mix, rare=None):
    """For 24 samples: whether it is hard, and the images that are seen in it."""
    images = [np.full((8, 12, 3), 10 * i, np.uint8) for i in range(6)]
    plain = Samples(images, Augmentation((8, 12)), seed=(0,), maps=Halves(), rare=rare)
    samples = EasyAndHard(plain, easy, hard, mix=mix)
    for n in range(24):
        sample = samples[n]
        seen = (sample["image"][0] * 25.5).round().int()
        assert (sample["labels"] // 2 == seen).all()  # every pixel brings its own label
        yield bool(sample["hard"]), set(seen.unique().tolist())


def test_every_other_sample_is_two_hard_images_mixed():
    found = list(shown([0, 1], [2, 3, 4, 5], mix=True))
    assert [hard for hard, _ in found] == [False, True] * 12
    easy, mixed = [images for hard, images in found if not hard], [images for hard, images in found if hard]
    assert set.union(*easy) == {0, 1}
    assert set.union(*mixed) == {2, 3, 4, 5}
    assert all(len(images) == 1 for images in easy)
    assert sum(len(images) == 2 for images in mixed) > 6  # sometimes an image meets itself


def test_rare_classes_are_drawn_among_easy_and_among_hard_images_and_mixed_into_others():
    """Images 0, 3 and 5 show one class alone that is rare beside their other one: 0, 6 and 10."""
    labels = [Halves()(i)["labels"].copy() for i in range(6)]
    for i in (1, 2, 4):
        labels[i][:] = 20  # images of one large class
    rare = RareClasses(labels, temperature=0.01)
    found = list(shown([0, 1], [2, 3, 4, 5], mix=True, rare=rare))
    assert [hard for hard, _ in found] == [False, True] * 12
    assert set.union(*[images for hard, images in found if not hard]) == {0}
    assert set.union(*[images for hard, images in found if hard]) == {3, 5}


def test_the_class_for_which_a_hard_image_was_drawn_is_mixed_into_the_other():
    images = [np.full((8, 12, 3), 10 * i, np.uint8) for i in range(6)]
    rare = RareClasses([Halves()(i)["labels"] for i in range(6)], temperature=1e6)
    plain = Samples(images, Augmentation((8, 12), flip=False), seed=(0,), maps=Halves(), rare=rare)
    samples = EasyAndHard(plain, [], range(6), mix=True)
    drawn = [samples.hard.draw(n, salt=1) for n in range(60)]
    for n, (index, wanted) in enumerate(drawn):
        assert wanted in (2 * index, 2 * index + 1)
        assert (samples[n]["labels"] == wanted).sum() == 48


@pytest.mark.parametrize(("easy", "hard"), [([], [1, 2]), ([1, 2], [])])
def test_without_easy_or_hard_images_the_others_are_shown(easy, hard):
    found = list(shown(easy, hard, mix=False))
    assert {is_hard for is_hard, _ in found} == {bool(hard)}
    assert all(images in ({1}, {2}) for _, images in found)
    # Both once an epoch.
    assert all(found[n][1] != found[n + 1][1] for n in range(0, 24, 2))
