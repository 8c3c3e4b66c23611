"""What is read of plain JPEG and PNG files without Pillow is what Pillow says, or nothing."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from das3.data import decoding, quick_forms
from das3.data.decoding import opened, probe, to_rgb
from das3.data.formats import pillow_form
from das3.data.image_files import ImageFiles, find_files
from das3.data.quick_forms import quick_file, quick_form, quick_pixels
from das3.errors import DataError

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def text(key: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value)
    return info


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PLAIN_PNG, PLAIN_JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG")
TURNED_LATE = PLAIN_PNG[:-12] + chunk(b"eXIf", turned().tobytes()[6:]) + PLAIN_PNG[-12:]
ORDINARY = {
    "rgb.jpg": PLAIN_JPEG,
    "grey.jpg": encoded(RGB.convert("L"), "JPEG"),
    "progressive.jpeg": encoded(RGB, "JPEG", progressive=True, quality=95, subsampling=0),
    "profile.JPG": encoded(RGB, "JPEG", icc_profile=bytes(3000), comment=b"a comment"),
    "rgb.png": PLAIN_PNG,
    "grey.png": encoded(RGB.convert("L"), "PNG"),
    "palette.png": encoded(RGB.convert("P"), "PNG", bits=8),
    "text.png": encoded(RGB, "PNG", pnginfo=text("Author", "nobody"), dpi=(72, 72)),
    "jpeg-called.png": PLAIN_JPEG,
    "png-called.jpg": PLAIN_PNG,
}
FOR_PILLOW = {
    "turned.jpg": encoded(RGB, "JPEG", exif=turned()),
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG"),
    "two.jpg": encoded(RGB, "MPO", save_all=True, append_images=[RGB]),
    "turned.png": encoded(RGB, "PNG", exif=turned()),
    "turned-late.png": TURNED_LATE,
    "raw-exif.png": encoded(RGB, "PNG", pnginfo=text("Raw profile type exif", "\nexif\n 0\n")),
    "alpha.png": encoded(RGB.convert("RGBA"), "PNG"),
    "transparent.png": encoded(RGB, "PNG", transparency=(1, 2, 3)),
    "bits.png": encoded(RGB.convert("1"), "PNG"),
    "deep.png": encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
    "other.bmp": encoded(RGB, "BMP"),
}


@pytest.mark.parametrize("name", [*ORDINARY, *FOR_PILLOW])
def test_it_says_what_pillow_says(tmp_path, name):
    path = tmp_path / name
    path.write_bytes({**ORDINARY, **FOR_PILLOW}[name])
    with opened(path) as image:
        assert quick_form(path) == (pillow_form(image) if name in ORDINARY else None)


@pytest.mark.parametrize("name", [*ORDINARY, *FOR_PILLOW])
def test_pixels_are_those_of_pillow(tmp_path, name):
    path = tmp_path / name
    path.write_bytes({**ORDINARY, **FOR_PILLOW}[name])
    found = quick_file(path, (20, 30))
    if name in FOR_PILLOW or name == "palette.png":
        assert found is None
        return
    with opened(path) as image:
        expected = to_rgb(image)
    assert np.array_equal(found, expected)
    assert np.array_equal(found, ImageFiles([path], tmp_path)[0])
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert quick_file(path, (30, 20)) is None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        *(
            {"format": "JPEG", "quality": q, "subsampling": s, "progressive": q == 60}
            for q in (5, 60, 98)
            for s in range(3)
        ),
        {"format": "JPEG", "quality": 90, "keep_rgb": True},
        {"format": "PNG", "compress_level": 0},
        {"format": "PNG", "optimize": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 128)])
def test_pixels_of_any_picture_are_those_of_pillow(size, options, mode):
    height, width = size
    noise = np.random.default_rng(1).normal(0, 20, (height, width, 3))
    ramp = np.linspace(0, 255, width)[None, :, None] + noise
    picture = Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).convert(mode)
    data = encoded(picture, options["format"], **{k: v for k, v in options.items() if k != "format"})
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(quick_pixels(data, size), to_rgb(image))


@pytest.mark.parametrize("chunks", [("gAMA", 10), ("sBIT", 4), ("bKGD", 9), ("tIME", 2), ("cHRM", 5)], ids=str)
def test_metadata_of_a_png_changes_no_pixel(chunks):
    kind, value = chunks
    sizes = {"gAMA": 4, "sBIT": 3, "bKGD": 6, "tIME": 7, "cHRM": 32}
    data = PLAIN_PNG[:33] + chunk(kind.encode(), bytes([0] * (sizes[kind] - 3) + [value] * 3)) + PLAIN_PNG[33:]
    found = quick_pixels(data, (20, 30))
    assert np.array_equal(found, np.asarray(RGB))


def test_orientation_after_the_pixels_counts(tmp_path):
    (tmp_path / "a.png").write_bytes(TURNED_LATE)
    assert probe(tmp_path / "a.png").size == (30, 20)


@pytest.mark.parametrize(("name", "whole"), [("a.jpg", PLAIN_JPEG), ("a.png", PLAIN_PNG)])
def test_damage_is_no_other_image(tmp_path, name, whole):
    """One byte of the header is another one, or the file ends: Pillow decides, or says the same, or can't decode it."""
    path, rng = tmp_path / name, np.random.default_rng(0)
    spoilt = [whole[:end] for end in range(0, len(whole), 29)]
    for at in range(0, min(700, len(whole)), 3):
        spoilt.append(whole[:at] + bytes([int(rng.integers(256))]) + whole[at + 1 :])
    for data in spoilt:
        path.write_bytes(data)
        found = quick_form(path)
        if found is None:
            continue
        try:
            with opened(path) as image:
                assert pillow_form(image) == found
        except DataError:
            with pytest.raises(DataError, match=str(path)):
                ImageFiles([path], tmp_path).decode(0)


@pytest.mark.parametrize(("name", "whole"), [("a.jpg", PLAIN_JPEG), ("a.png", PLAIN_PNG)])
def test_what_is_decoded_of_a_damaged_file_is_what_pillow_decodes(tmp_path, name, whole, capfd):
    path, rng = tmp_path / name, np.random.default_rng(0)
    spoilt = [whole[:end] for end in range(0, len(whole), 17)]
    for at in range(2, len(whole), 5):
        spoilt.append(whole[:at] + bytes([int(rng.integers(256))]) + whole[at + 1 :])
    spoilt += [whole[:at] + whole[at + 40 :] for at in range(2, len(whole) - 42, 31)]
    decoded = 0
    for data in spoilt:
        path.write_bytes(data)
        if (found := quick_file(path, (20, 30))) is not None:
            with opened(path) as image:
                assert np.array_equal(found, to_rgb(image))
            decoded += 1
    assert decoded or name == "a.png"
    assert capfd.readouterr() == ("", "")


def test_half_a_png_is_found_before_it_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(PLAIN_PNG[: len(PLAIN_PNG) // 2])
    with pytest.raises(DataError, match=r"a\.png"):
        ImageFiles([tmp_path / "a.png"], tmp_path).verify()


def test_no_file_is_no_form(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "missing.png", "nul\0.png"):
        assert quick_form(tmp_path / name) is None


def test_pillow_opens_no_ordinary_image(tmp_path, monkeypatch):
    for name, data in ORDINARY.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(decoding, "opened", lambda *_: pytest.fail("Pillow opened it"))
    images = ImageFiles(find_files(tmp_path), tmp_path)
    assert {form.size for _, form in images.forms()} == {(20, 30)}
    quick_forms._picture.cache_clear()


def test_files_are_sorted_and_named_as_paths_are(tmp_path):
    names = ["a/b.png", "a.png", "a-b/c.tar.png", "a/b/c.JPG", "a b.png", "ä.png", "Z.png", "a/b.jpg", "n.nii.gz"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    found = find_files(tmp_path)
    assert found == sorted(Path(tmp_path, name) for name in names)
    images = ImageFiles([path for path in found if path.suffix != ".gz"], tmp_path)
    assert images.names == ["Z", "a/b/c", "a/b.jpg", "a/b.png", "a b", "a-b/c.tar", "a", "ä"]
