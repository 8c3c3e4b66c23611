"""Images from tar files and URLs: the same as from files, read in place."""

import functools
import http.server
import io
import pickle
import tarfile
import threading

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from das3.api import adapt
from das3.data.archives import ArchivedImages, is_archive
from das3.data.open import open_images
from das3.errors import DataError
from das3.fingerprints import image_digests
from das3.models import load_segmenter


def picture(i, kind="PNG", size=(32, 48)):
    data = io.BytesIO()
    array = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(array).save(data, kind)
    return data.getvalue()


def pack(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files/town").mkdir(parents=True)
    for i in range(5):
        (tmp_path / f"files/town/{i}.png").write_bytes(picture(i))
    return tmp_path / "files"


def entries(folder, numbers=range(5)):
    return {f"town/{i}.png": (folder / f"town/{i}.png").read_bytes() for i in numbers}


def assert_same(images, files, prefixes=("",)):
    assert isinstance(images, ArchivedImages)
    assert [name.split("/", len(prefixes[0].split("/")) - 1)[-1] for name in images.names] == files.names
    assert images.sizes() == files.sizes()
    assert all(np.array_equal(images[i], files[i]) for i in range(len(files)))


def test_a_tar_file_reads_as_the_folder_it_was_packed_of(folder, tmp_path):
    images = open_images(pack(tmp_path / "set.tar", entries(folder)))
    assert_same(images, open_images(folder))
    again = pickle.loads(pickle.dumps(images))  # worker processes get it so
    assert np.array_equal(again[3], images[3])
    some = images.only([4, 1])
    assert some.names == [images.names[4], images.names[1]]
    assert np.array_equal(some[0], images[4])
    with pytest.raises(IndexError):
        images[5]


@pytest.mark.parametrize("how", ["folder", "pattern"])
def test_shards(folder, tmp_path, how):
    pack(tmp_path / "shards/000.tar", entries(folder, range(3)))
    pack(tmp_path / "shards/001.tar", entries(folder, range(3, 5)))
    images = open_images(tmp_path / "shards" if how == "folder" else str(tmp_path / "shards/*.tar"))
    assert images.names == ["000/town/0", "000/town/1", "000/town/2", "001/town/3", "001/town/4"]
    assert np.array_equal(images[4], open_images(folder)[4])


def test_the_image_of_a_webdataset_sample_is_not_its_label(tmp_path):
    files = {"a.png": picture(0), "a.jpg": picture(1, "JPEG"), "a.seg.png": picture(2), "a.json": b"{}"}
    files |= {"b.seg.png": picture(3), "b.webp": picture(4, "WEBP"), "./.hidden.png": picture(5)}
    images = open_images(pack(tmp_path / "set.tar", files))
    assert images.names == ["a", "b"]
    assert np.array_equal(images[0], np.asarray(Image.open(io.BytesIO(files["a.jpg"]))))
    assert np.array_equal(images[1], np.asarray(Image.open(io.BytesIO(files["b.webp"]))))


def test_upright_and_large_headers(tmp_path):
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(data, "JPEG", exif=exif)
    late = io.BytesIO()
    Image.new("RGB", (30, 50)).save(late, "JPEG", comment=b"x" * 60000, icc_profile=bytes(60000))
    images = open_images(pack(tmp_path / "set.tar", {"a.jpg": data.getvalue(), "b.jpg": late.getvalue()}))
    assert images.sizes() == [(40, 20), (50, 30)]
    assert [image.shape[:2] for image in images] == images.sizes()


@pytest.fixture
def memory(folder, tmp_path):
    """URLs of a file system in memory."""
    system = fsspec.filesystem("memory")
    for n, numbers in enumerate((range(3), range(3, 5))):
        system.pipe(f"/bucket/shards/{n}.tar", pack(tmp_path / f"{n}.tar", entries(folder, numbers)).read_bytes())
    for name, data in entries(folder).items():
        system.pipe(f"/bucket/files/{name}", data)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_urls(memory, folder):
    files = open_images(folder)
    plain = open_images(f"{memory}/files")
    assert plain.names == files.names
    assert all(np.array_equal(plain[i], files[i]) for i in range(5))
    for url in (f"{memory}/shards", f"{memory}/shards/*.tar"):
        shards = open_images(url)
        assert shards.names == ["0/town/0", "0/town/1", "0/town/2", "1/town/3", "1/town/4"]
        assert all(np.array_equal(shards[i], files[i]) for i in range(5))
        assert shards.sizes() == files.sizes()
    one = open_images(f"{memory}/shards/1.tar")
    assert one.names == ["town/3", "town/4"]


def test_over_http(folder, tmp_path):
    pack(tmp_path / "web/set.tar", entries(folder))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            pytest.importorskip("aiohttp")
            images = open_images(f"http://127.0.0.1:{server.server_port}/set.tar")
            assert_same(images, open_images(folder))
            with pytest.raises(DataError, match=r"can't read http://.*nothing\.tar"):
                open_images(f"http://127.0.0.1:{server.server_port}/nothing.tar")
        finally:
            server.shutdown()


def test_what_can_not_be_read(folder, tmp_path, memory):
    for source, words in {
        str(tmp_path / "missing.tar"): "missing.tar .*No such file",
        "nosuch://bucket/a.tar": "Protocol not known",
        f"{memory}/empty": "empty",
        str(pack(tmp_path / "none.tar", {"a.txt": b""})): "no images found",
        str(pack(tmp_path / "out.tar", {"../a.png": b""})): "leads out of a folder",
    }.items():
        with pytest.raises(DataError, match=words):
            open_images(source)
    noise = tmp_path / "noise.tar"
    noise.write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"noise\.tar"):
        open_images(noise)
    path = pack(tmp_path / "set.tar", entries(folder))
    images = open_images(path)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(DataError, match="shorter than it was"):
        images[4]
    with pytest.raises(DataError, match=r"0 of .*bad\.tar"):
        open_images(pack(tmp_path / "bad.tar", {"a.png": picture(0)[:100]}))[0]


def test_a_missing_library_is_named(monkeypatch):
    def gone(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", gone)
    with pytest.raises(DataError, match=r"Install s3fs .*das3\[s3\]"):
        open_images("s3://bucket/a.tar")


def test_folders_of_images_are_none(folder, tmp_path):
    assert not is_archive(folder)
    (folder / "town/more.tar").write_bytes(b"")
    assert not is_archive(folder / "town")
    assert not is_archive("shots/**/*.png")
    assert is_archive("simplecache::s3://bucket/a.tar")


def test_fingerprints_tell_what_changed(folder, tmp_path, memory):
    one = open_images(pack(tmp_path / "set.tar", entries(folder)))
    moved = open_images(pack(tmp_path / "elsewhere/set.tar", {"more.txt": b"", **entries(folder)}))
    for most in (2**20, 2**14):
        assert image_digests(one, most) == image_digests(moved, most)
    other = open_images(pack(tmp_path / "other.tar", {**entries(folder), "town/2.png": picture(7)}))
    before, after = image_digests(one, 2**20), image_digests(other, 2**20)
    assert [name for name in before if before[name] != after[name]] == ["town/2"]
    assert len(set(image_digests(open_images(f"{memory}/files"), 2**20).values())) == 5


def test_a_run_on_a_tar_file_ends_as_on_the_folder(folder, tmp_path):
    path = pack(tmp_path / "set.tar", entries(folder))
    torch.manual_seed(0)
    model = load_segmenter("das3:small", num_classes=3, model_args={"width": 8}).model
    options = {"stages": ["align", "selftrain"], "align": {"steps": 2}, "selftrain": {"steps": 2, "upscale": False}}
    options |= {"batch_size": 2, "device": "cpu", "report": False, "quiet": True, "crop": [32, 32], "num_classes": 3}
    ends = {}
    for name, images in {"files": folder, "tar": path}.items():
        result = adapt(model, str(images), out=tmp_path / "runs" / name, workers=1 if name == "tar" else 0, **options)
        ends[name] = result.model.state_dict()
    assert all(torch.equal(value, ends["tar"][key]) for key, value in ends["files"].items())
    again = adapt(model, str(path), out=tmp_path / "runs/tar", workers=1, resume=True, **options).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in ends["tar"].items())
    pack(path, {"0.png": picture(9)})
    with pytest.raises(DataError, match="began with other inputs"):
        adapt(model, str(path), out=tmp_path / "runs/tar", workers=1, resume=True, **options)
