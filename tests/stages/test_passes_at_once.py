"""Passes over images as on a GPU: several batches at once, and halves of what the memory does not hold."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from das3.data.images import Images
from das3.segmenter import Segmenter
from das3.stages import StageContext
from das3.stages.labelling import joined
from das3.training.loop import make_fabric

SIZES = [(16, 24)] * 7 + [(16, 16)] * 2 + [(16, 24)] * 4


class Noise(Images):
    is_thread_safe = True

    def __init__(self):
        super().__init__([str(i) for i in range(len(SIZES))])

    def __getitem__(self, i):
        return np.random.default_rng(i).integers(0, 256, (*SIZES[i], 3), dtype=np.uint8)

    def size(self, i):
        return SIZES[i]


SHOWN = []  # not the network's, whose own state is put back after each pass


class Network(nn.Module):
    """Notes how many images it was shown at once; of more than `most` pixels the memory is not enough."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.most = nn.Conv2d(3, 5, 3, padding=1), 10**9

    def forward(self, images):
        if images.shape[0] * images.shape[2] * images.shape[3] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        SHOWN.append(len(images))
        return self.conv(images)


def label(probs):
    return {"labels": probs.argmax(dim=1).to(torch.uint8), "sure": probs.amax(dim=(1, 2, 3))}


def passed(folder, monkeypatch, *, images_at_once=3, most=10**9, **given):
    """What a pass of batches of 2 finds, and how many images the network was shown at a time."""
    monkeypatch.setattr("das3.stages.context.PREDICTED_AT_ONCE", 5 * 16 * 24 * images_at_once)
    segmenter, fabric = Segmenter(Network(), example_size=(16, 24)), make_fabric("cpu", "32")
    segmenter(torch.zeros(1, 3, 16, 16))  # finds out which sizes the network takes
    segmenter.model.most = most
    SHOWN.clear()
    context = StageContext(fabric, segmenter, Noise(), folder, (0, 0), (16, 16), 2, **given)
    monkeypatch.setattr(context, "at_once", as_on_a_gpu(context))
    store = context.label_all("labels", label, batched=True)
    shown, SHOWN[:] = [*SHOWN], []
    found = list(context.summarize("numbers", lambda probs: {"sure": label(probs)["sure"]}, batched=True))
    return [store[i] for i in range(len(SIZES))], found, shown, [*SHOWN], context


def as_on_a_gpu(context):
    fields = ("segmenter", "images", "own_statistics", "crop", "batch_size")
    there = SimpleNamespace(device=torch.device("cuda"))
    on_gpu = SimpleNamespace(fabric=there, **{name: getattr(context, name) for name in fields})
    return lambda groups: StageContext.at_once(on_gpu, groups)


def same(a, b):
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            np.testing.assert_allclose(value, other[key], rtol=1e-5)


def test_batches_at_once_find_what_each_finds(tmp_path, monkeypatch):
    labels, numbers, one_by_one, also, _ = passed(tmp_path / "1", monkeypatch, images_at_once=1)
    assert one_by_one == also == [2, 2, 2, 1, 2, 2, 2]
    many, several, shown, also, context = passed(tmp_path / "5", monkeypatch, images_at_once=5)
    assert shown == also == [4, 3, 2, 4]
    same(many, labels)
    same(several, numbers)
    context.crop = (4, 4)  # training takes little memory
    assert as_on_a_gpu(context)(context.groups()) == context.groups()


def test_halves_of_what_the_memory_does_not_hold(tmp_path, monkeypatch):
    labels, numbers, *_ = passed(tmp_path / "whole", monkeypatch)
    halves, several, shown, also, context = passed(tmp_path / "halves", monkeypatch, images_at_once=5, most=16 * 24)
    assert {*shown, *also} == {1}
    same(halves, labels)
    same(several, numbers)
    context.segmenter.model.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        context.label_all("never", label, batched=True)


def test_batches_whose_own_statistics_count_stay_as_they_are(tmp_path, monkeypatch):
    *_, shown, also, context = passed(tmp_path, monkeypatch, images_at_once=9, own_statistics=True)
    assert shown == also == [2, 2, 2, 1, 2, 2, 2]
    context.segmenter.model.most = 16 * 24
    with pytest.raises(torch.OutOfMemoryError):
        context.label_all("other", label, batched=True)


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([(8, 8), (8, 12)])), max_size=12), st.integers(1, 2000))
def test_groups_are_joined_in_their_order(wanted, most):
    groups, sizes = [], []
    for count, size in wanted:
        groups.append([*range(len(sizes), len(sizes) + count)])
        sizes += [size] * count
    found = joined(groups, sizes, most)
    assert [i for group in found for i in group] == [*range(len(sizes))]
    for group in found:
        assert len({sizes[i] for i in group}) == 1
        assert group in groups or sum(np.prod(sizes[i]) for i in group) <= most
    for one, other in itertools.pairwise(found):
        begun = next(group for group in groups if group[0] == other[0])
        area = sum(np.prod(sizes[i]) for i in [*one, *begun])
        assert sizes[one[0]] != sizes[other[0]] or area > most
