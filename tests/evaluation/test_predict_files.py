"""`das3 predict` on patterns, videos and mixed sizes; labels that a viewer shows in colour; large images in tiles."""

import json
import resource
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import das3
import worlds
from das3.cli import main
from das3.data.open import open_images
from das3.data.video import VideoFrames, VideoWriter, find_videos, is_stream
from das3.data.visualize import legend, palette
from das3.errors import DataError
from das3.evaluation.label_video import label_video
from das3.evaluation.predict import predict_labels
from das3.evaluation.prediction_files import predict_to_file
from das3.models import load_segmenter, save_segmenter

NAMES = ["lane", "road", "car"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 8}, class_names=NAMES)
    return save_segmenter(segmenter, tmp_path_factory.mktemp("model") / "model")


def predict(model, images, out, *extra):
    given = ["--model", model, "--images", images, "--out", out, "--device", "cpu", "--quiet", *extra]
    return main(["predict", *map(str, given)])


def write_images(folder, sizes):
    for i, size in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        (folder / f"town{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"town{i % 2}" / f"{i}.png")


def test_labels_are_in_colour_for_viewers_and_class_ids_for_programs(model, tmp_path):
    write_images(tmp_path / "in", [(40, 60), (33, 21), (70, 30)])
    (tmp_path / "in/town0/notes.txt").write_text("no image")
    for out, extra in (("a", []), ("b", ["--overlays"]), ("c", ["--grey"]), ("d", ["--overlays", "--grey"])):
        assert predict(model, f"{tmp_path}/in/**/*", tmp_path / out, *extra) == 0
        for name, size in (("town0/0", (40, 60)), ("town1/1", (33, 21)), ("town0/2", (70, 30))):
            expected = predict_labels(load_segmenter(model), tmp_path / f"in/{name}.png")
            with Image.open(tmp_path / out / f"labels/{name}.png") as picture:
                assert picture.mode == ("L" if "--grey" in extra else "P")
                np.testing.assert_array_equal(np.array(picture), expected)
                if picture.mode == "P":
                    np.testing.assert_array_equal(np.array(picture.convert("RGB")), palette(NAMES)[expected])
            if "--overlays" in extra:
                seen = np.array(Image.open(tmp_path / out / f"overlays/{name}.png"))
                occurring = np.unique(expected)
                key = legend([NAMES[c] for c in occurring], palette(NAMES)[occurring], size[1])
                np.testing.assert_array_equal(seen[size[0] :], key)
    assert predict(model, f"{tmp_path}/in/*.jpg", tmp_path / "e") == 2


def test_server_ids_stay_grey(model, tmp_path):
    write_images(tmp_path / "in", [(20, 30)])
    classes = [{"name": name, "id": value} for name, value in zip(NAMES, (5, 7, 200), strict=True)]
    (tmp_path / "table.json").write_text(json.dumps({"classes": classes}))
    assert predict(model, tmp_path / "in", tmp_path / "out", "--ids", tmp_path / "table.json") == 0
    with Image.open(tmp_path / "out/labels/town0/0.png") as picture:
        assert picture.mode == "L"
        assert set(np.unique(np.array(picture))) <= {5, 7, 200}


@pytest.fixture
def video(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "in/drive.mp4"
    with VideoWriter(path, (48, 64), Fraction(10)) as writer:
        for i in range(5):
            writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    return path


def test_a_video_gives_labels_and_a_video(video, model, tmp_path, capsys):
    assert [int(frame.mean() / 39) for frame in VideoFrames(video)] == [0, 1, 2, 3, 4]
    assert predict(model, video, tmp_path / "out", "--overlays", "--every", 2) == 0
    labels = sorted((tmp_path / "out/labels/drive").iterdir())
    assert [p.name for p in labels] == ["000000.png", "000001.png", "000002.png"]
    frames = list(VideoFrames(video, every=2))
    np.testing.assert_array_equal(np.array(Image.open(labels[1])), predict_labels(load_segmenter(model), frames[1]))
    made = VideoFrames(tmp_path / "out/overlays/drive.mp4")
    assert made.rate == 5
    shown = list(made)
    assert len(shown) == 3
    assert shown[0].shape[0] > 48
    assert "3 frames" in capsys.readouterr().out
    write_images(tmp_path / "in", [(20, 30)])  # images and videos of one folder
    assert predict(model, tmp_path / "in", tmp_path / "both") == 0
    assert sorted(p.name for p in (tmp_path / "both/labels").iterdir()) == ["drive", "town0"]
    assert len(list((tmp_path / "both/labels/drive").iterdir())) == 5


def test_a_broken_video_is_one_line_and_leaves_nothing(model, tmp_path, capsys):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert predict(model, tmp_path / "a.mp4", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a.mp4" in error
    assert error.count("\n") == 1
    with pytest.raises(DataError), VideoWriter(tmp_path / "b.mp4", (16, 16), Fraction(5)):
        raise DataError("stopped")
    assert not list(tmp_path.glob("*b.mp4*"))


def test_ctrl_c_ends_a_stream_and_keeps_what_is_there(model, tmp_path):
    pytest.importorskip("av")

    def stream():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    segmenter = load_segmenter(model)
    assert label_video(segmenter, stream(), tmp_path, "stream", rate=Fraction(5), overlays=True) == 1
    assert (tmp_path / "labels/stream/000000.png").exists()
    assert len(list(VideoFrames(tmp_path / "overlays/stream.mp4"))) == 1


def test_what_is_a_stream_and_what_a_file(tmp_path):
    assert is_stream("rtsp://camera/1")
    assert is_stream("/dev/video0")
    assert find_videos("rtsp://camera/1") == ["rtsp://camera/1"]
    assert find_videos(tmp_path) == []
    assert find_videos(tmp_path / "none.mp4") == []


def seams(tmp_path, side):
    """Share of pixels of a side × side image that tiles label otherwise than the whole does; peak memory in GiB."""
    import tifffile

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 7, 4, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5, 2, 2), nn.ReLU()]
    segmenter = worlds.network(*layers, nn.Conv2d(8, 4, 3, 1, 1))
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (side // 64 + 1, side // 64 + 1, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(256, 256), compression="zlib")
    part = image[:4096, :4096]
    whole = predict_labels(segmenter, part, tile=4096)
    del image
    predict_to_file(segmenter, tmp_path / "large.tif", tmp_path / "out.png", colors=palette(4))
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (side, side)
        inner = min(side, 4064)
        found = np.array(picture.crop((0, 0, inner, inner)))
    return (found != whole[:inner, :inner]).mean(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.mark.parametrize("overlays", [[], ["--overlays"]])
def test_the_command_labels_an_image_that_is_too_large_to_be_decoded_whole(model, overlays, tmp_path, monkeypatch):
    import tifffile

    image = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(64, 64), compression="zlib")
    monkeypatch.setattr("das3.data.decoding.LARGEST_DECODED", 1000)
    monkeypatch.setattr("das3.evaluation.reading.LARGE", 1000)
    assert predict(model, tmp_path / "large.tif", tmp_path / "out", "--tile", "96", *overlays) == 0
    expected = predict_labels(load_segmenter(model), image, tile=96)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out/labels/large.png")), expected)


@pytest.mark.parametrize("large", [1, 10**9])
@pytest.mark.parametrize("ids", [[], ["--ids", "mask"]])
def test_the_command_and_iteration_leave_out_places_without_data(large, ids, tmp_path, monkeypatch):
    """In files that are read in strips, and in those that are read ahead."""
    import tifffile

    monkeypatch.setattr("das3.evaluation.reading.LARGE", large)
    values = np.random.default_rng(0).integers(1, 4001, (50, 40, 4), dtype=np.uint16)
    values[30:, :20] = 0
    for i in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(
            *(tmp_path / f"in/{i}.tif", values), photometric="minisblack", planarconfig="contig", tile=(32, 32)
        )
    torch.manual_seed(0)
    bands = load_segmenter("das3:small", num_classes=2, model_args={"width": 4, "in_channels": 4})
    bands.pixels = open_images(tmp_path / "in").fitted(4, nodata=0).pixels
    model = save_segmenter(bands, tmp_path / "model")
    assert predict(model, tmp_path / "in", tmp_path / "out", *ids) == 0
    found = [np.array(Image.open(tmp_path / f"out/labels/{i}.png")) for i in range(3)]
    assert all((one[30:, :20] == (0 if ids else 255)).all() for one in found)
    labels = [*das3.predict(model, tmp_path / "in", device="cpu")]
    for one, other in zip(labels, found, strict=True):
        np.testing.assert_array_equal(np.where(one == 255, 0, one * 255) if ids else one, other)


def test_seams_of_tiles_are_few(tmp_path):
    different, _ = seams(tmp_path, 2304)
    assert different < 0.001


@pytest.mark.slow
def test_twenty_thousand_pixels_square(tmp_path):
    different, memory = seams(tmp_path, 20_000)
    print(f"{100 * different:.4f} % of the pixels differ, {memory:.1f} GiB")
    assert different < 0.001
