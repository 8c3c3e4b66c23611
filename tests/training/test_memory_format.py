"""channels_last changes how things lie in memory, and no result."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from das3.errors import TrainingError
from das3.registry import find_stage
from das3.testing import LOOP, run_small
from das3.training.memory_format import channels_last

SGD = replace(LOOP, optimizer="sgd")  # Adam makes a step of a rounding error


def lies_so(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_training_ends_where_usual_training_does_and_the_weights_lie_as_before(tmp_path):
    usual, other = (
        run_small(find_stage("propagate"), tmp_path / str(on), loop=replace(SGD, channels_last=on), dropout=0.0)
        for on in (False, True)
    )
    for one, two in zip(usual.segmenter.state_dict().values(), other.segmenter.state_dict().values(), strict=True):
        assert two.is_contiguous()
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


def test_convolutions_see_images_and_weights_so(tmp_path, monkeypatch):
    seen, conv2d = [], nn.functional.conv2d

    def watched(images, weight, *args):
        if torch.is_grad_enabled() and images.shape[:2] == (LOOP.batch_size, 3):
            seen.append(lies_so(images) and lies_so(weight))
        return conv2d(images, weight, *args)

    monkeypatch.setattr(nn.functional, "conv2d", watched)
    run_small(find_stage("minent"), tmp_path, loop=replace(LOOP, channels_last=True))
    assert seen
    assert all(seen)


def test_weights_lie_as_before_after_an_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv3d(2, 2, 3))
    seen = []
    with pytest.raises(ZeroDivisionError), channels_last(model):
        seen.append(lies_so(model[0].weight) / 0)
    assert model[0].weight.is_contiguous()


def test_a_network_that_views_its_features_is_told_so(tmp_path, monkeypatch):
    def viewed(images, weight, *args):
        out = conv2d(images, weight, *args)
        return out.view(len(out), -1).view(out.shape) if torch.is_grad_enabled() else out

    conv2d = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", viewed)
    with pytest.raises(TrainingError, match="leave channels_last out"):
        run_small(find_stage("minent"), tmp_path, loop=replace(LOOP, channels_last=True))
