"""Other looks of an image: what they show."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import worlds
from das3.input_transforms import COLOR_TRANSFORMS, UPSCALE_FACTORS, InputTransform, estimate_illumination, information


@pytest.mark.parametrize("tone", COLOR_TRANSFORMS)
def test_a_tone_stays_in_range_and_keeps_grey_and_the_order_of_greys(tone):
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    toned = COLOR_TRANSFORMS[tone](images)
    assert toned.shape == images.shape
    assert toned.min() >= 0
    assert toned.max() <= 1
    assert torch.equal(images, before)
    greys = torch.linspace(0, 1, 9).expand(1, 3, 1, 9)
    toned = COLOR_TRANSFORMS[tone](greys)
    torch.testing.assert_close(toned[:, 0], toned[:, 1])
    assert (toned.diff(dim=-1) >= 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0), st.floats(0.0, 0.3), st.integers(0, 2))
def test_balanced_images_do_not_depend_on_cast_haze_or_light(seed, gain, haze, channel):
    images = 0.2 + 0.4 * torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(seed))
    other = images.clone()
    other[:, channel] = gain * other[:, channel] + haze
    torch.testing.assert_close(
        COLOR_TRANSFORMS["balanced"](other), COLOR_TRANSFORMS["balanced"](images), atol=1e-4, rtol=0
    )
    flat = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(COLOR_TRANSFORMS["balanced"](flat), torch.full_like(flat, 0.45))


def test_smooth_images_have_less_noise_and_the_same_mean():
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = COLOR_TRANSFORMS["smooth"](noise)
    assert smooth.std() < noise.std() / 2.5
    assert smooth.mean().item() == pytest.approx(noise.mean().item(), abs=0.01)
    torch.testing.assert_close(COLOR_TRANSFORMS["smooth"](torch.full((1, 3, 3, 3), 0.7)), torch.full((1, 3, 3, 3), 0.7))


def test_tones_follow_one_another_and_name_the_look():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    look = InputTransform(("lifted", "grey"), zoom=1.67, light=torch.ones(1, 1, 8, 8))
    expected = nn.functional.interpolate(
        (images**0.6).mean(1, keepdim=True).expand(-1, 3, -1, -1), (32, 32), mode="bilinear"
    )
    torch.testing.assert_close(look(images), expected)
    assert look.name == "evenly lit lifted grey x1.67"
    assert InputTransform().name == "plain"
    assert torch.equal(InputTransform()(images), images)


@given(st.integers(0, 2**32 - 1))
def test_light_is_what_all_images_have_in_common(seed):
    light = torch.from_numpy(worlds.dark_corners(64)).float()
    scenes = 0.3 + 0.3 * torch.rand(200, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    found = estimate_illumination((scenes * light).split(7))
    assert found.shape == (1, 1, 8, 8)
    assert found.mean().item() == pytest.approx(1, abs=1e-4)
    wanted = nn.functional.adaptive_avg_pool2d(light[None, None], 8)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    even = InputTransform(light=found)(scenes * light)
    torch.testing.assert_close(even[..., 8:-8, 8:-8], scenes[..., 8:-8, 8:-8], atol=0.06, rtol=0)


def test_black_images_have_a_light_and_stay_black():
    black = torch.zeros(2, 3, 16, 16)
    assert torch.equal(InputTransform(light=estimate_illumination([black]))(black), black)
    border = torch.ones(2, 3, 16, 16)
    border[..., :2] = 0.01
    assert (
        InputTransform(light=estimate_illumination([border]))(border)[..., :2].max() < 0.06
    )  # noise in the dark is not blown up


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 5))
def test_information_is_that_of_image_and_class(seed, classes, count):
    """Against I = Σ p(x, c) log p(c | x) / p(c), in bits of log C."""
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).clip(1e-12)
    marginal = p.mean(axis=0)
    expected = (p * np.log(p / marginal)).sum(axis=1).mean() / np.log(classes)
    entropies = -(p * np.log(p)).sum(axis=1) / np.log(classes)
    assert information(torch.tensor(p), torch.tensor(entropies)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("zoom", UPSCALE_FACTORS)
def test_a_larger_copy_shows_the_same(zoom):
    """A ramp stays a ramp."""
    ramp = torch.linspace(0, 1, 192).expand(1, 3, 96, 192)
    shown = InputTransform(zoom=zoom)(ramp)
    width = shown.shape[-1]
    assert width == pytest.approx(192 * zoom, rel=0.04)
    expected = ((torch.arange(width) + 0.5) * 192 / width - 0.5) / 191
    torch.testing.assert_close(shown[0, 0, 0, 2:-2], expected[2:-2], atol=1e-3, rtol=0)
    torch.testing.assert_close(InputTransform(("darker",), zoom)(ramp), InputTransform(zoom=zoom)(ramp**1.6))


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(UPSCALE_FACTORS))
def test_zoomed_sides_suit_the_strides_that_the_images_suit(height, width, zoom):
    shown = InputTransform(zoom=zoom)(torch.zeros(1, 3, height, width)).shape[-2:]
    for before, after in zip((height, width), shown, strict=True):
        assert after % 8 == 0
        assert all(after % stride == 0 for stride in (16, 32) if before % stride == 0)
        assert abs(after - zoom * before) <= 16
        assert after > 0
