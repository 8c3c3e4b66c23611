import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from das3.data.rare_classes import RareClasses
from das3.data.samples import Augmentation, Samples, _blurred, auto_crop, hue_rotation


def scene(seed=0, height=20, width=30):
    """An image whose red channel is 10 times its label, so that any misalignment shows."""
    label = np.random.default_rng(seed).integers(0, 20, (height // 5, width // 5)).astype(np.uint8)
    label = np.kron(label, np.ones((5, 5), np.uint8))
    image = np.stack([label * 10, np.full_like(label, 40), np.full_like(label, 90)], axis=-1)
    return image, {"labels": label, "bits": np.stack([label, label + 100])}


@given(st.integers(0, 1000), st.booleans())
def test_image_and_maps_stay_together(seed, flip):
    image, maps = scene(seed)
    sample = Augmentation((12, 16), flip=flip)(image, maps, np.random.default_rng(seed))
    assert sample["image"].shape == (3, 12, 16)
    assert sample["image"].dtype == torch.float32
    assert sample["labels"].dtype == torch.uint8
    assert torch.equal((sample["image"][0] * 255).round().to(torch.uint8), sample["labels"] * 10)
    assert torch.equal(sample["bits"][0], sample["labels"])
    assert torch.equal(sample["bits"][1], sample["labels"] + 100)
    assert sample["valid"].all()


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.4, 2.5))
def test_zoom_never_invents_labels_and_padding_is_marked(seed, zoom):
    image, maps = scene(seed)
    sample = Augmentation((24, 24), scale=(zoom, zoom))(image, maps, np.random.default_rng(seed))
    assert sample["image"].shape == (3, 24, 24)
    valid, labels = sample["valid"], sample["labels"]
    assert valid.any()
    assert set(labels[valid].unique().tolist()) <= set(np.unique(maps["labels"]).tolist())
    assert (labels[~valid] == 255).all()
    assert (sample["bits"][:, ~valid] == 0).all()
    assert (sample["image"][:, ~valid] < 0.4).all()


def test_colour_changes_stay_in_range_and_leave_the_labels():
    image, maps = scene()
    view = Augmentation((20, 30), color=0.8, blur=1.0, flip=False)
    sample = view(image, maps, np.random.default_rng(0))
    assert sample["image"].min() >= 0
    assert sample["image"].max() <= 1
    assert (sample["labels"].numpy() == maps["labels"]).all()
    assert not np.allclose(sample["image"][0] * 255, image[..., 0], atol=2)


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 4, 9), (5, 7, 2)])
def test_blur_is_the_gaussian_filter_of_scipy(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mode = "mirror" if min(shape[1:]) > 3 else "nearest"
    for sigma in (0.2, 0.9, 1.5):
        expected = gaussian_filter(image.double().numpy(), (0, sigma, sigma), mode=mode, radius=(0, 3, 3))
        np.testing.assert_allclose(_blurred(image, sigma), expected, atol=1e-6)


@given(st.floats(-1, 1))
def test_hue_is_turned_about_the_greys(angle):
    turn = torch.from_numpy(hue_rotation(angle))
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(turn @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    third = torch.from_numpy(hue_rotation(2 * np.pi / 3))  # red becomes green
    torch.testing.assert_close(third @ torch.eye(3, dtype=torch.float64)[0], torch.eye(3, dtype=torch.float64)[1])


def test_one_matrix_is_brightness_saturation_contrast_and_hue_in_this_order():
    image, rng = torch.from_numpy(np.random.default_rng(1).uniform(0.4, 0.6, (3, 8, 9))), np.random.default_rng(7)
    ours = Augmentation((8, 9), color=0.2)._recolored(image.float(), np.random.default_rng(7))
    brightness, contrast, saturation = 1 + 0.2 * rng.uniform(-1, 1, 3)
    changed = image * brightness
    grey = changed.mean(dim=0, keepdim=True)
    changed = grey + (changed - grey) * saturation
    changed = changed.mean() + (changed - changed.mean()) * contrast
    turn = torch.from_numpy(hue_rotation(0.06 * np.pi * rng.uniform(-1, 1)))
    changed = torch.einsum("ij,jhw->ihw", turn, changed)
    torch.testing.assert_close(ours.double(), changed, rtol=1e-5, atol=1e-6)


def make(count=7, **kwargs):
    images = [scene(i)[0] for i in range(count)]
    return Samples(images, Augmentation((12, 16), scale=(0.7, 1.4), color=0.3), seed=(3, 1), **kwargs)


def test_sample_n_is_a_function_of_seed_and_n():
    first, again = make(), make()
    again[5], again[2]  # what was drawn before does not matter
    for n in (0, 9, 100):
        assert all(torch.equal(first[n][k], again[n][k]) for k in first[n])
    assert not torch.equal(first[0]["image"], first[7]["image"])


@pytest.mark.parametrize("options", [{}, {"color": 0.3, "blur": 1.0}, {"scale": (0.6, 0.6)}])
def test_samples_of_8_bit_images_have_8_bits(options):
    image, maps = scene()
    for n in range(5):
        sample = Augmentation((16, 24), **options)(image, maps, np.random.default_rng(n))["image"]
        assert torch.equal(sample, sample.mul(255).round().to(torch.uint8).float() / 255)
    floats = image.astype(np.float32) / 255 + 1e-4
    sample = Augmentation((16, 24), **options)(floats, maps, np.random.default_rng(0))["image"]
    assert not torch.equal(sample, sample.mul(255).round() / 255)


def test_every_epoch_shows_every_image_once_in_a_new_order():
    samples = make()
    epochs = [[samples.pick(7 * e + i) for i in range(7)] for e in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_order_restricts_the_images():
    assert {make(order=[2, 5]).pick(n) for n in range(20)} == {2, 5}


def test_rare_classes_say_which_images_are_drawn_and_for_which_class():
    labels = [np.full((4, 4), c, np.uint8) for c in (0, 0, 1, 1, 2, 2, 255)]
    rare = RareClasses(labels, temperature=1e6)
    samples = make(rare=rare, order=[0, 2, 3, 6])
    drawn = [samples.draw(n) for n in range(600)]
    assert [index for index, _ in drawn] == [samples.pick(n) for n in range(600)]
    assert set(drawn) == {(0, 0), (2, 1), (3, 1)}
    often = np.bincount([index for index, _ in drawn], minlength=7) / 600
    assert often == pytest.approx([0.5, 0, 0.25, 0.25, 0, 0, 0], abs=0.08)
    assert drawn != [samples.draw(n, salt=1) for n in range(600)]
    assert drawn[7] == make(rare=rare, order=[0, 2, 3, 6]).draw(7)
    # Where nothing is labelled, images are drawn as without.
    nothing = make(rare=rare, order=[6, 6, 6])
    assert nothing.draw(4) == (6, None)
    assert make().draw(4) == (make().pick(4), None)


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ([(480, 640)] * 3, (480, 512)),
        ([(1024, 2048)], (512, 512)),
        ([(96, 192), (96, 192), (20, 20)], (96, 192)),
        ([(180, 240)], (160, 224)),
        ([(20, 25)], (20, 25)),
    ],
)
def test_auto_crop(sizes, crop):
    assert auto_crop(sizes) == crop
