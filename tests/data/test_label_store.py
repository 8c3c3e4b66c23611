"""Packs of pseudo labels: few files, whole or not there, each image readable alone."""

import io
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from imagecodecs import zstd_decode

from das3.data import array_files, label_store
from das3.data.label_store import LabelStore, find_labels
from das3.errors import DataError

NAMES = [f"town/{n}" for n in range(20)]


def labels_of(i):
    return {"labels": np.full((3, 4), i, np.uint8), "entropy": np.float32(i / 10)}


def filled(folder, images, names=NAMES):
    store = LabelStore(folder, names)
    with store.writing() as packs, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: packs.add(i, labels_of(i)), images))
    return store


def numbers(store):
    return {i: int(store[i]["labels"][0, 0]) for i in range(len(store)) if store.has(i)}


def test_labels_of_many_images_are_in_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(label_store, "PACK_IMAGES", 8)
    store = filled(tmp_path, range(1, 20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000-0.zip", "00001-0.zip", "00002-0.zip"]
    for one in (store, LabelStore(tmp_path, NAMES), pickle.loads(pickle.dumps(store))):
        assert numbers(one) == {i: i for i in range(1, 20)}
        assert set(one.read(5, "entropy")) == {"entropy"}
        assert one.maps("labels")(5)["labels"].tolist() == labels_of(5)["labels"].tolist()
    with pytest.raises(KeyError, match="town/0"):
        store[0]


@pytest.mark.parametrize(("limit", "value"), [("PACK_BYTES", 1), ("PACK_SECONDS", -1.0)])
def test_a_pack_is_bounded_in_bytes_and_in_the_work_that_a_kill_loses(limit, value, tmp_path, monkeypatch):
    monkeypatch.setattr(label_store, limit, value)
    store = LabelStore(tmp_path, NAMES)
    with store.writing() as packs:
        packs.add(3, labels_of(3))
        assert numbers(LabelStore(tmp_path, NAMES)) == {3: 3}


def test_any_program_that_reads_zip_files_reads_a_pack(tmp_path):
    filled(tmp_path, [2, 7])
    with zipfile.ZipFile(tmp_path / "00000-0.zip") as pack:
        assert pack.namelist() == ["town/2.zip", "town/7.zip"]
        with pack.open("town/7.zip") as file, zipfile.ZipFile(file) as arrays:
            labels = io.BytesIO(zstd_decode(arrays.read("labels.npy.zst")))
            assert np.load(labels)[0, 0] == 7


def test_a_pack_of_npz_files_is_still_read(tmp_path):
    """As das3 wrote them before 2026-11-27."""
    with zipfile.ZipFile(tmp_path / "00000-0.zip", "w") as pack:
        file = io.BytesIO()
        np.savez_compressed(file, **labels_of(7))
        entry = zipfile.ZipInfo("town/7.npz")
        entry.comment = b"7"
        pack.writestr(entry, file.getvalue())
    assert numbers(LabelStore(tmp_path, NAMES)) == {7: 7}
    assert find_labels(tmp_path).names[7] == "town/7"


def test_what_an_interruption_stopped_is_kept(tmp_path):
    def interrupted():
        with LabelStore(tmp_path, NAMES).writing() as packs:
            packs.add(0, labels_of(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert numbers(LabelStore(tmp_path, NAMES)) == {0: 0}


def test_labels_that_are_made_anew_take_the_place_of_damaged_ones(tmp_path):
    store = filled(tmp_path, [0, 1, 2])
    pack = tmp_path / "00000-0.zip"
    data = bytearray(pack.read_bytes())
    data[store.places[1][1] + 70] ^= 1  # behind the header of its labels
    pack.write_bytes(data)
    assert numbers(LabelStore(tmp_path, NAMES)) == {0: 0, 2: 2}
    with pytest.raises(DataError, match=r"00000-0\.zip.*town/1"):
        LabelStore(tmp_path, NAMES).maps("labels")(1)
    filled(tmp_path, [1])
    assert numbers(LabelStore(tmp_path, NAMES)) == {0: 0, 1: 1, 2: 2}


def test_a_store_finds_what_another_process_has_written(tmp_path):
    mine = filled(tmp_path, [0])
    theirs = LabelStore(tmp_path, NAMES, writer=1)
    with theirs.writing() as packs:
        packs.add(1, labels_of(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000-0.zip", "00001-1.zip"]
    assert numbers(mine) == {0: 0}
    mine.refresh()
    assert numbers(mine) == {0: 0, 1: 1}


def test_names_that_are_no_text_and_images_that_are_not_there_any_more(tmp_path):
    filled(tmp_path, [0, 2], names=["b\udcff", "c", "d"])
    found = find_labels(tmp_path)
    assert found.names == ["b\\udcff", "", "d"]
    assert numbers(found) == {0: 0, 2: 2}
    assert numbers(LabelStore(tmp_path, ["b\udcff"])) == {0: 0}
    assert find_labels(tmp_path / "none").names == []


def test_a_slip_of_the_interpreter_is_no_damage(tmp_path, monkeypatch):
    """The "AST constructor recursion depth mismatch" of Python 3.11 comes and goes."""
    read, slips = np.lib.format.read_array_header_1_0, [SystemError("AST constructor recursion depth mismatch")]

    def read_at_last(file):
        if slips:
            raise slips.pop()
        return read(file)

    store = filled(tmp_path, [0])
    array_files._header.cache_clear()
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", read_at_last)
    assert numbers(store) == {0: 0}
    assert not slips
