"""Rows of large files against what `read_image` makes of the whole; label PNGs against Pillow."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from das3.data.image_files import read_image
from das3.data.open import open_images
from das3.errors import DataError
from das3.evaluation.predict import predict_labels
from das3.evaluation.prediction_files import predict_to_file
from das3.evaluation.tiled_io import PngWriter, _TiffRows, open_rows
from das3.segmenter import Segmenter

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (150, 90, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (150, 90), dtype=np.uint16)

FILES = {
    "one piece": (RGB, {}),
    "strips": (RGB, {"rowsperstrip": 7}),
    "strips, packed": (RGB, {"rowsperstrip": 7, "compression": "zlib"}),
    "one strip, packed": (RGB, {"rowsperstrip": 150, "compression": "zlib"}),
    "tiles": (RGB, {"tile": (64, 32)}),
    "tiles, packed": (RGB, {"tile": (64, 32), "compression": "zlib"}),
    "tiles, LZW": (RGB, {"tile": (64, 32), "compression": "lzw"}),
    "tiles, JPEG": (RGB, {"tile": (64, 32), "compression": "jpeg"}),
    "grey tiles": (RGB[..., 0], {"tile": (32, 32), "compression": "zlib"}),
    "16 bits": (WIDE, {"photometric": "minisblack"}),
    "16 bits, packed": (WIDE, {"photometric": "minisblack", "compression": "zlib", "rowsperstrip": 16}),
    "16 bits, big-endian": (WIDE, {"photometric": "minisblack", "byteorder": ">"}),
    "alpha": (np.dstack([RGB, RGB[..., :1]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "upside down": (RGB, {"extratags": [(274, 3, 1, 3, True)]}),
    "white is 0": (RGB[..., 0], {"photometric": "miniswhite"}),
    "channels apart": (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
}


def write(path: Path, pixels: np.ndarray, options: dict) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb" if pixels.ndim == 3 else "minisblack"} | options)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_bands_of_a_tiff_are_those_of_the_whole(tmp_path: Path, kind: str) -> None:
    if "LZW" in kind or "JPEG" in kind:
        pytest.importorskip("imagecodecs")
    path = write(tmp_path / "a.tif", *FILES[kind])
    whole = read_image(path)
    with open_rows(path) as rows:
        assert rows.shape == (150, 90)
        assert isinstance(rows, _TiffRows) == ("packed" in kind or "tiles" in kind)
        for top, bottom in ((0, 40), (30, 70), (30, 71), (71, 150), (149, 150)):
            np.testing.assert_array_equal(rows.read(top, bottom), whole[top:bottom])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_other_files_are_read_whole(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "a.tif" else {}))
    with open_rows(tmp_path / name) as rows:
        np.testing.assert_array_equal(rows.read(20, 50), read_image(tmp_path / name)[20:50])


def test_a_packed_tiff_is_decoded_once_and_only_as_far_as_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, {"tile": (16, 32), "compression": "zlib"})
    with tifffile.TiffFile(path) as file:
        rows = _TiffRows(path, file.pages[0], lambda stored: (stored, None))
        decoded = [len(rows.kept)]
        original = rows._next
        rows._next = lambda: decoded.append(16) or original()  # type: ignore[func-returns-value,method-assign,assignment]
        for top in range(0, 110, 20):
            rows.read(top, top + 40)
            assert len(rows.kept) < 40 + 16
            assert sum(decoded) < top + 40 + 16
    assert sum(decoded) == 144


def test_without_tifffile_a_tiff_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", RGB, {})
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with open_rows(path) as rows:
        np.testing.assert_array_equal(rows.read(3, 9), RGB[3:9])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["no image", "cut short", "a broken tile"])
def test_broken_files_are_named(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "broken.tif", RGB, {"tile": (16, 96), "compression": "zlib"} if "tile" in kind else {})
    data = bytearray(path.read_bytes())
    if kind == "no image":
        data = bytearray(b"II*\0nothing")
    elif kind == "cut short":
        del data[2000:]
    else:
        with tifffile.TiffFile(path) as file:
            offset = file.pages[0].dataoffsets[5]
        data[offset : offset + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.tif"), open_rows(path) as rows:
        rows.read(0, 150)


def test_a_png_written_in_bands_is_read_back(tmp_path: Path) -> None:
    labels = RGB[..., 0]
    with PngWriter(tmp_path / "x/a.png", labels.shape) as file:  # type: ignore[arg-type]
        for top in range(0, 150, 37):
            file.write(labels[top : top + 37])
        assert not (tmp_path / "x/a.png").exists()
    with Image.open(tmp_path / "x/a.png") as image:
        image.verify()
    with Image.open(tmp_path / "x/a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_a_png_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError), PngWriter(tmp_path / "a.png", (150, 90)) as file:
        file.write(RGB[0, :, 0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{}, {"tile": (32, 32), "compression": "zlib"}, {"rowsperstrip": 7, "compression": "lzw"}]
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_bands_of_a_deep_tiff_are_those_of_the_whole(tmp_path: Path, options: dict, byteorder: str) -> None:
    """Of four bands, with places without data, which are known as soon as their rows are read."""
    values = RNG.integers(1, 4001, (150, 90, 4), dtype=np.uint16)
    values[:20], values[100:130, 50:] = 0, 0
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", byteorder=byteorder,
                     extratags=[(42113, 2, 0, "0", True)], **options)  # fmt: skip
    images = open_images(tmp_path).fitted(3, bands=(4, 1, 2))
    whole, valid = images.masked(0)
    with open_rows(tmp_path / "a.tif", images.pixels) as rows:
        assert isinstance(rows, _TiffRows) == bool(options)
        for top, bottom in ((0, 40), (30, 70), (60, 150)):
            np.testing.assert_array_equal(rows.read(top, bottom), whole[top:bottom])
            assert rows.valid is not None
            np.testing.assert_array_equal(rows.valid[:bottom], valid[:bottom])  # type: ignore[index]


def test_a_deep_image_is_labelled_in_tiles_without_its_places_of_no_data(tmp_path: Path) -> None:
    values = RNG.integers(1, 4001, (200, 150, 4), dtype=np.uint16)
    values[150:, :70] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", tile=(32, 32), compression="zlib")
    torch.manual_seed(0)
    segmenter = Segmenter(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)))
    segmenter.pixels = open_images(path).fitted(4, nodata=0).pixels
    labels = predict_labels(segmenter, path)
    assert (labels[150:, :70] == 255).all()
    assert (labels != 255).sum() == 200 * 150 - 50 * 70
    for kinds, file in ((None, labels), ((0, 128, 255), np.array([0, 128, 255, *[0] * 253])[labels])):
        predict_to_file(segmenter, path, tmp_path / "out.png", values=kinds, tile=64)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), file)
    image, valid = open_images(path).fitted(4, recorded=segmenter.pixels).masked(0)
    np.testing.assert_array_equal(predict_labels(segmenter, image)[valid], labels[valid])
