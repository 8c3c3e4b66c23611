"""Fuzz of the readers of what comes from anywhere: they read it or raise an error of das3's, in one line, and soon.

Short and always the same here, and the examples that once failed are kept; `pytest -m slow` goes on for ten minutes
with each reader (DAS3_FUZZ_SECONDS says otherwise).
"""

import json
import os
import pickle
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from das3.benchmark.suite_file import load_suite
from das3.data.class_table import load_class_map, load_classes
from das3.data.image_files import read_image
from das3.data.labels import ClassTable, read_label
from das3.data.open import open_images
from das3.errors import Das3Error, printable
from das3.models.convert import _KINDS, convert_checkpoint
from das3.models.metadata import read_metadata
from das3.models.weights import read_weights
from das3.recipe import load_recipe, recipe_from
from das3.registry import stage_types

LONG = float(os.environ.get("DAS3_FUZZ_SECONDS", "600"))
SHORT = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 255, 256, 65535, 2**31, 2**63, 1e308]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.dates())
VALUES = st.recursive(
    SCALARS,
    lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(st.text(max_size=6), v, max_size=4)),
    max_leaves=8,
)
FIELDS = [f for f in yaml.safe_load(recipe_from({}).to_yaml()) if f not in ("format", "options")]
STAGES = [name.replace("-", "_") for name in stage_types()]
OF_STAGES = ("steps", "lr", "scale", "color", "bn_mode", "top_fraction", "rounds", "gamma", "thresholds")


def entries(keys, values=VALUES):
    return st.dictionaries(st.one_of(st.sampled_from(list(keys)), st.text(max_size=6)), values, max_size=4)


def as_yaml(values):
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


def damaged(data):
    """The bytes, cut, repeated or changed in places."""
    changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)

    def apply(given):
        content, places, cut, mark = given
        changed = bytearray(content)
        for place, value in places if changed else ():
            changed[place % len(changed)] = value
        return mark + bytes(changed[: len(changed) if cut is None else cut % (len(changed) + 1)])

    marks = st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"%YAML 1.1\n---\n"])
    return st.tuples(data, changes, st.one_of(st.none(), st.integers(0, 10**6)), marks).map(apply)


RECIPES = st.one_of(
    entries(FIELDS).map(as_yaml), st.dictionaries(st.sampled_from(STAGES), entries(OF_STAGES), max_size=2).map(as_yaml)
)
PART = entries(["images", "labels", "classes", "class_map", "num_classes"])
SUITE = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("source", "target", "test"), st.one_of(PART, VALUES)),
        **dict.fromkeys(("network", "source_model", "name", "classes", "size", "steps"), SCALARS),
        **dict.fromkeys(("options", "source_options", "oracle_options", "model_args"), VALUES),
    },
)
ENTRY = st.one_of(st.text(max_size=5), entries(["name", "id", "ids", "color", "colors"]))
TABLE = st.fixed_dictionaries(
    {"classes": st.one_of(st.lists(ENTRY, max_size=4), VALUES)},
    optional={"ignore_index": VALUES, "ignore_colors": VALUES},
)
MAP = st.dictionaries(st.one_of(st.integers(-3, 300).map(str), st.text(max_size=4)), VALUES, max_size=5)
LIST = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from(["a.png", "./a.png", "..", "#", "/dev/null"])), max_size=6
).map("\n".join)


def _dumps(value):
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def _encoded(suffix):
    def encode(values):
        from io import BytesIO

        buffer = BytesIO()
        Image.fromarray(values).save(buffer, {"png": "PNG", "tif": "TIFF"}[suffix])
        return buffer.getvalue()

    shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
    kinds = st.sampled_from(["u1", "u2", "i4", "f4"] if suffix == "tif" else ["u1", "u2"])
    return st.tuples(shapes, kinds, st.integers(0, 300)).map(
        lambda v: encode((np.arange(v[0][0] * v[0][1]).reshape(v[0]) + v[2]).astype(v[1]))
    )


def _checkpoint(values):
    from io import BytesIO

    buffer = BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


KEYS = st.sampled_from(["state_dict", "model", "meta", "decode_head.conv_seg.weight", "layer1.0.conv1.weight", *_KINDS])
TENSORS = st.sampled_from([torch.zeros(2), torch.zeros(2, 2, 1, 1), torch.zeros(0), torch.zeros(1, dtype=torch.int8)])
CHECKPOINTS = st.one_of(
    st.dictionaries(
        KEYS,
        st.one_of(
            TENSORS, SCALARS.filter(lambda v: not hasattr(v, "year")), st.dictionaries(KEYS, TENSORS, max_size=2)
        ),
        max_size=3,
    ).map(_checkpoint),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2).map(pickle.dumps),
    VALUES.map(_dumps).map(lambda text: struct.pack("<Q", len(text)) + text),
)
CARD = entries(
    ["kind", "model", "model_args", "preprocess", "classifier", "divisor", "square", "pixels", "class_names"]
)

CLASSES = ClassTable(("a", "b", "c"))


def _recipe(path):
    recipe_from(load_recipe(path), where=str(path))


READERS = {
    "recipe": ("r.yaml", RECIPES, _recipe),
    "suite": ("s.yaml", SUITE.map(as_yaml), load_suite),
    "list": ("l.txt", LIST.map(lambda t: t.encode("utf-8", "surrogatepass")), open_images),
    "class table": ("c.json", TABLE.map(_dumps), load_classes),
    "class table in YAML": ("c.yaml", TABLE.map(as_yaml), load_classes),
    "class map": ("m.json", MAP.map(_dumps), lambda p: load_class_map(str(p))),
    "label": ("l.png", _encoded("png"), lambda p: read_label(p, CLASSES)),
    "label in TIFF": ("l.tif", _encoded("tif"), lambda p: read_label(p, CLASSES)),
    "image": ("i.tif", _encoded("tif"), read_image),
    "weights": ("w.pt", CHECKPOINTS, read_weights),
    "converter": ("w.pth", CHECKPOINTS, convert_checkpoint),
    "model card": ("das3.json", CARD.map(_dumps), lambda p: read_metadata(p.parent)),
}

KEPT: dict[str, list[bytes]] = {
    "recipe": [
        b"1: 2\n",
        b"a: &a [*a]\n",
        b"[" * 3000,
        b"clip: .nan\n",
        b"out: 2001-01-01\n",
        b"align: 3\n",
        b"seed: null\n",
        b"align: {lr: null}\n",
        b"? [a]\n: 1\n",
    ],
    "suite": [b"target: [1]\n", b"1: 2\n", b"target: {images: 3}\n", b"source: {images: .inf}\n"],
    "list": [b"\xff\xfea", "b\xe4r".encode("latin-1"), b"a\0b"],
    "class table": [
        b'{"classes": [{"id": 1e999}]}',
        b'{"classes": [null]}',
        b"[" * 100_000,
        b'{"classes": ["a"], "classes": ["b"]}',
    ],
    "class table in YAML": [
        b"\x01lasses: []\n",
        b"classes: !!int x\n",
        b"classes: [yes]\n",
        b"classes: [{name: a, name: b}]\n",
    ],
    "class map": [b'{"0": -7}', b'{"0": 1e999}', b'{"a": 0}'],
    "label": [
        b"",
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
        + struct.pack(">I", zlib.crc32(b"x")),
    ],
}


def check(name, folder, data):
    """One try of a reader: it reads, or says what is wrong in one line."""
    file, _, read = READERS[name]
    path = Path(folder) / file
    path.write_bytes(data)
    began = time.monotonic()
    said = "read"
    try:
        read(path)
    except Das3Error as error:
        said = printable(str(error))
    assert said.strip()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", READERS)
def test_readers_read_or_say_what_is_wrong(name, tmp_path):
    for data in KEPT.get(name, ()):
        check(name, tmp_path, data)

    @SHORT
    @given(data=damaged(READERS[name][1]))
    @example(data=b"")
    @example(data=bytes(range(256)))
    def run(data):
        check(name, tmp_path, data)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_readers_for_long(name, tmp_path):
    until, number = time.monotonic() + LONG, 0
    while time.monotonic() < until:
        number += 1

        @seed(number)
        @settings(SHORT, max_examples=500, derandomize=False)
        @given(data=damaged(READERS[name][1]))
        def run(data):
            if time.monotonic() < until:
                check(name, tmp_path, data)

        run()
