"""The cache of decoded images, and the fingerprint of a data set."""

import pickle

import numpy as np
from PIL import Image

import worlds
from das3.data.cache import fingerprint, open_packed, pack
from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled


def test_packed_images_are_the_resized_ones(tmp_path):
    world = worlds.write_world(tmp_path / "world", "target", count=3, size=(40, 30))
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(world / "images/9.png")
    Image.fromarray(np.full((50, 60), 255, np.uint8)).save(world / "labels/9.png")
    data = open_labelled(world / "images", world / "labels")
    assert pack(data, tmp_path / "packed", 24)
    packed = pickle.loads(pickle.dumps(open_packed(tmp_path / "packed")))
    assert isinstance(packed, Labelled)
    wanted = data.images.resized(24)
    assert packed.images.names == wanted.names
    assert packed.images.sizes() == wanted.sizes()
    assert packed.images.resized(24) is packed.images
    assert packed.class_names == data.class_names
    for i in range(4):
        assert (packed.image(i) == wanted[i]).all()
        assert (packed.label(i) == data.label(i)).all()
    before = (tmp_path / "packed/index.json").stat().st_mtime_ns
    assert pack(data, tmp_path / "packed", 24)
    assert (tmp_path / "packed/index.json").stat().st_mtime_ns == before
    assert pack(open_images(world / "images"), tmp_path / "packed", 24)
    assert not isinstance(open_packed(tmp_path / "packed"), Labelled)


def test_sets_that_are_too_large_are_not_packed(tmp_path, monkeypatch):
    world = worlds.write_world(tmp_path / "world", "target", count=2)
    monkeypatch.setattr("das3.data.cache.LARGEST", 1000)
    assert not pack(open_images(world / "images"), tmp_path / "packed")


def test_a_fingerprint_depends_on_the_data_and_not_on_the_folder(tmp_path):
    one, two = (worlds.write_world(tmp_path / name, "target", count=3) for name in "ab")
    marks = [fingerprint(open_labelled(w / "images", w / "labels")) for w in (one, two)]
    assert marks[0] == marks[1] != fingerprint(open_images(one / "images"))
