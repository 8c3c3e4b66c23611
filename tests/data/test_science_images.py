"""Images as microscopes, satellites and thermal cameras write them, through das3's own reader."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from das3.data.formats import Form
from das3.data.image_files import read_image
from das3.data.images import Images, resize_image
from das3.data.open import open_images
from das3.data.pixels import Pixels, as_rgb8
from das3.data.shared_cache import Room
from das3.data.value_ranges import described, find_range, read_rule
from das3.errors import DataError, RecipeError
from data import trees

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 4095, 64 * 64).round().reshape(64, 64).astype(np.uint16)


def tiff(path: Path, values: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, values, **options)  # type: ignore[arg-type]
    return path


def seen(path: Path, channels: int = 3, **how: object) -> np.ndarray:
    """What a network of so many channels sees of the images in a folder or a file, the first one."""
    return open_images(path).fitted(channels, **how)[0]  # type: ignore[arg-type]


def ramp(low: float, high: float, dtype: str) -> np.ndarray:
    return np.linspace(low, high, 64 * 64).reshape(64, 64).astype(dtype)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_ramp_of_12_bits_in_16_keeps_its_levels(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    image = seen(tmp_path)
    assert image.shape == (64, 64, 3)
    np.testing.assert_allclose(image[..., 0], RAMP / 4095, atol=1e-6)
    assert len(np.unique(image)) == 4096
    assert len(np.unique(as_rgb8(image))) == 256


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_rgb_up_to_4000_is_of_12_bits(tmp_path: Path, suffix: str) -> None:
    values = RNG.integers(0, 4001, (64, 64, 3)).astype(np.uint16)
    if suffix == "png":
        (tmp_path / "a.png").write_bytes(trees.png_16_bit_rgb(values))
    else:
        tiff(tmp_path / "a.tif", values, photometric="rgb")
    np.testing.assert_allclose(seen(tmp_path), values / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (ramp(-500, 2000, "int16"), -500, 2000),
        (ramp(-100, 100, "float32"), -100, 100),
        (ramp(0, 1, "float32"), 0, 1),
        (ramp(0, 0.1, "float32"), 0, 0.1),  # else it would be nearly black
        (ramp(0, 16383, "uint16"), 0, 16383),
        (ramp(0, 65535, "uint16"), 0, 65535),
        (ramp(-128, 127, "int8"), -128, 127),
        (ramp(0, 3e9, "uint32"), 0, 2**32 - 1),
    ],
    ids=lambda v: str(v.dtype) if isinstance(v, np.ndarray) else f"{v:g}",
)
def test_the_range_is_the_data_s_own(tmp_path: Path, values: np.ndarray, low: float, high: float) -> None:
    tiff(tmp_path / "a.tif", values)
    expected = (values.astype(float) - low) / (high - low)
    np.testing.assert_allclose(seen(tmp_path)[..., 1], expected, atol=1e-6)


def test_no_data_is_masked_and_turns_nothing_black(tmp_path: Path) -> None:
    values = ramp(0, 3000, "float32")
    values[:8] = -9999
    values[20, 5] = np.nan
    tiff(tmp_path / "a.tif", values, extratags=[(42113, 2, 0, "-9999", True)])
    images = open_images(tmp_path).fitted(3)
    image, valid = images.masked(0)
    assert valid is not None
    expected = np.ones((64, 64), bool)
    expected[:8] = expected[20, 5] = False
    np.testing.assert_array_equal(valid, expected)
    known = values[expected]
    np.testing.assert_allclose(image[expected][:, 0], (known - known.min()) / (3000 - known.min()), atol=1e-5)
    np.testing.assert_allclose(image[~expected], np.full((513, 3), 0.5), atol=0.01)  # the median


def test_no_data_may_be_said(tmp_path: Path) -> None:
    values = ramp(0, 4000, "uint16")
    values[:, :4] = 65535
    tiff(tmp_path / "a.tif", values)
    images = open_images(tmp_path).fitted(3, nodata=65535)
    image, valid = images.masked(0)
    assert valid is not None
    assert not valid[:, :4].any()
    assert valid[:, 4:].all()
    np.testing.assert_allclose(image[:, 4:, 0], values[:, 4:] / 4095, atol=1e-6)


def test_a_pixel_that_lacks_one_band_of_two_still_counts(tmp_path: Path) -> None:
    values = RNG.integers(1, 1000, (16, 16, 2)).astype(np.uint16)
    values[3, 3, 0] = values[5, 5] = 0
    tiff(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    _, valid = open_images(tmp_path).fitted(2, nodata=0).masked(0)
    assert valid is not None
    assert valid[3, 3]
    assert not valid[5, 5]
    assert valid.sum() == 255


def test_no_data_in_a_picture_of_8_bits_changes_no_pixel(tmp_path: Path) -> None:
    values = RNG.integers(1, 256, (20, 30, 3), dtype=np.uint8)
    values[:5] = 0
    tiff(tmp_path / "a.tif", values, photometric="rgb", extratags=[(42113, 2, 0, "0", True)])
    image, valid = open_images(tmp_path).fitted(3).masked(0)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, values)
    assert valid is not None
    np.testing.assert_array_equal(valid, values.any(axis=2))


def test_floating_rgb(tmp_path: Path) -> None:
    values = RNG.random((64, 64, 3), np.float32)
    tiff(tmp_path / "a.tif", values, photometric="rgb")
    np.testing.assert_allclose(seen(tmp_path), values, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "separate"},
        {},  # tifffile cuts the array into 64 pages of 64×10
        {"photometric": "minisblack", "planarconfig": "contig", "tile": (32, 32), "compression": "zlib"},
    ],
    ids=["together", "apart", "as written by tifffile", "tiles"],
)
@pytest.mark.parametrize("dtype", ["uint16", "float32", "uint8"])
def test_ten_bands(tmp_path: Path, options: dict, dtype: str) -> None:
    top = {"uint16": 4095, "float32": 1, "uint8": 255}[dtype]
    values = (RNG.random((64, 64, 10)) * top).astype(dtype)
    stored = values.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else values
    tiff(tmp_path / "a.tif", stored, **options)
    images = open_images(tmp_path)
    assert images.sizes() == [(64, 64)]
    image = images.fitted(10)[0]
    assert image.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_allclose(image, values if dtype == "uint8" else values / top, atol=1e-6)
    few = images.fitted(3)
    np.testing.assert_array_equal(few[0], image[..., :3])
    assert "bands 4 to 10 of 10" in (few.left_out() or "")
    np.testing.assert_array_equal(images.fitted(2, bands=(7, 7))[0], image[..., [6, 6]])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_near_infrared_is_kept_where_the_network_takes_it(tmp_path: Path, planar: str, dtype: str) -> None:
    values = RNG.integers(0, 250, (64, 64, 4)).astype(dtype)
    stored = values.transpose(2, 0, 1) if planar == "separate" else values
    tiff(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, extrasamples=["unspecified"])
    image = seen(tmp_path, 4)
    np.testing.assert_allclose(image, values if dtype == "uint8" else values / 255, atol=1e-6)
    images = open_images(tmp_path).fitted(3)
    np.testing.assert_array_equal(images[0], image[..., :3])
    assert "band 4 of 4" in (images.left_out() or "")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_is_left_out_and_said_but_taken_by_a_network_of_four(tmp_path: Path, suffix: str) -> None:
    values = RNG.integers(0, 256, (8, 9, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    images = open_images(tmp_path).fitted(3)
    assert images.pixels is None
    np.testing.assert_array_equal(images[0], values[..., :3])
    assert "alpha (1 of 1 images)" in (images.left_out() or "")
    np.testing.assert_array_equal(seen(tmp_path, 4), values)


def test_a_planar_tiff(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (3, 40, 50)).astype(np.uint16)
    tiff(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(seen(tmp_path), values.transpose(1, 2, 0) / 4095, atol=1e-6)


def test_a_stack_gives_its_first_page_and_says_so(tmp_path: Path) -> None:
    pages = RNG.integers(0, 4096, (3, 64, 64)).astype(np.uint16)
    tiff(tmp_path / "a.tif", pages, photometric="minisblack")
    images = open_images(tmp_path).fitted(3)
    np.testing.assert_allclose(images[0], np.repeat(pages[0][..., None], 3, axis=2) / 4095, atol=1e-6)
    assert "pages after the first (1 of 1 images)" in (images.left_out() or "")
    named = open_images(tmp_path).fitted(3, bands=(3, 2, 1))
    np.testing.assert_allclose(named[0], pages[::-1].transpose(1, 2, 0) / 4095, atol=1e-6)
    assert named.left_out() is None


def test_a_stack_of_as_many_pages_as_the_network_takes_is_its_bands(tmp_path: Path) -> None:
    pages = RNG.integers(0, 4096, (7, 64, 60)).astype(np.uint16)
    tiff(tmp_path / "a.tif", pages, photometric="minisblack")
    np.testing.assert_allclose(seen(tmp_path, 7), pages.transpose(1, 2, 0) / 4095, atol=1e-6)


def test_one_range_for_all_images_and_one_kept_with_a_model(tmp_path: Path) -> None:
    for name, top in (("dim", 500), ("bright", 4000)):
        tiff(tmp_path / f"{name}.tif", ramp(0, top, "uint16"))
    images = open_images(tmp_path).fitted(3)
    assert [images[i].max() for i in range(2)] == pytest.approx([4000 / 4095, 500 / 4095])
    alone = open_images(tmp_path / "dim.tif")
    assert alone.fitted(3)[0].max() == pytest.approx(500 / 511)
    assert alone.fitted(3, recorded=images.pixels)[0].max() == pytest.approx(500 / 4095)
    assert alone.fitted(3, recorded=images.pixels, pixel_range="auto")[0].max() == pytest.approx(500 / 511)
    floats = open_images(tiff(tmp_path / "float.tif", ramp(0, 1, "float32"))).fitted(3, recorded=images.pixels)
    assert floats[0].max() == 1  # a range of integers says nothing of floats


def test_pictures_of_8_bits_among_deeper_ones_keep_their_own_range(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", RAMP)
    Image.fromarray(np.full((4, 4, 3), 51, np.uint8)).save(tmp_path / "b.png")
    images = open_images(tmp_path).fitted(3)
    assert images[0].max() == 1
    assert images[1].dtype == np.float32
    np.testing.assert_allclose(images[1], 0.2, atol=1e-6)


def test_grey_networks_take_one_band(tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    image = seen(tmp_path, 1)
    assert image.shape == (8, 9, 1)
    assert image.dtype == np.uint8
    assert np.abs(image[..., 0].astype(int) - np.asarray(Image.fromarray(picture).convert("L"))).max() <= 1
    tiff(tmp_path / "a.tif", RAMP)
    np.testing.assert_allclose(seen(tmp_path / "a.tif", 1), RAMP[..., None] / 4095, atol=1e-6)


def test_bands_by_name(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    values = RNG.integers(0, 4096, (4, 30, 40)).astype(np.uint16)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=40, height=30, count=4, dtype="uint16") as file:
        file.write(values)
        file.descriptions = ("Blue", "Green", "Red", "NIR")
    expected = values.transpose(1, 2, 0) / 4095
    np.testing.assert_allclose(seen(tmp_path), expected[..., [2, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(seen(tmp_path, bands=("nir", "red", 2)), expected[..., [3, 2, 1]], atol=1e-6)
    with pytest.raises(DataError, match=r"a\.tif has no band swir; it has 4 \(blue, green, red, nir\)"):
        seen(tmp_path, bands=("nir", "red", "swir"))
    with pytest.raises(DataError, match="no band 5"):
        seen(tmp_path, bands=(1, 2, 5))
    with pytest.raises(DataError, match="names 2 bands, but the network takes 3"):
        seen(tmp_path, bands=(1, 2))


def test_too_few_bands_are_told_with_the_file(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has 3 bands, but the network takes 4; say which with --bands"):
        seen(tmp_path, 4)


def test_bands_of_very_different_scale_get_ranges_of_their_own(tmp_path: Path) -> None:
    values = RNG.random((64, 64, 5)).astype(np.float32)
    values[..., 4] = ramp(-200, 4000, "float32")  # height in metres beside reflectances
    tiff(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    image = seen(tmp_path, 5)
    assert image.min(axis=(0, 1)).max() < 0.01
    assert image.max(axis=(0, 1)).min() > 0.99


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [("0,2000", 0, 2000), ([-100, 50.5], -100, 50.5), ("dtype", -32768, 32767), ("percentile:25,75", 24.75, 74.25)],
)
def test_the_range_may_be_said(rule: str | list[float], low: float, high: float) -> None:
    (found_low,), (found_high,) = find_range(np.arange(100.0)[:, None], "int16", rule)
    assert (found_low, found_high) == (low, high)


@pytest.mark.parametrize(
    "rule", ["", "5", "2,1", "a,b", "percentile:99,1", "percentile:0,101", "0,inf", "bits:1,2", "1,2,3"]
)
def test_a_range_that_can_t_be_is_refused(rule: str) -> None:
    with pytest.raises(RecipeError, match=r"--pixel-range .*give auto, dtype"):
        read_rule(rule)


def test_outliers_do_not_stretch_the_range() -> None:
    values = np.append(np.linspace(0, 4000, 9999), 60000.0)[:, None]
    assert find_range(values, "uint16") == ((0.0,), (4095.0,))
    low, high = find_range(values - 1, "int16")
    assert high[0] < 4100
    assert low[0] > -2
    assert find_range(np.zeros((5, 1)), "float32") == ((0.0,), (1.0,))
    assert find_range(np.full((5, 1), 7.0), "float32") == ((7.0,), (8.0,))
    assert find_range(np.full((5, 1), np.nan), "float32") == ((0.0,), (1.0,))


def test_values_outside_are_clipped_and_infinite_ones_are_no_data() -> None:
    samples = np.array([[[-5.0], [0], [5], [20], [np.inf]]], np.float32)
    pixels = Pixels(1, "float32", (0.0,), (10.0,), fill=(0.25,))
    image, valid = pixels.convert(samples, Form((1, 5), "float32", 1, plain=False), "a")
    np.testing.assert_allclose(image[0, :, 0], [0, 0, 0.5, 1, 0.25])
    assert valid is not None
    np.testing.assert_array_equal(valid[0], [True, True, True, True, False])
    assert "float32: values from 0 to 10 are dark to bright" in described(pixels)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_a_deep_tiff(tmp_path: Path, orientation: int) -> None:
    values = ramp(0, 4095, "uint16")[:20, :30]
    tiff(tmp_path / "a.tif", values, extratags=[(274, 3, 1, orientation, True)])
    expected = {1: values, 3: np.rot90(values, 2), 6: np.rot90(values, -1), 8: np.rot90(values)}[orientation]
    images = open_images(tmp_path).fitted(1, pixel_range="0,4095")
    assert images.sizes() == [expected.shape]
    np.testing.assert_allclose(images[0][..., 0], expected / 4095, atol=1e-6)


def test_white_is_0(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", ramp(0, 65535, "uint16"), photometric="miniswhite")
    np.testing.assert_allclose(seen(tmp_path, 1)[..., 0], 1 - ramp(0, 65535, "uint16") / 65535, atol=1e-6)


def test_a_whole_data_set_of_8_bits_is_read_as_ever(tmp_path: Path) -> None:
    """Bit-equal to Pillow, uint8, with no record; so are resized and cached images."""
    picture = RNG.integers(0, 256, (40, 50, 4), dtype=np.uint8)
    for name, mode in (
        ("a.png", "RGB"),
        ("b.png", "L"),
        ("c.png", "RGBA"),
        ("d.tif", "RGB"),
        ("e.bmp", "RGB"),
        ("f.jpg", "RGB"),
    ):
        Image.fromarray(picture).convert(mode).save(tmp_path / name)
    images = open_images(tmp_path).fitted(3)
    assert images.pixels is None
    small = images.resized((20, 25), room=Room(10**6))
    for i, path in enumerate(images.paths):  # type: ignore[attr-defined]
        with Image.open(path) as file:
            expected = file.convert("RGB")
        for image, want in ((images[i], expected), (small[i], expected.resize((25, 20), Image.Resampling.BILINEAR))):
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, np.asarray(want))
        assert images.masked(i)[1] is None
        np.testing.assert_array_equal(read_image(path), np.asarray(expected))


def test_resizing_keeps_depth_bands_and_mask(tmp_path: Path) -> None:
    smooth = np.stack([ramp(0, 4095, "uint16")] * 5, axis=2)
    smooth[:32] = 0
    tiff(tmp_path / "a.tif", smooth, photometric="minisblack", planarconfig="contig")
    images = open_images(tmp_path).fitted(5, nodata=0, pixel_range="0,4095").resized((16, 16), room=Room(10**6))
    image, valid = images.masked(0)
    assert image.shape == (16, 16, 5)
    assert len(np.unique(image[10:])) > 50
    assert valid is not None
    np.testing.assert_array_equal(valid, np.arange(256).reshape(16, 16) >= 128)
    again, mask = images.masked(0)
    assert np.shares_memory(again, image)  # kept
    np.testing.assert_array_equal(mask, valid)
    eight = RNG.integers(0, 256, (8, 8, 6), dtype=np.uint8)
    halved = resize_image(eight, (4, 4))
    np.testing.assert_array_equal(halved[..., :3], resize_image(np.ascontiguousarray(eight[..., :3]), (4, 4)))


def test_the_cache_counts_bytes_of_deep_images(tmp_path: Path) -> None:
    tiff(
        tmp_path / "a.tif", RNG.random((10, 10, 5)).astype(np.float32), photometric="minisblack", planarconfig="contig"
    )
    images = open_images(tmp_path).fitted(5)
    for budget, kept in ((1999, False), (2000, True)):
        cached = images.resized(None, room=Room(budget))
        assert np.shares_memory(cached[0], cached[0]) == kept
        np.testing.assert_array_equal(cached[0], images[0])


@pytest.mark.parametrize("form", ["H×W×B", "B×H×W"])
def test_dataset_objects_of_any_depth(form: str) -> None:
    values = [RNG.integers(0, 4096, (20, 30, 6)).astype(np.uint16) for _ in range(3)]
    items = [(v if form == "H×W×B" else v.transpose(2, 0, 1), "label") for v in values]
    images = open_images(items).fitted(6)
    images.verify()
    np.testing.assert_allclose(images[1], values[1] / 4095, atol=1e-6)


def test_floats_of_a_dataset_keep_their_depth_and_a_mean_is_noticed() -> None:
    fine = RNG.random((20, 30, 3)).astype(np.float32)
    np.testing.assert_allclose(open_images([(fine, 0)] * 2).fitted(3)[0], fine, atol=1e-6)
    eight = (fine * 255).round() / 255  # what torchvision's ToTensor makes of a picture
    assert open_images([(eight, 0)] * 2).fitted(3)[0].dtype == np.uint8
    with pytest.raises(DataError, match="from which no mean is subtracted, or say the range with --pixel-range"):
        open_images([(fine * 2 - 1, 0)] * 2).fitted(3)
    said = open_images([(fine * 2 - 1, 0)] * 2).fitted(3, pixel_range="-1,1")
    said.verify()
    np.testing.assert_allclose(said[0], fine, atol=1e-6)


def test_jpeg_2000_of_more_than_8_bits(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = RNG.integers(0, 4001, (40, 50, 3)).astype(np.uint16)
    for name, part in (("rgb", values), ("grey", np.ascontiguousarray(values[..., 0]))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(part, level=0))
        expected = (part if part.ndim == 3 else np.repeat(part[..., None], 3, axis=2)) / 4095
        np.testing.assert_allclose(seen(tmp_path / name), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["complex", "16-bit CMYK"])
def test_what_can_t_be_shown_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "complex":
        tiff(tmp_path / "a.tif", np.ones((8, 9), np.complex64))
    else:
        tiff(tmp_path / "a.tif", np.ones((8, 9, 4), np.uint16), photometric="separated")
    with pytest.raises(DataError, match=r"a\.tif: it is a TIFF of .*convert it"):
        open_images(tmp_path).fitted(3)


def test_smaller_copies_in_a_file_are_no_pages(tmp_path: Path) -> None:
    """As in cloud-optimised GeoTIFF."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RAMP)
        file.write(RAMP[::2, ::2], subfiletype=1)
    images = open_images(tmp_path).fitted(3)
    assert images.left_out() is None
    assert images[0].shape == (64, 64, 3)


def test_pages_of_8_bits_may_be_bands(tmp_path: Path) -> None:
    pages = RNG.integers(0, 256, (5, 20, 30), dtype=np.uint8)
    tiff(tmp_path / "a.tif", pages, photometric="minisblack")
    np.testing.assert_array_equal(seen(tmp_path, 5), pages.transpose(1, 2, 0))
    np.testing.assert_array_equal(seen(tmp_path, 3), np.repeat(pages[0][..., None], 3, axis=2))
    np.testing.assert_array_equal(seen(tmp_path, 3, bands=(5, 1, 2)), pages[[4, 0, 1]].transpose(1, 2, 0))


def test_a_second_band_of_8_bits_is_said_to_be_left_out(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (20, 30, 2), dtype=np.uint8)
    tiff(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    images = open_images(tmp_path).fitted(3)
    np.testing.assert_array_equal(images[0], np.repeat(values[..., :1], 3, axis=2))
    assert "band 2 of 2" in (images.left_out() or "")
    np.testing.assert_array_equal(seen(tmp_path, 2), values)


def test_images_of_a_user_s_own_class_are_taken_as_they_are() -> None:
    class Own(Images):
        def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
            return np.zeros((4, 5, 6), np.float32)

    own = Own(["a", "b"])
    assert own.fitted(6) is own
    assert own.masked(1)[1] is None
    with pytest.raises(DataError, match="image a has 6 bands, but the network takes 3"):
        own.fitted(3)
