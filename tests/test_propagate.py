"""Stage 3: which images are easy, and what its samples show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3.data.samples import Samples, View
from das3.stages.propagate import EasyAndHard, split_by_entropy


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 1))
def test_easy_images_are_those_of_lowest_entropy(entropies, share):
    easy, hard = split_by_entropy(entropies, share)
    assert sorted([*easy, *hard]) == list(range(len(entropies)))
    ordered = [entropies[i] for i in [*easy, *hard]]
    assert ordered == sorted(ordered)
    assert abs(len(easy) - share * len(entropies)) <= 1
    if share in (0, 1):
        assert not (hard if share else easy)
    elif len(entropies) > 1:
        assert easy
        assert hard


def test_the_paper_s_split():
    assert split_by_entropy([0.4, 0.1, 0.3, 0.2], 0.25) == ([1], [3, 2, 0])


class Halves:
    """Label maps of image i: 2i on the left, 2i + 1 on the right."""

    def __call__(self, i):
        return {"labels": np.repeat(np.array([2 * i, 2 * i + 1], np.uint8), 6)[None].repeat(8, axis=0)}


def shown(easy, hard, *, mix):
    """For 24 samples: whether it is hard, and the images that are seen in it."""
    images = [np.full((8, 12, 3), 10 * i, np.uint8) for i in range(6)]
    samples = EasyAndHard(Samples(images, View((8, 12)), seed=(0,), maps=Halves()), easy, hard, mix=mix)
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


@pytest.mark.parametrize(("easy", "hard"), [([], [1, 2]), ([1, 2], [])])
def test_without_easy_or_hard_images_the_others_are_shown(easy, hard):
    found = list(shown(easy, hard, mix=False))
    assert {is_hard for is_hard, _ in found} == {bool(hard)}
    assert all(images in ({1}, {2}) for _, images in found)
