"""Decoded images in memory and, beyond it, in a file without a name."""

import errno
import os
import pickle
from collections import namedtuple
from multiprocessing import get_context

import numpy as np
import pytest

import das3
import worlds
from das3.data.images import Images
from das3.data.pixels import Pixels
from das3.data.shared_cache import Room, SharedCache
from das3.models import load_segmenter
from das3.recipe import Recipe
from das3.training import launch

SIDE, COUNT = 16, 6
BYTES = 3 * SIDE * SIDE


class Decoded(Images):
    """Counts what is decoded; some images are floats, some are masked."""

    is_thread_safe = True

    def __init__(self, *, floats=False, masked=False):
        super().__init__([str(i) for i in range(COUNT)])
        self.floats, self.has_masks, self.reads = floats, masked, []
        self.pixels = Pixels(dtype="float32") if floats else None

    def masked(self, i):
        self.reads.append(i)
        image = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        image = image.astype(np.float32) / 255 if self.floats else image
        return image, np.random.default_rng(i).random((SIDE, SIDE)) < 0.5 if self.has_masks else None

    def __getitem__(self, i):
        return self.masked(i)[0]

    def size(self, i):
        return SIDE, SIDE


def open_files(folder):
    """Of this process, in the folder, also those without a name."""
    return sum(str(folder) in os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.islink(link))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("memory", "disk"), [(6, 0), (0, 6), (2, 4), (2, 2), (1, 9), (0, 0), (2.5, 1.5)])
def test_images_are_decoded_once_while_there_is_room(memory, disk, floats, masked, tmp_path):
    size = BYTES * (4 if floats else 1)
    source = Decoded(floats=floats, masked=masked)
    images = source.resized(None, room=Room(int(memory * size), int(disk * size), tmp_path))
    source.reads.clear()
    kept = min(COUNT, int(memory) + int(disk))
    for _ in range(2):
        for i in range(COUNT):
            image, valid = images.masked(i)
            expected, mask = Decoded(floats=floats, masked=masked).masked(i)
            assert image.dtype == expected.dtype
            assert np.array_equal(image, expected)
            assert (valid is None and mask is None) or np.array_equal(valid, mask)
    assert sorted(source.reads) == sorted([*range(COUNT), *range(kept, COUNT)])
    assert not [*tmp_path.iterdir()]  # the file has no name
    assert (open_files(tmp_path) > 0) == bool(int(disk) and int(memory) < COUNT)
    del images, image, valid
    assert open_files(tmp_path) == 0


def test_a_forked_process_fills_the_file_for_all(tmp_path):
    source = Decoded()
    images = source.resized(None, room=Room(BYTES, 9 * BYTES, tmp_path))
    reader = get_context("fork").Process(target=lambda: [images[i] for i in range(COUNT)])
    reader.start()
    reader.join()
    source.reads.clear()
    for i in range(COUNT):
        assert np.array_equal(images[i], Decoded()[i])
    assert not source.reads


def test_a_process_that_is_no_fork_has_memory_alone(tmp_path):
    images = Decoded().resized(None, room=Room(2 * BYTES, 9 * BYTES, tmp_path))
    first = images[0]
    files = open_files(tmp_path)
    other = pickle.loads(pickle.dumps(images))
    for i in (0, 1, 1, 5, 5):
        assert np.array_equal(other[i], images[i])
    assert open_files(tmp_path) == files
    assert other.images.reads.count(1) == 1
    assert other.images.reads.count(5) == 2
    assert np.array_equal(first, Decoded()[0])


def test_a_closed_cache_gives_everything_back(tmp_path):
    source = Decoded()
    images = source.resized(None, room=Room(2 * BYTES, 9 * BYTES, tmp_path))
    assert all(images[i] is not None for i in range(COUNT))
    images.close()
    assert open_files(tmp_path) == 0
    source.reads.clear()
    assert np.array_equal(images[5], Decoded()[5])
    assert np.array_equal(images[0], Decoded()[0])
    assert source.reads == [5, 0]
    images.close()


def test_a_run_leaves_no_file_open(tmp_path):
    world = worlds.write_world(tmp_path / "world", "target", count=4)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 4})
    options = {"device": "cpu", "quiet": True, "stages": ["bn"], "cache_gib": 0.0}
    result = das3.adapt(segmenter, world / "images", out=tmp_path / "run", **options)
    assert open_files(tmp_path / "run") == 0
    assert result.folder == tmp_path / "run"


def test_a_full_disk_costs_only_time(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = Decoded()
    images = source.resized(None, room=Room(BYTES, 9 * BYTES, tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert all(np.array_equal(images[i], Decoded()[i]) for i in range(COUNT))
    assert source.reads.count(0) == 1
    assert source.reads.count(5) == 2


def test_what_is_written_in_parts_is_whole(tmp_path, monkeypatch):
    write = os.pwrite
    source = Decoded()
    images = source.resized(None, room=Room(0, 9 * BYTES, tmp_path))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:100], at))
    for _ in range(2):
        assert all(np.array_equal(images[i], Decoded()[i]) for i in range(COUNT))
    assert source.reads == [*range(COUNT)]


def test_no_more_than_half_of_the_free_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("das3.data.shared_cache.shutil.disk_usage", lambda folder: usage(0, 0, 7 * BYTES))
    cache = SharedCache([(SIDE, SIDE)] * COUNT, 3, Room(BYTES, 100 * BYTES, tmp_path))
    assert (cache.in_memory, len(cache.sizes)) == (1, 4)


@pytest.mark.parametrize("where", ["missing", None])
def test_without_a_folder_there_is_memory(where, tmp_path):
    folder = where and tmp_path / where
    cache = SharedCache([(SIDE, SIDE)] * COUNT, 3, Room(2 * BYTES, 100 * BYTES, folder))
    assert len(cache.sizes) == 2
    assert cache.put(4, Decoded()[4], None)[1] is None
    assert cache.get(4) is None


def test_a_folder_that_takes_no_file(tmp_path, monkeypatch):
    def refused(**given):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("das3.data.shared_cache.tempfile.TemporaryFile", refused)
    images = Decoded().resized(None, room=Room(2 * BYTES, 100 * BYTES, tmp_path))
    assert all(np.array_equal(images[i], Decoded()[i]) for i in range(COUNT))


@pytest.mark.parametrize(("options", "room"), [({}, (4, 16)), ({"cache_gib": 0.5, "disk_cache_gib": 2.5}, (0.5, 2.5))])
def test_a_run_has_the_room_that_its_options_say(options, room, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "run_phases", lambda run, fabric, model, images, *more, **given: seen.append(images))
    world = worlds.write_world(tmp_path / "world", "target", count=4)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 4})
    monkeypatch.setattr("das3.data.images.SharedCache", lambda sizes, pixel, room: seen.append(room))
    with pytest.raises(AttributeError):  # there is no outcome
        das3.adapt(segmenter, world / "images", out=tmp_path / "run", device="cpu", quiet=True, report=False, **options)
    assert seen[0] == Room(int(room[0] * 2**30), int(room[1] * 2**30), tmp_path / "run")


def test_processes_share_the_disk():
    """Each has a file of its own."""
    assert launch._room(Recipe(disk_cache_gib=8), None, 4).disk == 2 * 2**30
