"""Bad and odd images and lists of images."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from hostile.cases import Case, Place, pixels

FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "tif": "TIFF",
    "bmp": "BMP",
    "gif": "GIF",
    "webp": "WEBP",
    "ppm": "PPM",
    "jp2": "JPEG2000",
}


def encoded(suffix: str, image: np.ndarray | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels() if image is None else image).save(buffer, FORMATS[suffix], **options)
    return buffer.getvalue()


def file(name: str, data: bytes | Callable[[], bytes], how: str = "predict") -> Callable[[Place], list[str]]:
    """A sound image, and a file beside it."""

    def make(place: Place) -> list[str]:
        folder = place.images()
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())
        return getattr(place, how)(images=folder)

    return make


def saved(name: str, image: Callable[[], Image.Image], how: str = "predict", **options: Any) -> Callable:
    def data() -> bytes:
        buffer = io.BytesIO()
        image().save(buffer, FORMATS[name.rpartition(".")[2]], **options)
        return buffer.getvalue()

    return file(name, data, how)


def tiff(array: Callable[[], np.ndarray], how: str = "predict", **options: Any) -> Callable[[Place], list[str]]:
    def data() -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array(), **options)
        return buffer.getvalue()

    return file("x.tif", data, how)


def png_of(width: int, height: int, *, depth: int = 8, color: int = 0, rows: int | None = None) -> bytes:
    """A PNG of zeros that says it is this large, with as many rows as it says if None."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    samples = {0: 1, 2: 3, 6: 4}[color]
    line = bytes(1 + (width * depth * samples + 7) // 8)
    packer = zlib.compressobj(1)
    parts = [packer.compress(line) for _ in range(height if rows is None else rows)]
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join([*parts, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def cut_off() -> Iterator[Case]:
    for suffix in FORMATS:
        for share in (0.02, 0.3, 0.7):
            data = lambda s=suffix, share=share: (d := encoded(s))[: int(len(d) * share)]
            yield Case("images", f"{suffix} cut off at {share:.0%}", file(f"x.{suffix}", data), words=(f"x.{suffix}",))
        for name, data in (("empty", b""), ("text", b"hello\n" * 50), ("noise", bytes(range(256)) * 8)):
            quick = suffix in ("png", "tif", "jpg")
            yield Case("images", f"{suffix} {name}", file(f"x.{suffix}", data), words=(f"x.{suffix}",), quick=quick)
        for n in range(4):
            flipped = lambda s=suffix, n=n: _flipped(encoded(s), n)
            yield Case("images", f"{suffix} flipped {n}", file(f"x.{suffix}", flipped), "either", (f"x.{suffix}",))
        other = "jpg" if suffix == "png" else "png"
        yield Case("images", f"{suffix} by another name", file(f"x.{other}", lambda s=suffix: encoded(s)), "works")


def _flipped(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for place in rng.integers(0, min(len(data), 400), 4):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


SHAPES = ((1, 1), (1, 2), (1, 5), (2, 2), (2, 3), (3, 5), (4, 4), (5, 3), (1, 900), (900, 1), (7, 33))


def small_and_odd() -> Iterator[Case]:
    for shape in SHAPES:
        name = f"{shape[0]}×{shape[1]}"
        data = lambda shape=shape: encoded("png", pixels(1, shape))
        alone = lambda place, shape=shape: _alone(place, shape)
        yield Case("images", f"predict {name}", file("x.png", data), "works", check=_has("x"), quick=shape == (1, 1))
        yield Case("images", f"adapt {name}", file("x.png", data, "adapt"), "works")
        yield Case("images", f"adapt {name} alone", alone, "works")
    for shape in ((1, 1), (3, 5)):
        yield Case("images", f"all stages {shape[0]}×{shape[1]}", lambda p, s=shape: _all_stages(p, s), "works")
        hf = lambda place, s=shape: [*_alone(place, s, place.base / "hf"), "--guard=best"]
        yield Case("images", f"transformer {shape[0]}×{shape[1]}", hf, "works")


def _alone(place: Place, shape: tuple[int, int], model: Path | None = None) -> list[str]:
    folder = place.folder / "images"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(pixels(i, shape)).save(folder / f"{i}.png")
    return place.adapt(images=folder, model=model)


def _all_stages(place: Place, shape: tuple[int, int]) -> list[str]:
    steps = ("--align.steps=1", "--propagate.steps=1", "--selftrain.color=0.5", "--selftrain.blur=1")
    more = ("--stages=align,selftrain,propagate", "--guard=best", "--report=true", *steps, "--selftrain.upscale=true")
    return [*_alone(place, shape), *more]


def _has(*names: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        for name in names:
            assert (folder / f"out/labels/{name}.png").is_file(), name

    return check


def _grid(dtype: str, *shape: int) -> Callable[[], np.ndarray]:
    return lambda: (np.arange(np.prod(shape)) % 4000).reshape(shape).astype(dtype)


def sound() -> Iterator[Case]:
    """Odd, but to be read."""
    rgb = lambda: Image.fromarray(pixels())
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield Case(
            "images",
            f"png of mode {mode}",
            saved("x.png", lambda m=mode: rgb().convert("L").convert(m) if ";" in m else rgb().convert(m)),
            "works",
        )
    for mode in ("CMYK", "L"):
        yield Case("images", f"jpg of mode {mode}", saved("x.jpg", lambda m=mode: rgb().convert(m)), "works")
    for mode in ("YCbCr", "CMYK", "LAB", "F"):
        yield Case("images", f"tif of mode {mode}", saved("x.tif", lambda m=mode: _as(m)), "works")
    yield Case("images", "progressive jpg", saved("x.jpg", rgb, progressive=True), "works")
    yield Case("images", "transparent png", saved("x.png", lambda: rgb().convert("P"), transparency=3), "works")
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    for suffix in ("gif", "webp", "png", "tif"):
        moving = saved(f"x.{suffix}", lambda: frames[0], save_all=True, append_images=frames[1:])
        yield Case("images", f"{suffix} of three frames", moving, "works")
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield Case("images", f"turned {turn}", saved("x.jpg", rgb, exif=exif), "works")
    yield Case("images", "turned 99", saved("x.jpg", rgb, exif=_exif(99)), "works")
    for dtype in ("uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"):
        yield Case("images", f"tif of {dtype}", tiff(_grid(dtype, 32, 40)), "works")
        yield Case("images", f"tif RGB of {dtype}", tiff(_grid(dtype, 32, 40, 3), photometric="rgb"), "works")
    for compression in ("zlib", "lzw", "lzma", "zstd", "packbits"):
        yield Case("images", f"tif in {compression}", tiff(pixels, photometric="rgb", compression=compression), "works")
    yield Case("images", "tif in tiles", tiff(pixels, photometric="rgb", tile=(16, 16)), "works")
    yield Case("images", "tif, planar", tiff(_grid("uint16", 3, 32, 40), photometric="rgb", planarconfig=2), "works")
    yield Case("images", "tif, ten bands", tiff(_grid("uint16", 32, 40, 10), photometric="minisblack"), "works")
    yield Case("images", "bigtiff", tiff(pixels, photometric="rgb", bigtiff=True), "works")
    yield Case("images", "tif, big-endian", tiff(_grid("uint16", 32, 40), byteorder=">"), "works")
    yield Case("images", "tif of NaN", tiff(lambda: np.full((32, 40), np.nan, "f4")), "works")
    yield Case("images", "tif of infinity", tiff(lambda: np.full((32, 40), np.inf, "f4")), "works")
    yield Case("images", "tif of 1e38", tiff(lambda: np.float32(1e38) * np.ones((32, 40), "f4")), "works")
    yield Case("images", "tif of one value", tiff(lambda: np.full((32, 40), 7, "u2"), "adapt"), "works")
    yield Case(
        "images",
        "tif of nothing but nodata",
        tiff(lambda: np.full((32, 40), np.nan, "f4"), "adapt"),
        "either",
        ("x.tif",),
    )
    yield Case("images", "tif of complex numbers", tiff(_grid("complex64", 32, 40)), words=("x.tif", "complex"))
    nodata = [(42113, 2, 0, "not a number!", True)]
    yield Case("images", "tif with nonsense for nodata", tiff(_grid("uint16", 32, 40), extratags=nodata), "works")
    yield Case(
        "images", "tif with 400 pages", tiff(lambda: np.zeros((400, 8, 8), "u1"), photometric="minisblack"), "works"
    )


def _as(mode: str) -> Image.Image:
    if mode == "LAB":
        from PIL import ImageCms

        turn = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        return ImageCms.applyTransform(Image.fromarray(pixels()), turn)
    return Image.fromarray(pixels()).convert("L" if mode == "F" else "RGB").convert(mode)


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(owned) (w) file closefile\nshowpage\n%%EOF\n"
)
WMF = b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x10\0\x10\0\x60\0\0\0\0\0\x01\0\x09\0\0\x03" + bytes(64)
OTHERS = {
    "postscript": POSTSCRIPT,
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x.png"/></svg>',
    "web page": b"<!DOCTYPE html><html>404</html>",
    "zip": b"PK\x05\x06" + bytes(18),
    "wmf": WMF,
    "pickle": b"cos\nsystem\n(S'touch owned'\ntR.",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "fli": struct.pack("<IHHHH", 200, 0xAF11, 1, 64, 64) + bytes(200),
    "pcx": b"\x0a\x05\x01\x08" + bytes(200),
    "psd": b"8BPS\0\x01" + bytes(200),
    "ico": b"\0\0\x01\0\x01\0" + bytes(60),
    "tga": bytes(2) + b"\x02" + bytes(9) + b"\x10\0\x10\0\x18\0" + bytes(768),
}


def others() -> Iterator[Case]:
    for name, data in OTHERS.items():
        for suffix in ("png", "tif", "jpg") if name == "postscript" else ("png",):
            made = file(f"x.{suffix}", data)
            yield Case("images", f"{name} in a {suffix}", made, words=(f"x.{suffix}",), quick=name == "postscript")
    for suffix in ("dcm", "nii", "nii.gz"):
        for name, data in (("empty", b""), ("text", b"hello\n" * 50), ("noise", bytes(range(256)) * 8)):
            made = file(f"x.{suffix}", data)
            yield Case("images", f"{suffix} {name}", made, words=(f"x.{suffix}",), quick=name == "noise")
    yield Case("images", "postscript among images to adapt to", file("x.jpg", POSTSCRIPT, "adapt"), words=("x.jpg",))


def _special(what: str, how: str = "predict") -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = place.images()
        path = folder / "x.png"
        if what == "fifo":
            os.mkfifo(path)
        elif what == "socket":
            here = os.getcwd()
            os.chdir(folder)  # a socket's path must be short
            socket.socket(socket.AF_UNIX).bind("x.png")
            os.chdir(here)
        elif what == "directory":
            path.mkdir()
        elif what == "broken link":
            path.symlink_to("nowhere.png")
        elif what == "link to itself":
            path.symlink_to("x.png")
        elif what == "links in a circle":
            path.symlink_to("y.png")
            (folder / "y.png").symlink_to("x.png")
        elif what == "link to a fifo":
            os.mkfifo(folder / "pipe")
            path.symlink_to("pipe")
        elif what == "unreadable":
            path.write_bytes(encoded("png"))
            path.chmod(0)
        else:
            path.symlink_to(what)
        return getattr(place, how)(images=folder)

    return make


def _folders(what: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = place.images(2)
        if what == "link to itself":
            (folder / "again").symlink_to(".")
        elif what == "two links to each other":
            for one, other in (("a", "b"), ("b", "a")):
                (folder / one).mkdir()
                (folder / one / "link").symlink_to(f"../{other}")
        elif what == "link to above":
            (folder / "sub").mkdir()
            (folder / "sub" / "up").symlink_to("../..")
        elif what == "unreadable folder":
            (folder / "sub").mkdir()
            (folder / "sub" / "x.png").write_bytes(encoded("png"))
            (folder / "sub").chmod(0)
        elif what == "deep":
            deep = folder
            for _ in range(60):
                deep = deep / "d"
                deep.mkdir()
            (deep / "x.png").write_bytes(encoded("png"))
        return place.predict(images=folder)

    return make


def _count(count: int) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        found = sorted(p.name for p in (folder / "out/labels").rglob("*.png"))
        assert len(found) == count, found

    return check


def special() -> Iterator[Case]:
    for what in (
        "fifo",
        "socket",
        "link to a fifo",
        "/dev/zero",
        "/dev/null",
        "broken link",
        "link to itself",
        "links in a circle",
    ):
        for how in ("predict", "adapt"):
            quick = how == "predict"
            yield Case("images", f"{how}: {what}", _special(what, how), words=("x.png",), quick=quick)
    yield Case("images", "a directory called x.png", _special("directory"), "works", check=_count(1))
    yield Case("images", "unreadable", _special("unreadable"), words=("x.png", "ermission"), unprivileged=True)
    for what, count in (("link to itself", 2), ("two links to each other", 2), ("link to above", 2), ("deep", 3)):
        made = _folders(what)
        yield Case("images", f"folder: {what}", made, "works", check=_count(count), quick=what == "link to itself")
    unreadable = _folders("unreadable folder")
    yield Case("images", "unreadable folder", unreadable, words=("sub", "ermission"), unprivileged=True, quick=True)
    yield Case("images", "no such folder", lambda p: p.predict(images="nowhere"), words=("nowhere",))
    yield Case("images", "empty folder", lambda p: p.predict(images=_made(p.folder / "none")), words=("none",))
    yield Case("images", "folder of other files", lambda p: p.predict(images=p.base / "model"), words=("model",))
    yield Case("images", "name with a NUL", lambda p: p.predict(images="a\0b"), words=())
    yield Case("images", "endless name", lambda p: p.predict(images="a" * 5000), words=("aaa",))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


NAMES = {
    "250 letters": "n" * 246 + ".png",
    "255 letters": "n" * 251 + ".png",
    "250 bytes of umlauts": "ä" * 123 + ".png",
    "newline": "a\nb.png",
    "tab and quotes": "a\t'b\"c.png",
    "dash": "--out.png",
    "spaces": "  a b  .png",
    "emoji": "🦆.png",
    "percent": "%s%d{0}.png",
    "hash": "#x.png",
    "colon": "c:x.png",
    "backslash": "..\\..\\x.png",
    "dots": "x..png",
    "star": "*?[x].png",
    "capital suffix": "x.PNG",
    "not UTF-8": os.fsdecode(b"\xff\xfe.png"),
    "control characters": "a\x1b[2Jb.png",
    "right to left": "\u202egnp.x.png",
    "html": "<script>alert(1)<.png",
}


def names() -> Iterator[Case]:
    for name, text in NAMES.items():
        for how in ("predict", "adapt"):
            stages = file(text, lambda: encoded("png"), how)
            made = (lambda p, s=stages: [*s(p), "--report=true"]) if how == "adapt" else stages
            yield Case("images", f"{how}: name with {name}", made, "works", quick=name in ("250 letters", "not UTF-8"))
    two = lambda place: _two(place, "a.png", "a.jpg")
    yield Case("images", "two suffixes", two, "works", check=_count(2))
    yield Case("images", "two suffixes, one broken", lambda p: _two(p, "a.png", "a.jpg", b"x"), words=("a.jpg",))
    broken = lambda text: lambda place: _two(place, "a.png", text, b"x")
    yield Case("images", "broken and not UTF-8", broken(NAMES["not UTF-8"]), words=("can't read",))
    yield Case("images", "broken with a newline", broken("a\nb.png"), words=("can't read",))


def _two(place: Place, one: str, other: str, data: bytes | None = None) -> list[str]:
    folder = _made(place.folder / "images")
    for name in (one, other):
        (folder / name).write_bytes(encoded("png"))
    if data is not None:
        (folder / other).write_bytes(data)
    return place.predict(images=folder)


def _list(data: bytes, *, name: str = "list.txt", how: str = "predict", files: tuple[str, ...] = ("bär.png",)):
    def make(place: Place) -> list[str]:
        for file_name in files:
            (place.folder / file_name).write_bytes(encoded("png"))
        place.images()
        (place.folder / name).write_bytes(data)
        return getattr(place, how)(images=name)

    return make


LISTS = {
    "UTF-8": ("bär.png\n".encode(), "works"),
    "with a mark": ("bär.png\n".encode("utf-8-sig"), "works"),
    "UTF-16": ("bär.png\n".encode("utf-16"), "works"),
    "UTF-16 BE": (b"\xfe\xff" + "bär.png\n".encode("utf-16-be"), "works"),
    "UTF-16 without a mark": ("bär.png\n".encode("utf-16-le"), "told"),
    "UTF-32": ("bär.png\n".encode("utf-32"), "told"),
    "Latin-1": ("bär.png\n".encode("latin-1"), "told"),
    "half a mark": (b"\xff\xfeb", "told"),
    "Windows ends": ("bär.png\r\n# no\r\n\r\n".encode(), "works"),
    "old Mac ends": ("bär.png\r".encode(), "works"),
    "no end": ("bär.png".encode(), "works"),
    "empty": (b"", "told"),
    "nothing but remarks": (b"# a\n#b\n\n", "told"),
    "missing": (b"nowhere.png\n", "told"),
    "twice": ("bär.png\nbär.png\n".encode(), "told"),
    "twice in another way": ("bär.png\n./bär.png\n".encode(), "told"),
    "a folder": (b"images\n", "told"),
    "itself": (b"list.txt\n", "told"),
    "NUL": (b"a\0b.png\n", "told"),
    "nothing but NUL": (bytes(1000), "told"),
    "binary": (bytes(range(256)) * 40, "told"),
    "a long line": (b"x" * 1_000_000 + b"\n", "told"),
    "100,000 lines": (b"nowhere/%d.png\n" * 100_000, "told"),
    "table": ("bär.png\tlabel.png\n".encode(), "told"),
    "a device": (b"/dev/zero\n", "told"),
    "terminal codes": (b"\x1b[2Jx.png\n", "told"),
}


def lists() -> Iterator[Case]:
    for name, (data, expect) in LISTS.items():
        words = ("list.txt",) if name in ("Latin-1", "UTF-32", "half a mark", "empty", "NUL", "binary") else ()
        yield Case("images", f"list: {name}", _list(data), expect, words, quick=name in ("Latin-1", "UTF-16"))
    yield Case("images", "list to adapt to: Latin-1", _list(LISTS["Latin-1"][0], how="adapt"), words=("list.txt",))
    yield Case("images", "list: of a fifo", _list_of_fifo, words=("pipe.png",), quick=True)
    yield Case("images", "list: a fifo itself", _fifo_list, words=("list.txt",))
    yield Case("images", "list: without a suffix", _list(b"x.png\n", name="list"), words=("list",))
    yield Case("images", "list: an image", _list(b"", name="empty.png"), words=("empty.png",))


def _list_of_fifo(place: Place) -> list[str]:
    os.mkfifo(place.folder / "pipe.png")
    (place.folder / "list.txt").write_text("pipe.png\n")
    return place.predict(images="list.txt")


def _fifo_list(place: Place) -> list[str]:
    os.mkfifo(place.folder / "list.txt")
    return place.predict(images="list.txt")


def large() -> Iterator[Case]:
    """Larger than they look."""
    hundred = file("x.png", lambda: png_of(10_000, 10_000), "adapt")
    yield Case("images", "100 megapixels", lambda p: [*hundred(p), "--size=64"], "works")
    forty = file("x.png", lambda: png_of(6_300, 6_300))
    yield Case("images", "40 megapixels", lambda p: [*forty(p), "--size=64"], "works", check=_has("x"))
    yield Case("images", "900 megapixels", file("x.png", lambda: png_of(30_000, 30_000, depth=1)), words=("x.png",))
    for how in ("predict", "adapt"):
        bomb = file("x.png", lambda: png_of(40_000, 40_000, rows=1), how)
        yield Case("images", f"{how}: 1.6 gigapixels", bomb, words=("x.png",), quick=True)
    for name, size in (("4 terapixels", (2_000_000, 2_000_000)), ("a row of 2^31 − 1", (2**31 - 1, 1))):
        yield Case("images", f"png of {name}", file("x.png", lambda s=size: png_of(*s, rows=0)), words=("x.png",))
    deep = file("x.png", lambda: png_of(40_000, 40_000, depth=16, color=2, rows=1))
    yield Case("images", "deep png of 1.6 gigapixels", deep, words=("x.png",))
    for name, shape in (("1.6 gigapixels", (40_000, 40_000)), ("a row of 2^31", (1, 2**31 - 1))):
        yield Case("images", f"tif of {name}, cut off", file("x.tif", lambda s=shape: _large_tiff(s)), words=("x.tif",))
    for magic, name in ((b"P6", "ppm"), (b"P5", "pgm")):
        data = magic + b"\n100000 100000\n255\n" + bytes(100)
        yield Case("images", f"{name} of 10 gigapixels", file(f"x.{name}", data), words=(f"x.{name}",))
    gif = lambda: encoded("gif")[:6] + b"\xff\xff\xff\xff" + encoded("gif")[10:]
    yield Case("images", "gif of 65,535²", file("x.gif", gif), words=("x.gif",))
    text = lambda: _with_text(encoded("png"), 64 << 20)
    yield Case("images", "png with a text of 64 MiB", file("x.png", text), "either", ("x.png",))


def _large_tiff(shape: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((16, 16), "u1"), photometric="minisblack", metadata=None)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as opened:
        for code, value in ((256, shape[1]), (257, shape[0])):
            tag = opened.pages[0].tags[code]
            data[tag.offset + 2 : tag.offset + 4] = struct.pack("<H", 4)
            data[tag.offset + 8 : tag.offset + 12] = struct.pack("<I", value)
    return bytes(data)


def _with_text(png: bytes, size: int) -> bytes:
    body = b"Comment\0\0" + zlib.compress(bytes(size))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png[:33] + chunk + png[33:]


def skipped() -> Iterator[Case]:
    """`--on-bad-image skip`."""

    def make(place: Place, how: str, *bad: str) -> list[str]:
        folder = place.images(2)
        for name in bad or ("x.png", "y.jpg", "z.tif"):
            data = encoded(name.rpartition(".")[2])
            (folder / name).write_bytes(data[: int(len(data) * 0.6)])
        os.mkfifo(folder / "pipe.png")
        return [*getattr(place, how)(images=folder), "--on-bad-image=skip"]

    def summary(folder: Path) -> None:
        text = (folder / "run/summary.json").read_text()
        assert all(name in text for name in ("x.png", "y.jpg", "z.tif", "pipe.png")), text

    yield Case("images", "skip: predict", lambda p: make(p, "predict"), "works", check=_count(2), quick=True)
    yield Case("images", "skip: adapt", lambda p: make(p, "adapt"), "works", check=summary, quick=True)
    only = lambda place: [
        *file("x.png", b"x")(place)[:4],
        str(_only(place)),
        *place.predict()[5:],
        "--on-bad-image=skip",
    ]
    yield Case("images", "skip: nothing is left", only, words=("x.png",))


def _only(place: Place) -> Path:
    folder = _made(place.folder / "bad")
    (folder / "x.png").write_bytes(b"x")
    return folder


def cases() -> Iterator[Case]:
    for part in (cut_off, small_and_odd, sound, others, special, names, lists, large, skipped):
        yield from part()
