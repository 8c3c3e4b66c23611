"""Images that are no images, hide in loops, or are larger than they look; and those that are left out on demand."""

import json
import os
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

import worlds
from das3.cli import main
from das3.data import decoding as module
from das3.data.bad_images import sound_images
from das3.data.image_files import find_files, read_image
from das3.data.open import open_images
from das3.errors import DataError
from das3.models import load_segmenter, save_segmenter


@pytest.fixture
def world(tmp_path):
    """Three sound images, one that is cut off, and a named pipe; a model and labels."""
    worlds.write_world(tmp_path, "target", count=3)
    whole = (tmp_path / "images/0.png").read_bytes()
    (tmp_path / "images/bad.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "images/pipe.png")
    for name in ("bad", "pipe"):
        (tmp_path / f"labels/{name}.png").write_bytes((tmp_path / "labels/0.png").read_bytes())
    save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), tmp_path / "model")
    return tmp_path


def run(world, command, *more):
    given = ("--model", world / "model", "--images", world / "images", "--device=cpu", "--quiet")
    return main([str(a) for a in (command, *given, *more)])


def test_folders_are_searched_once_by_their_own_names(tmp_path):
    worlds.write_world(tmp_path / "w", "target", count=2)
    (tmp_path / "w/images/again").symlink_to(".")
    (tmp_path / "w/a-link").symlink_to("images")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.png").write_bytes((tmp_path / "w/images/0.png").read_bytes())
    (tmp_path / "w/images/other").symlink_to(tmp_path / "other")
    found = [p.relative_to(tmp_path).as_posix() for p in find_files(tmp_path / "w/images")]
    assert found == ["w/images/0.png", "w/images/1.png", "w/images/other/x.png"]
    assert len(find_files(tmp_path / "w")) == 5
    assert not any("link" in p.as_posix() for p in find_files(tmp_path / "w"))


def test_only_documented_formats_are_opened(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(DataError, match="not an image"):
        read_image(tmp_path / "x.png")


def test_the_size_is_looked_at_before_an_image_is_decoded(tmp_path, monkeypatch):
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + header + b"\0\0\0\0" + bytes(12))
    with pytest.raises(DataError, match=r"x\.png"):
        read_image(tmp_path / "x.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "y.png")
    monkeypatch.setattr(module, "LARGEST_DECODED", 3 * 40 * 30)
    assert read_image(tmp_path / "y.png").shape == (30, 40, 3)
    monkeypatch.setattr(module, "LARGEST_DECODED", 3 * 40 * 30 - 1)
    with pytest.raises(DataError, match="40×30 pixels are more"):
        read_image(tmp_path / "y.png")


@pytest.mark.parametrize("how", [{"tile": (16, 16), "compression": "zlib"}, {"rowsperstrip": 4}, {}])
def test_the_range_of_a_tiff_that_is_too_large_is_found_in_parts(how, tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 4000, (64, 48, 4), np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig", **how)
    whole = open_images(tmp_path).fitted(4).pixels
    monkeypatch.setattr(module, "LARGEST_DECODED", 1000)
    parts = open_images(tmp_path).fitted(4).pixels
    assert (parts.low, parts.high) == (whole.low, whole.high) == ((0.0,), (4095.0,))


def test_sound_images_are_those_that_can_be_decoded(world):
    images, kept, skipped = sound_images(open_images(world / "images"))
    assert (images.names, kept) == (["0", "1", "2"], [0, 1, 2])
    assert [one.name for one in skipped] == ["bad", "pipe"]
    assert "named pipe" in skipped[1].reason
    for name in "012":
        (world / f"images/{name}.png").unlink()
    with pytest.raises(DataError, match=r"none of the 2 images.*bad\.png"):
        sound_images(open_images(world / "images"))


def test_a_dataset_that_raises():
    class Odd:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            if i == 1:
                raise OSError("the disk is gone")
            return np.zeros((4, 5, 3), np.uint8)

    with pytest.raises(DataError, match=r"item 1 of the dataset.*the disk is gone"):
        open_images(Odd())[1]
    images, kept, skipped = sound_images(open_images(Odd()))
    assert (images.names, kept, [one.name for one in skipped]) == (["000000", "000002"], [0, 2], ["000001"])
    assert images[1].shape == (4, 5, 3)


def test_bad_images_stop_a_command_or_are_listed(world, capsys):
    assert run(world, "predict", "--out", world / "out") == 2
    assert "bad.png" in capsys.readouterr().err
    assert run(world, "evaluate", "--labels", world / "labels") == 2
    assert "bad.png" in capsys.readouterr().err
    assert run(world, "predict", "--out", world / "out", "--on-bad-image=skip") == 0
    said = capsys.readouterr().out
    assert "3 images labelled" in said
    assert "2 images left out" in said
    assert "bad.png" in said
    result = world / "e.json"
    assert run(world, "evaluate", "--labels", world / "labels", "--out", result, "--on-bad-image=skip") == 0
    assert [one["name"] for one in json.loads(result.read_text())["skipped_images"]] == ["bad", "pipe"]
    assert json.loads(result.read_text())["images"] == 3


def test_an_adaptation_lists_what_it_left_out(world):
    more = ("--out", world / "run", "--stages=bn", "--guard=off", "--report=false")
    assert run(world, "adapt", *more) == 2
    assert run(world, "adapt", *more, "--on-bad-image=skip") == 0
    summary = json.loads((world / "run/summary.json").read_text())
    assert [one["name"] for one in summary["skipped_images"]] == ["bad", "pipe"]
    assert all("reason" in one for one in summary["skipped_images"])


def test_labels_without_a_pixel_that_counts_are_told(world, capsys):
    for path in (world / "labels").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    assert run(world, "evaluate", "--labels", world / "labels", "--on-bad-image=skip") == 2
    assert "no pixel of the labels" in capsys.readouterr().err
