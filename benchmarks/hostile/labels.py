"""Bad and odd labels, class tables and class maps, through `das3 evaluate`."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from hostile.cases import Case, Place
from hostile.images import POSTSCRIPT, encoded, png_of

H, W = 32, 40
Fill = Callable[[Path], None]


def ids(dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (H, W)).astype(dtype)


def label(fill: Fill | bytes, name: str = "sound1.png", more: tuple[str, ...] = ()) -> Callable[[Place], list[str]]:
    """A sound label of the first image, and what is said of the second."""

    def make(place: Place) -> list[str]:
        folder = place.folder / "labels"
        folder.mkdir()
        (folder / "sound0.png").write_bytes((place.base / "labels/sound0.png").read_bytes())
        if isinstance(fill, bytes):
            (folder / name).write_bytes(fill)
        else:
            fill(folder / name)
        return place.evaluate(labels=folder, more=more)

    return make


def array(values: Any, mode: str | None = None) -> Fill:
    return lambda path: Image.fromarray(np.asarray(values), mode).save(path)


def tif(values: Any, **options: Any) -> Fill:
    return lambda path: tifffile.imwrite(path, np.asarray(values), **options)


def files() -> Iterator[Case]:
    told = "sound1.png"
    png = encoded("png", ids())
    for name, fill in {
        "empty": b"",
        "text": b"hello",
        "cut off": png[: len(png) // 2],
        "noise": bytes(range(256)) * 8,
        "postscript": POSTSCRIPT,
        "too small": array(ids()[:-1]),
        "turned": array(ids().T),
        "1×1": array(ids()[:1, :1]),
        "class 3 of 3": array(ids() + 1),
        "class 200": array(ids() + 200),
        "colours": array(np.dstack([ids()] * 2 + [ids() + 1])),
        "larger than memory": png_of(40_000, 40_000, rows=1),
        "fifo": os.mkfifo,
        "directory": os.mkdir,
        "broken link": lambda p: p.symlink_to("nowhere"),
        "link to itself": lambda p: p.symlink_to(p.name),
        "device": lambda p: p.symlink_to("/dev/zero"),
        "missing": lambda p: None,
        "16 bit, 65535": array(np.where(ids() == 0, 65535, 1).astype("u2")),
        "16 bit, 300": array(np.full((H, W), 300, "u2")),
        "16 bit, 256 and up": array(ids("uint16") + 256),
        "16 bit RGB": lambda p: p.write_bytes(png_of(W, H, depth=16, color=2)[:-60]),
    }.items():
        quick = name in ("fifo", "16 bit, 65535", "class 3 of 3")
        words = ("sound1",)
        yield Case("labels", name, label(fill, told), words=words, quick=quick)
    for name, values in {
        "negative": ids("int32") - 1,
        "below zero": ids("int16") - 5,
        "fractions": ids("float32") + 0.5,
        "NaN": np.full((H, W), np.nan, "f4"),
        "infinity": np.full((H, W), np.inf, "f4"),
        "huge": np.full((H, W), 2**31 - 1, "i4"),
        "huge floats": np.full((H, W), 1e30, "f4"),
        "complex": ids("complex64"),
        "four bands": np.dstack([ids()] * 4),
        "64 bits": ids("int64") - 7,
        "three pages": np.stack([ids()] * 3),
    }.items():
        expect = "either" if name in ("four bands", "three pages") else "told"
        yield Case("labels", f"tif: {name}", label(tif(values), "sound1.tif"), expect, ("sound1.tif",))
    works = {
        "16 bit": array(ids("uint16")),
        "1 bit": lambda p: Image.fromarray(ids() > 0).save(p),
        "palette": lambda p: _palette(ids()).save(p),
        "grey as RGB": array(np.dstack([ids()] * 3)),
        "with alpha": lambda p: Image.fromarray(np.dstack([ids(), ids() + 200]), "LA").save(p),
        "all ignored in one of two": array(np.full((H, W), 255, "u1")),
    }
    for name, fill in works.items():
        yield Case("labels", name, label(fill), "works")
    yield Case("labels", "32 bit", label(tif(ids("int32")), "sound1.tif"), "works")
    yield Case("labels", "whole floats", label(tif(ids("float32")), "sound1.tif"), "works")
    yield Case(
        "labels", "jpg", label(lambda p: Image.fromarray(ids() * 100).save(p), "sound1.jpg"), words=("sound1.jpg",)
    )
    yield Case("labels", "all ignored", _all_ignored, words=("labels",), quick=True)
    yield Case("labels", "no folder", lambda p: p.evaluate(labels="nowhere"), words=("nowhere",))
    yield Case(
        "labels", "a file for a folder", lambda p: p.evaluate(labels=p.base / "labels/sound0.png"), words=("sound0",)
    )
    yield Case("labels", "empty folder", lambda p: p.evaluate(labels=_made(p.folder / "none")), words=("none",))
    yield Case("labels", "folder that links to itself", _self_link, "works")
    yield Case("labels", "two for one image", _two_for_one, "either", ("sound1",))
    yield Case("labels", "unreadable folder", _unreadable, words=("sub",), unprivileged=True)
    yield Case("labels", "to adapt with", _eval_labels, words=("sound1",))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, "L")
    image.putpalette(list(range(256)) * 3)
    return image


def _all_ignored(place: Place) -> list[str]:
    folder = _made(place.folder / "labels")
    for i in range(2):
        Image.fromarray(np.full((H, W), 255, "u1")).save(folder / f"sound{i}.png")
    return place.evaluate(labels=folder)


def _self_link(place: Place) -> list[str]:
    arguments = label(array(ids()))(place)
    (place.folder / "labels/again").symlink_to(".")
    return arguments


def _two_for_one(place: Place) -> list[str]:
    arguments = label(array(ids()), "sound1_a.png")(place)
    Image.fromarray(ids()).save(place.folder / "labels/sound1_b.png")
    return arguments


def _unreadable(place: Place) -> list[str]:
    arguments = label(array(ids()))(place)
    _made(place.folder / "labels/sub").chmod(0)
    return arguments


def _eval_labels(place: Place) -> list[str]:
    label(array(ids() + 50))(place)
    return [*place.adapt(), "--eval-images", str(place.base / "images"), "--eval-labels", "labels"]


def table(text: str | bytes, name: str = "classes.json") -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return place.evaluate(more=("--classes", name))

    return make


NAMES = ["sky", "road", "box"]
GOOD = json.dumps({"classes": NAMES})


def bomb(key: str, levels: int = 24) -> str:
    """A YAML file of a few lines that holds 2^levels things once its aliases are followed."""
    lines = [f"l{0}: &l0 [x, x]"] + [f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]" for i in range(1, levels)]
    return "\n".join([*lines, f"{key}: *l{levels - 1}"]) + "\n"


def with_entries(**changes: Any) -> str:
    entries = [{"name": n, "id": i} for i, n in enumerate(NAMES)]
    entries[1] |= changes
    return json.dumps({"classes": entries})


TABLES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "told"),
    "no list": ("{}", "told"),
    "number": ("3", "told"),
    "nothing": ("null", "told"),
    "empty list": ('{"classes": []}', "told"),
    "text": ('{"classes": "sky"}', "told"),
    "mapping": ('{"classes": {"a": 1}}', "told"),
    "not JSON": ("{classes: ", "told"),
    "deep": ("[" * 100_000, "told"),
    "UTF-16": (GOOD.encode("utf-16"), "works"),
    "with a mark": (GOOD.encode("utf-8-sig"), "works"),
    "Latin-1": ('{"classes": ["bär", "b", "c"]}'.encode("latin-1"), "told"),
    "binary": (bytes(range(256)), "told"),
    "NUL": (bytes(100), "told"),
    "300 classes": (json.dumps({"classes": [str(i) for i in range(300)]}), "told"),
    "two keys": ('{"classes": ["a", "b", "c"], "classes": ["c", "b", "a"]}', "told"),
    "text for an id": (with_entries(id="one"), "told"),
    "negative id": (with_entries(id=-4), "told"),
    "huge id": (with_entries(id=2**70), "told"),
    "fraction for an id": (with_entries(id=1.5), "told"),
    "nothing for an id": (with_entries(id=None), "told"),
    "true for an id": (with_entries(id=True), "told"),
    "one id twice": (with_entries(id=2), "told"),
    "NaN id": ('{"classes": [{"name": "a", "id": NaN}, "b", "c"]}', "told"),
    "mapping for an id": (with_entries(id={"a": 1}), "told"),
    "list in a list of ids": (with_entries(ids=[[1]]), "told"),
    "endless id": ('{"classes": [{"name": "a", "id": 1e999}, "b", "c"]}', "told"),
    "one name twice": ('{"classes": ["sky", "sky", "box"]}', "told"),
    "list for a name": ('{"classes": [["a"], "b", "c"]}', "told"),
    "nothing for a name": ('{"classes": [null, "b", "c"]}', "told"),
    "empty name": ('{"classes": ["", "b", "c"]}', "told"),
    "colour of two": (with_entries(color=[1, 2]), "told"),
    "colour too large": (with_entries(color=[1, 2, 300]), "told"),
    "colour unknown": (with_entries(color="blurple"), "told"),
    "colours of some": (with_entries(color="#ff0000"), "told"),
    "ignore text": ('{"classes": ["a", "b", "c"], "ignore_index": "none"}', "told"),
    "ignore a mapping": ('{"classes": ["a", "b", "c"], "ignore_index": {"a": 1}}', "told"),
    "ignore colours of text": ('{"classes": ["a", "b", "c"], "ignore_colors": "red"}', "told"),
    "two classes": ('{"classes": ["a", "b"]}', "told"),
    "four classes": ('{"classes": ["a", "b", "c", "d"]}', "told"),
    "unknown entry": ('{"classes": ["a", "b", "c"], "colour": 1}', "either"),
    "a list alone": (json.dumps(NAMES), "works"),
    "one megabyte of spaces": (GOOD + " " * 2**20, "works"),
}

YAML_TABLES = {
    "alias bomb": (bomb("classes"), "told"),
    "alias bomb in a name": (bomb("classes", 3) + bomb("x"), "told"),
    "two keys": ("classes: [a, b, c]\nclasses: [c, b, a]\n", "told"),
    "two keys in an entry": ("classes:\n- {name: a, id: 0, id: 1}\n- b\n- c\n", "told"),
    "code": ("classes: !!python/object/apply:os.system ['touch owned']\n", "told"),
    "deep": ("[" * 5000, "told"),
    "circle": ("classes: &a [*a, b, c]\n", "told"),
    "tabs": ("classes:\n\t- a\n", "told"),
    "two documents": ("classes: [a]\n---\nclasses: [b]\n", "told"),
    "good": ("classes: [sky, road, box]\n", "works"),
    "yes and no": ("classes: [yes, no, off]\n", "told"),
    "dates": ("classes: [2001-01-01, b, c]\n", "told"),
    "merge": ("a: &a {name: x}\nclasses: [{<<: *a}, y, z]\n", "works"),
}


def tables() -> Iterator[Case]:
    for name, (text, expect) in TABLES.items():
        words = () if name in ("two classes", "four classes", "negative id") else ("classes.json",)
        yield Case("labels", f"table: {name}", table(text), expect, words, quick=name == "two keys")
    for name, (text, expect) in YAML_TABLES.items():
        made = table(text, "classes.yaml")
        yield Case("labels", f"table in YAML: {name}", made, expect, ("classes.yaml",), quick="bomb" in name)
    yield Case("labels", "table: fifo", _special_table("fifo"), words=("classes.json",), quick=True)
    yield Case("labels", "table: directory", _special_table("directory"), words=("classes.json",))
    yield Case("labels", "table: device", _special_table("device"), words=("classes.json",))
    yield Case("labels", "table: missing", lambda p: p.evaluate(more=("--classes", "no.json")), words=("no.json",))
    yield Case("labels", "table: found beside the labels", _beside, words=("classes.json",))


def _special_table(what: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        path = place.folder / "classes.json"
        {"fifo": os.mkfifo, "directory": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[what](path)
        return place.evaluate(more=("--classes", "classes.json"))

    return make


def _beside(place: Place) -> list[str]:
    arguments = label(array(ids()))(place)
    (place.folder / "classes.json").write_text("{")
    return arguments


def class_map(text: str | bytes, spec: str = "map.json") -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / "map.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return place.evaluate(more=("--class-map", spec))

    return make


MAPS = {
    "empty": ("", "told"),
    "nothing": ("{}", "told"),
    "list": ("[0, 1, 2]", "told"),
    "number": ("3", "told"),
    "words": ('{"a": 0}', "told"),
    "words for classes": ('{"0": "sky"}', "told"),
    "fractions": ('{"0": 0.5, "1": 1, "2": 2}', "told"),
    "negative": ('{"0": -7, "1": 1, "2": 2}', "told"),
    "huge": ('{"0": 1000, "1": 1, "2": 2}', "told"),
    "endless": ('{"0": 1e999, "1": 1, "2": 2}', "told"),
    "256": ('{"0": 256, "1": 1, "2": 2}', "told"),
    "huge ids": ('{"0": 0, "1": 1, "2": 2, "99999": 2}', "told"),
    "negative ids": ('{"-3": 0, "0": 0, "1": 1, "2": 2}', "told"),
    "all ignored": ('{"0": 255, "1": 255, "2": null}', "told"),
    "no class of the labels": ('{"7": 0, "8": 1, "9": 2}', "told"),
    "too many": ('{"0": 0, "1": 1, "2": 7}', "told"),
    "true": ('{"0": true, "1": 1, "2": 2}', "told"),
    "two keys": ('{"0": 0, "0": 1, "1": 1, "2": 2}', "told"),
    "lists": ('{"0": [0], "1": 1, "2": 2}', "told"),
    "deep": ('{"a":' * 50_000, "told"),
    "good": ('{"0": 0, "1": 1, "2": 2}', "works"),
    "some ignored": ('{"0": 0, "1": null, "2": 2}', "works"),
    "255 of the labels": ('{"0": 0, "1": 1, "2": 2, "255": 255}', "works"),
    "minus one": ('{"0": 0, "1": 1, "2": -1}', "works"),
    "half a file": ('{"0": 0, ', "told"),
    "binary": (bytes(range(256)), "told"),
}


def maps() -> Iterator[Case]:
    for name, (text, expect) in MAPS.items():
        words = () if name in ("all ignored", "too many", "no class of the labels") else ("map.json",)
        quick = name in ("negative", "huge", "two keys")
        yield Case("labels", f"map: {name}", class_map(text), expect, words, quick=quick)
    keyed = '{"a": {"map": {"0": 0, "1": 1, "2": 2}}}'
    for spec, expect in (
        ("map.json:a", "works"),
        ("map.json:b", "told"),
        ("map.json:a.map.0", "told"),
        ("map.json:", "told"),
        ("no.json:a", "told"),
    ):
        yield Case("labels", f"map: {spec}", class_map(keyed, spec), expect, (spec.partition(":")[0],))
    for name, data in {"png": zlib.compress(b"x"), "yaml": b"0: 0\n1: 1\n2: 2\n"}.items():
        yield Case("labels", f"map: {name} in a .json", class_map(data), words=("map.json",))


def cases() -> Iterator[Case]:
    for part in (files, tables, maps):
        yield from part()
