import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from das3.data.mixing import class_mix, pick_classes


def sample(seed, mark, classes=6):
    labels = torch.from_numpy(np.random.default_rng(seed).choice([*range(classes), 255], (8, 9)).astype(np.uint8))
    return {"labels": labels, "image": torch.full((3, 8, 9), mark), "planes": torch.full((2, 8, 9), int(mark))}


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_half_of_the_classes_present_are_picked(seed, classes):
    labels = sample(seed, 0.0, classes)["labels"]
    present = set(labels.unique().tolist()) - {255}
    picked = pick_classes(labels, np.random.default_rng(seed)).tolist()
    assert set(picked) <= present
    assert len(set(picked)) == len(picked) == (len(present) + 1) // 2


@given(st.integers(0, 2**16), st.integers(2, 6))
def test_a_class_that_is_wanted_is_picked_in_place_of_the_last_one(seed, classes):
    labels = sample(seed, 0.0, classes)["labels"]
    present = set(labels.unique().tolist()) - {255}
    plain = pick_classes(labels, np.random.default_rng(seed)).tolist()
    for wanted in range(classes + 1):
        picked = pick_classes(labels, np.random.default_rng(seed), wanted=wanted).tolist()
        assert len(set(picked)) == len(picked) == len(plain)
        assert (wanted in picked) == (wanted in present)
        if wanted in plain or wanted not in present:
            assert set(picked) == set(plain)
        else:
            assert set(picked) - {wanted} == set(plain[:-1])


@given(st.integers(0, 2**16))
def test_every_map_comes_from_the_same_side(seed):
    over, under = sample(seed, 1.0), sample(seed + 1, 2.0)
    mixed = class_mix(over, under, np.random.default_rng(seed))
    picked = pick_classes(over["labels"], np.random.default_rng(seed))
    pasted = torch.isin(over["labels"], picked)
    assert 0 < pasted.sum() < pasted.numel()
    for key, value in mixed.items():
        where = pasted.expand_as(value)
        assert (value[where] == over[key][where]).all()
        assert (value[~where] == under[key][~where]).all()
        assert value.dtype == over[key].dtype


def test_the_classes_are_picked_in_the_image_that_is_pasted():
    over, under = sample(0, 1.0, classes=2), sample(1, 2.0)
    under["labels"][:] = 5
    mixed = class_mix(over, under, np.random.default_rng(0))
    pasted = mixed["image"][0] == 1
    assert len(set(over["labels"][pasted].tolist())) == 1
    assert (mixed["labels"][~pasted] == 5).all()


def test_unlabelled_pixels_are_never_pasted():
    over, under = sample(0, 1.0), sample(1, 2.0)
    over["labels"][:] = 255
    mixed = class_mix(over, under, np.random.default_rng(0))
    assert (mixed["image"] == 2).all()
    assert (mixed["labels"] == under["labels"]).all()


def test_classes_vary_with_the_draw():
    labels = sample(3, 0.0)["labels"]
    draws = {tuple(sorted(pick_classes(labels, np.random.default_rng(s)).tolist())) for s in range(20)}
    assert len(draws) > 5
