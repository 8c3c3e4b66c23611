"""Images of every usual format and mode, from every kind of source, against pictures whose pixels are known."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from das3.data.image_files import read_image
from das3.data.images import Images, resize_image, resize_label, resized_shape
from das3.data.open import open_images
from das3.data.shared_cache import Room
from das3.errors import DataError
from data import trees

GREY = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)
COLOR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


def write(path: Path, array: np.ndarray = COLOR, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF", "ppm", "webp", "jp2"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    options = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}.get(suffix, {})
    np.testing.assert_array_equal(read_image(write(tmp_path / f"a.{suffix}", **options)), COLOR)


def test_jpeg_is_close(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(read_image(write(tmp_path / "a.jpg", flat)).astype(int) - flat).max() <= 3


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", three(GREY)),
        ("LA", three(GREY)),
        ("1", three(np.where(np.indices((6, 10)).sum(0) % 2, 255, 0).astype(np.uint8))),
    ],
)
def test_grey_modes(tmp_path: Path, mode: str, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", expected[..., 0], mode)), expected)


def test_cmyk(tmp_path: Path) -> None:
    assert np.abs(read_image(write(tmp_path / "a.tif", COLOR, "CMYK")).astype(int) - COLOR).max() <= 1


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    indices = (np.indices((6, 10)).sum(0) % 2).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 200, 100, 50])
    for options in ({}, {"transparency": 1}):
        image.save(tmp_path / "a.png", **options)
        expected = np.where(indices[..., None], (200, 100, 50), (10, 20, 30))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    invisible = np.dstack([COLOR, np.zeros_like(GREY)])
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", invisible)), COLOR)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_every_level(tmp_path: Path, suffix: str) -> None:
    values = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    np.testing.assert_allclose(read_image(write(tmp_path / f"a.{suffix}", values)), three(values / 65535), atol=1e-7)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_rgb_keeps_every_level(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (6, 10, 3)).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(trees.png_16_bit_rgb(values))
    else:
        pytest.importorskip("tifffile").imwrite(path, values, photometric="rgb")
    np.testing.assert_allclose(read_image(path), values / 65535, atol=1e-7)


@pytest.mark.parametrize(("top", "low", "high"), [(1.0, 0, 1), (3000.0, 0, 3000 * 236 / 255)])
def test_floating_tiff(tmp_path: Path, top: float, low: float, high: float) -> None:
    values = (GREY / 255 * top).astype(np.float32)
    expected = three((values - low) / (high - low))
    np.testing.assert_allclose(read_image(write(tmp_path / "a.tif", values)), expected, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = write(tmp_path / "a.png", COLOR, exif=exif)
    stored = {
        1: COLOR,
        2: COLOR[:, ::-1],
        3: COLOR[::-1, ::-1],
        4: COLOR[::-1],
        5: COLOR.transpose(1, 0, 2),
        6: np.rot90(COLOR, -1),
        7: np.rot90(COLOR, 2).transpose(1, 0, 2),
        8: np.rot90(COLOR),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), stored)
    assert open_images(tmp_path).sizes() == [stored.shape[:2]]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.tif").max() == 10


def test_larger_than_pillows_bomb_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(path).shape == (6, 10, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "jpg", "tif", "gif", "bmp"]), st.data())
def test_a_damaged_file_is_a_data_error_or_a_picture(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("damaged") / f"a.{suffix}")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("das3.data.decoding.LARGEST", 10_000)  # the machine should live through broken headers
            image = read_image(path)
    except DataError as error:
        message = str(error)
    else:
        message = str(path)
        assert image.dtype in (np.uint8, np.float32)
        assert image.shape[2] == 3
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\xff\xd8\xff\xe0"])
def test_verify_finds_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        open_images(tmp_path).verify()


def test_folder_tree(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/y.jpeg", ".hidden.png", ".git/x.png", "c.d.png"):
        write(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    images = open_images(tmp_path)
    assert images.names == ["a/y", "a/z", "b", "c.d"]
    assert len(images) == 4
    assert images[1].shape == (6, 10, 3)
    assert [i.shape for i in images] == [(6, 10, 3)] * 4


def test_images_that_differ_in_their_suffix_alone(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png", "b.png"):
        write(tmp_path / name)
    assert sorted(open_images(tmp_path).names) == ["a.jpg", "a.jpg.png", "a.png", "b"]


def test_list_file(tmp_path: Path) -> None:
    for name in ("data/x#1.png", "data/sub/y.png", "z.png"):
        write(tmp_path / name)
    (tmp_path / "data/list.txt").write_text("\ufeff# comment\n\nx#1.png\n  sub/y.png  \n", encoding="utf-8")
    assert open_images(tmp_path / "data/list.txt").names == ["x#1", "sub/y"]
    (tmp_path / "data/list.txt").write_text(f"x#1.png\n../z.png\n{tmp_path}/data/sub/y.png\n")
    images = open_images(tmp_path / "data/list.txt")
    assert images.names == ["data/x#1", "z", "data/sub/y"]
    images.verify()


def test_paths(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("a/x.png", "b/y.png")]
    assert open_images(paths).names == ["a/x", "b/y"]
    assert open_images([str(paths[0])]).names == ["x"]
    assert open_images(paths[0]).names == ["x"]
    images = open_images(paths)
    assert open_images(images) is images
    with pytest.raises(DataError, match="listed twice"):
        open_images([*paths, paths[0]])


def test_names_never_leave_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "a/x.png")
    write(tmp_path / "b/x.png")
    (tmp_path / "a/l.txt").write_text("../b/x.png\n./x.png\n../a/../b/../a/../b/x.png")
    with pytest.raises(DataError, match=r"b/x\.png is listed twice"):
        open_images(tmp_path / "a/l.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, r"\.jpg .*\.png"),
        (lambda p: p / "absent", "no images at"),
        (lambda p: p / "empty.txt", "no images listed"),
        (lambda p: p / "gone.txt", r"1 of 1 listed images do not exist.*gone\.png"),
        (lambda p: [], "empty"),
        (lambda p: 3, "int"),
    ],
)
def test_nothing_to_open(tmp_path: Path, make: object, message: str) -> None:
    (tmp_path / "empty.txt").write_text("# none\n")
    (tmp_path / "gone.txt").write_text("gone.png\n")
    with pytest.raises(DataError, match=message):
        open_images(make(tmp_path))  # type: ignore[operator]


CHW = COLOR.transpose(2, 0, 1).copy()


@pytest.mark.parametrize(
    "item",
    [
        Image.fromarray(COLOR),
        COLOR,
        CHW,
        torch.from_numpy(CHW),
        torch.from_numpy(CHW).float() / 255,
        (torch.from_numpy(CHW), "label"),
        [COLOR, None],
        {"image": COLOR, "label": 1},
        {"pixel_values": torch.from_numpy(CHW).float() / 255},
        np.dstack([COLOR, GREY]),
        COLOR.astype(np.float64) / 255,
    ],
)
def test_dataset_items(item: object) -> None:
    images = open_images([item, item])
    np.testing.assert_array_equal(images[1], COLOR)
    assert images.names == ["000000", "000001"]
    assert images.sizes() == [(6, 10)] * 2
    assert sum(1 for _ in images) == 2


def test_grey_dataset_items() -> None:
    for item in (GREY, GREY[None], GREY[..., None], torch.from_numpy(GREY)[None].float() / 255):
        np.testing.assert_array_equal(open_images([item])[0], three(GREY))


@pytest.mark.parametrize(
    "item", [None, "text", {}, np.zeros((2, 3, 4, 5)), COLOR.astype(float), COLOR / -255, np.full((2, 2, 3), np.nan)]
)
def test_items_that_are_no_images(item: object) -> None:
    class One(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> object:
            return item

    with pytest.raises(DataError, match="item 0 of the dataset"):
        open_images(One()).verify()


def test_labels_of_a_dataset_are_never_touched() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"label looked at: {name}")

    np.testing.assert_array_equal(open_images([(COLOR, Untouchable())])[0], COLOR)
    np.testing.assert_array_equal(open_images([{"image": COLOR, "label": Untouchable()}])[0], COLOR)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_resize_to_the_shorter_side(height: int, width: int, side: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    resized = resize_image(image, side)
    assert min(resized.shape[:2]) == side
    assert resized.shape[:2] == resized_shape((height, width), side)
    assert abs(max(resized.shape[:2]) - max(height, width) * side / min(height, width)) <= 0.5
    assert image.min() <= resized.min() <= resized.max() <= image.max()


def test_resizing_images_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = resize_image(stripes, (16, 16))[:, 2:-2]
    assert np.abs(middle.astype(int) - 127).max() <= 2


@given(st.integers(1, 30), st.integers(1, 30), st.sets(st.integers(0, 255), min_size=1, max_size=4))
def test_resizing_labels_invents_no_class(height: int, width: int, classes: set[int]) -> None:
    label = np.random.default_rng(width).choice(sorted(classes), (17, 23)).astype(np.uint8)
    resized = resize_label(label, (height, width))
    assert resized.shape == (height, width)
    assert set(np.unique(resized)) <= classes
    np.testing.assert_array_equal(resize_label(np.kron(label, np.ones((3, 3), np.uint8)), (17, 23)), label)


def test_resizing_to_the_own_size_changes_nothing() -> None:
    assert resize_image(COLOR, None) is COLOR
    assert resize_image(COLOR, (6, 10)) is COLOR
    assert resize_label(GREY, 6) is GREY


class Counting(Images):
    def __init__(self) -> None:
        super().__init__(["a", "b"])
        self.reads = 0

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        self.reads += 1
        return COLOR if i == 0 else GREY[..., None].repeat(3, 2)[:, :5]


def test_as_many_resized_images_are_kept_as_fit() -> None:
    needed = 3 * (3 * 5 + 4 * 3)
    for budget, reads in ((needed, 2), (needed - 1, 4), (10, 6), (0, 6)):
        source = Counting()
        resized = source.resized(3, room=Room(budget))
        assert resized.names == ["a", "b"]
        assert resized.sizes() == [(3, 5), (4, 3)]
        source.reads = 0
        for _ in range(3):
            np.testing.assert_array_equal(resized[0], resize_image(COLOR, 3))
            assert resized[1].shape == (4, 3, 3)
        assert source.reads == reads


def test_workers_are_sent_no_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.zeros((300, 300, 3), np.uint8))
    images = open_images(tmp_path).resized(200, room=Room(1 << 20))
    first = images[0]
    copy = pickle.dumps(images)
    assert len(copy) < 2000
    np.testing.assert_array_equal(pickle.loads(copy)[0], first)
    assert np.shares_memory(images[0], first)


def test_processes_share_what_was_decoded() -> None:
    """What a worker process decoded is there for the others, and the memory is not taken for each of them."""
    resized = Counting().resized(3, room=Room(1000))
    reader = get_context("fork").Process(target=resized.__getitem__, args=(0,))
    reader.start()
    reader.join()
    resized.images.reads = 0  # type: ignore[attr-defined]
    np.testing.assert_array_equal(resized[0], resize_image(COLOR, 3))
    assert resized.images.reads == 0  # type: ignore[attr-defined]


def test_threads_that_read_images_leave_the_process_as_it_was(tmp_path):
    """Filters of warnings and Pillow's limit are the process's; each thread sets and resets them."""
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    images = open_images(tmp_path)
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda n: images[n % 4].mean(), range(400)))
    assert read == [n % 4 for n in range(400)]
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before
