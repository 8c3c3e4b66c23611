"""Stage 3 with easy or hard images alone: each is shown once an epoch, as everywhere."""

import numpy as np
import pytest
import torch

import worlds
from das3.data.samples import Augmentation, Samples
from das3.stages.propagate import EasyAndHard, Propagate, split_by_entropy


def drawn(easy, hard, count):
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(6)]
    samples = EasyAndHard(Samples(images, Augmentation((8, 8)), seed=(3, 1)), easy, hard, mix=False)
    return [int(samples[n]["image"][0, 0, 0].mul(255).round()) for n in range(count)]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_image_is_shown_once_an_epoch(share):
    easy, hard = split_by_entropy([0.3, 0.1, 0.5, 0.2, 0.6, 0.4], share)
    assert {len(easy), len(hard)} == {0, 6}
    found = drawn(easy, hard, 18)
    for epoch in range(3):
        assert sorted(found[6 * epoch : 6 * epoch + 6]) == list(range(6))


def test_with_both_each_is_shown_once_an_epoch_of_its_own_kind():
    found = drawn([0, 1], [2, 3, 4, 5], 16)
    assert [sorted(found[0:16:2][i : i + 2]) for i in range(0, 8, 2)] == [[0, 1]] * 4
    assert [sorted(found[1:16:2][i : i + 4]) for i in range(0, 8, 4)] == [[2, 3, 4, 5]] * 2


def test_the_loss_has_both_halves_whatever_the_batch_holds(tmp_path):
    """Several processes add up the same terms, although one may hold easy samples alone."""
    torch.manual_seed(0)
    context = worlds.stage_context(worlds.pointwise_network(), tmp_path)
    stage = Propagate(Propagate.Options(color_transforms=False, upscale=False))
    stage.prepare(context)
    image, labels = torch.rand(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    apart = []
    for hard in ([False, False], [True, True], [False, True]):
        batch = {"image": image, "labels": labels, "valid": valid, "hard": torch.tensor(hard)}
        losses = stage.loss(context.segmenter.eval(), batch)
        assert set(losses) == {"easy", "hard"}
        apart.append({name: value.item() for name, value in losses.items()})
    assert apart[0]["hard"] == apart[1]["easy"] == 0
    assert apart[0]["easy"] == pytest.approx((apart[2]["easy"] + apart[2]["hard"]) / 2)
