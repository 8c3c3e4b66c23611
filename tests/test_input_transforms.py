"""Input transforms: what they make of images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import worlds
from das3.input_transforms import COLOR_TRANSFORMS, IDENTITY, UPSCALE_FACTORS, InputTransform, estimate_illumination


@pytest.mark.parametrize("name", COLOR_TRANSFORMS)
def test_color_transforms_stay_in_range_and_keep_gray_and_the_order_of_grays(name):
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    transformed = COLOR_TRANSFORMS[name](images)
    assert transformed.shape == images.shape
    assert transformed.min() >= 0
    assert transformed.max() <= 1
    assert torch.equal(images, before)
    grays = torch.linspace(0, 1, 9).expand(1, 3, 1, 9)
    transformed = COLOR_TRANSFORMS[name](grays)
    torch.testing.assert_close(transformed[:, 0], transformed[:, 1])
    assert (transformed.diff(dim=-1) >= 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0), st.floats(0.0, 0.3), st.integers(0, 2))
def test_balanced_images_do_not_depend_on_cast_haze_or_brightness(seed, gain, haze, channel):
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


def test_transforms_follow_one_another_and_are_named():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    transform = InputTransform(("brighter", "grayscale"), upscale=1.67, illumination=torch.ones(1, 1, 8, 8))
    expected = nn.functional.interpolate(
        (images**0.6).mean(1, keepdim=True).expand(-1, 3, -1, -1), (32, 32), mode="bilinear"
    )
    torch.testing.assert_close(transform(images), expected)
    assert transform.name == "even illumination brighter grayscale x1.67"
    assert InputTransform().name == IDENTITY == "none"
    assert torch.equal(InputTransform()(images), images)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_illumination_is_what_all_images_have_in_common(seed):
    illumination = torch.from_numpy(worlds.dark_corners(64)).float()
    scenes = 0.3 + 0.3 * torch.rand(200, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    found = estimate_illumination((scenes * illumination).split(7))
    assert found.shape == (1, 1, 8, 8)
    assert found.mean().item() == pytest.approx(1, abs=1e-4)
    wanted = nn.functional.adaptive_avg_pool2d(illumination[None, None], 8)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    even = InputTransform(illumination=found)(scenes * illumination)
    torch.testing.assert_close(even[..., 8:-8, 8:-8], scenes[..., 8:-8, 8:-8], atol=0.06, rtol=0)


def test_black_images_have_an_illumination_and_stay_black():
    black = torch.zeros(2, 3, 16, 16)
    assert torch.equal(InputTransform(illumination=estimate_illumination([black]))(black), black)
    border = torch.ones(2, 3, 16, 16)
    border[..., :2] = 0.01
    even = InputTransform(illumination=estimate_illumination([border]))(border)
    assert even[..., :2].max() < 0.06  # noise in the dark is not blown up


@pytest.mark.parametrize("factor", UPSCALE_FACTORS)
def test_a_larger_copy_shows_the_same(factor):
    """A ramp stays a ramp."""
    ramp = torch.linspace(0, 1, 192).expand(1, 3, 96, 192)
    shown = InputTransform(upscale=factor)(ramp)
    width = shown.shape[-1]
    assert width == pytest.approx(192 * factor, rel=0.04)
    expected = ((torch.arange(width) + 0.5) * 192 / width - 0.5) / 191
    torch.testing.assert_close(shown[0, 0, 0, 2:-2], expected[2:-2], atol=1e-3, rtol=0)
    torch.testing.assert_close(InputTransform(("darker",), factor)(ramp), InputTransform(upscale=factor)(ramp**1.6))


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(UPSCALE_FACTORS))
def test_enlarged_sides_divide_by_the_strides_that_the_images_divide_by(height, width, factor):
    shown = InputTransform(upscale=factor)(torch.zeros(1, 3, height, width)).shape[-2:]
    for before, after in zip((height, width), shown, strict=True):
        assert after % 8 == 0
        assert all(after % stride == 0 for stride in (16, 32) if before % stride == 0)
        assert abs(after - factor * before) <= 16
        assert after > 0
