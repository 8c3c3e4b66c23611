"""Bad and odd recipes, through `das3 adapt --recipe`, and suites, through `das3 benchmark`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from hostile.cases import Case, Place
from hostile.labels import bomb


def recipe(text: str | bytes, name: str = "r.yaml") -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return [*place.adapt(), "--recipe", name]

    return make


TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "works"),
    "remarks": ("# nothing\n", "works"),
    "a list": ("[1, 2]", "told"),
    "a word": ("hello", "told"),
    "a number": ("3", "told"),
    "not YAML": ("a: [", "told"),
    "tabs": ("align:\n\tsteps: 1\n", "told"),
    "deep": ("[" * 5000, "told"),
    "deep mappings": ("{a: " * 3000, "told"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "works"),
    "with a mark": ("seed: 1\n".encode("utf-8-sig"), "works"),
    "Latin-1": (b"out: b\xe4r\n", "told"),
    "binary": (bytes(range(256)), "told"),
    "NUL": (b"seed: 1\0\n", "told"),
    "nothing but NUL": (bytes(1000), "told"),
    "control": ("seed: \x07\n", "told"),
    "bomb": (bomb("classifier"), "told"),
    "bomb in a key of ours": (bomb("model_args"), "told"),
    "bomb of mappings": (
        "".join(
            f"m{i}: &m{i} {{a: {'*m' + str(i - 1) if i else 1}, b: {'*m' + str(i - 1) if i else 1}}}\n"
            for i in range(24)
        ),
        "told",
    ),
    "circle": ("model_args: &a {a: *a}\n", "told"),
    "circle of lists": ("classifier: &a [*a]\n", "told"),
    "unknown alias": ("seed: *no\n", "told"),
    "aliases that do no harm": ("align: &a {lr: 0.001}\npropagate: *a\n", "works"),
    "merge": ("align: &a {lr: 0.001}\npropagate: {<<: *a, steps: 1}\n", "works"),
    "two keys": ("seed: 1\nseed: 2\n", "told"),
    "two keys of a stage": ("align:\n  lr: 0.1\n  lr: 0.2\n", "told"),
    "a stage twice": ("align: {lr: 0.1}\nalign: {steps: 3}\n", "told"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "told"),
    "code": ("seed: !!python/object/apply:os.system ['touch owned']\n", "told"),
    "an object": ("seed: !!python/object:os.system {}\n", "told"),
    "a module": ("model: !!python/module:os\n", "told"),
    "own tag": ("seed: !x 1\n", "told"),
    "a set": ("classifier: !!set {a, b}\n", "told"),
    "bytes": ("classifier: !!binary aGVsbG8=\n", "told"),
    "a date": ("out: 2001-01-01\n", "told"),
    "a number for a key": ("1: 2\n", "told"),
    "nothing for a key": ("null: 2\n", "told"),
    "a list for a key": ("? [a]\n: 2\n", "told"),
    "a mapping for a key": ("? {a: 1}\n: 2\n", "told"),
    "unknown option": ("colour: red\n", "told"),
    "unknown option of a stage": ("align: {colour: red}\n", "told"),
    "unknown stage": ("alignment: {lr: 1}\n", "told"),
    "format 99": ("format: 99\n", "told"),
    "format two": ("format: two\n", "told"),
    "format nan": ("format: .nan\n", "told"),
    "format 0": ("format: 0\n", "either"),
    "code for a model": ("model: os:system\n", "works"),
    "trust": ("trust: true\n", "told"),
    "dotted": ("align.lr: 0.1\n", "either"),
    "two megabytes": ("# " + "x" * 2**21 + "\n", "told"),
    "a recipe in a recipe": ("recipe: das3\n", "told"),
    "options": ("options: {align: {lr: 1}}\n", "told"),
    "help": ("help: true\n", "told"),
    "print config": ("print_config: true\n", "told"),
    "format of tomorrow": ("format: 3\n", "told"),
    "old name": ("average: 0.5\n", "works"),
    "both names": ("average: 0.5\nema_decay: 0.5\n", "told"),
    "template": ("seed: ${oc.env:HOME}\n", "told"),
    "braces": ("seed: {{ 7*7 }}\n", "told"),
}

NOT_FINITE = {"nan": ".nan", "inf": ".inf", "minus inf": "-.inf"}
NUMBERS = (
    "batch_size",
    "accumulate",
    "weight_decay",
    "power",
    "warmup",
    "clip",
    "ema_decay",
    "workers",
    "log_every",
    "checkpoint_every",
    "cache_gib",
    "disk_cache_gib",
    "seed",
    "devices",
    "nodata",
    "input_max",
    "in_channels",
    "num_classes",
    "size",
    "selftrain.steps",
    "selftrain.lr",
    "selftrain.head_lr_factor",
    "selftrain.color",
    "selftrain.blur",
    "selftrain.top_fraction",
    "selftrain.positive_weight",
    "selftrain.pairwise_weight",
    "selftrain.rare_temperature",
    "align.gamma",
)

VALUES: tuple[tuple[str, str, str], ...] = (
    ("batch_size", "0", "told"),
    ("batch_size", "-1", "told"),
    ("batch_size", "1.5", "told"),
    ("batch_size", "two", "told"),
    ("batch_size", "1000000000", "told"),
    ("batch_size", "true", "told"),
    ("batch_size", "[1]", "told"),
    ("batch_size", "1e400", "told"),
    ("batch_size", "9" * 5000, "told"),
    ("accumulate", "0", "told"),
    ("accumulate", "1000000000000", "told"),
    ("workers", "-1", "told"),
    ("workers", "1000000", "told"),
    ("devices", "0", "told"),
    ("devices", "-2", "told"),
    ("devices", "100000", "told"),
    ("devices", "1.0", "told"),
    ("cache_gib", "-1", "told"),
    ("cache_gib", "1.0e+300", "either"),
    ("disk_cache_gib", "-1", "told"),
    ("seed", "-1", "told"),
    ("seed", "4294967296", "told"),
    ("seed", str(2**70), "told"),
    ("size", "[0, 5]", "told"),
    ("size", "[5, 0]", "told"),
    ("size", "0", "told"),
    ("size", "-3", "told"),
    ("size", "[1, 2, 3]", "told"),
    ("size", "[]", "told"),
    ("size", "1", "works"),
    ("size", "[1, 1]", "works"),
    ("size", "1000000", "told"),
    ("size", "[1000000, 1000000]", "told"),
    ("size", "wide", "told"),
    ("size", "{a: 1}", "told"),
    ("crop", "[0, 0]", "told"),
    ("crop", "[1, 1]", "works"),
    ("crop", "[2, 3]", "works"),
    ("crop", "[3, 3]", "works"),
    ("crop", "[-5, 5]", "told"),
    ("crop", "[100000, 100000]", "told"),
    ("crop", "5", "told"),
    ("crop", "[5]", "told"),
    ("crop", "[a, b]", "told"),
    ("stages", "[]", "told"),
    ("stages", "align", "told"),
    ("stages", "[nope]", "told"),
    ("stages", "[align, 3]", "told"),
    ("stages", "{align: 1}", "told"),
    ("stages", "null", "told"),
    ("guard", "never", "told"),
    ("guard", "true", "told"),
    ("report", "maybe", "told"),
    ("device", "tpu", "told"),
    ("device", "cuda", "told"),
    ("precision", "8", "told"),
    ("optimizer", "lion", "told"),
    ("mean", "[0.5, 0.5]", "told"),
    ("mean", "[.nan, 0, 0]", "told"),
    ("mean", "0.5", "told"),
    ("mean", "[a, b, c]", "told"),
    ("mean", "[]", "told"),
    ("mean", "[1.0e+300, 0, 0]", "told"),
    ("std", "[0, 1, 1]", "told"),
    ("std", "[-1, 1, 1]", "told"),
    ("std", "[.inf, 1, 1]", "told"),
    ("std", "[1.0e-300, 1, 1]", "told"),
    ("input_max", "0", "told"),
    ("input_max", "-1", "told"),
    ("channels", "hsv", "told"),
    ("channels", "grey", "told"),
    ("in_channels", "4", "told"),
    ("in_channels", "0", "told"),
    ("in_channels", "1000000", "told"),
    ("num_classes", "0", "told"),
    ("num_classes", "-3", "told"),
    ("num_classes", "19", "told"),
    ("num_classes", "100000", "told"),
    ("class_names", "[a]", "told"),
    ("class_names", "abc", "told"),
    ("class_names", "[a, b, [c]]", "told"),
    ("classifier", "nope", "told"),
    ("classifier", "[]", "told"),
    ("classifier", "''", "told"),
    ("classifier", "[a, a]", "told"),
    ("output_key", "nope", "either"),
    ("output_key", "7", "either"),
    ("output_key", "[1]", "told"),
    ("model_args", "[1]", "told"),
    ("model_args", "3", "told"),
    ("model_args", "{width: 8}", "told"),
    ("weights", "nowhere.pt", "told"),
    ("weights", "[a]", "told"),
    ("weights", ".", "told"),
    ("weights", "''", "told"),
    ("pixel_range", "bright", "told"),
    ("pixel_range", "'5,1'", "told"),
    ("pixel_range", "[.nan, 1]", "told"),
    ("pixel_range", "[0, 1, 2]", "told"),
    ("pixel_range", "[]", "told"),
    ("pixel_range", "'percentile:-1,101'", "told"),
    ("pixel_range", "'0,inf'", "told"),
    ("pixel_range", "{a: 1}", "told"),
    ("pixel_range", "'0,255'", "works"),
    ("bands", "[99]", "told"),
    ("bands", "[0]", "told"),
    ("bands", "[-1, 1, 2]", "told"),
    ("bands", "[]", "told"),
    ("bands", "[nir, red, red]", "told"),
    ("bands", "red", "told"),
    ("bands", "[1, 2]", "told"),
    ("bands", "[1, 1, 1]", "works"),
    ("rgb_bands", "[1]", "told"),
    ("rgb_bands", "[7, 8, 9]", "told"),
    ("rgb_bands", "[]", "told"),
    ("eval_images", "nowhere", "told"),
    ("eval_labels", "nowhere", "told"),
    ("classes", "nowhere.json", "either"),
    ("class_map", "nowhere.json", "either"),
    ("images", "nowhere", "works"),
    ("out", "[a]", "told"),
    ("images", "{a: 1}", "told"),
    ("selftrain", "3", "told"),
    ("selftrain", "[1]", "told"),
    ("selftrain", "fast", "told"),
    ("selftrain", "null", "either"),
    ("selftrain", "{}", "works"),
    ("align", "true", "told"),
    ("shot_im", "[]", "told"),
    ("selftrain.scale", "[1.0, .inf]", "told"),
    ("selftrain.scale", "[0, 0]", "told"),
    ("selftrain.scale", "[2, 1]", "told"),
    ("selftrain.scale", "[.nan, 1]", "told"),
    ("selftrain.scale", "[1]", "told"),
    ("selftrain.scale", "[1, 1, 1]", "told"),
    ("selftrain.scale", "[1.0e-9, 1.0e-9]", "told"),
    ("selftrain.scale", "[1.0e+9, 1.0e+9]", "either"),
    ("selftrain.lr", "0", "told"),
    ("selftrain.lr", "-1", "told"),
    ("selftrain.lr", "1.0e+30", "either"),
    ("selftrain.color", "1.0e+30", "either"),
    ("selftrain.blur", "2", "told"),
    ("selftrain.thresholds", "all", "told"),
    ("selftrain.bn_mode", "off", "told"),
    ("selftrain.top_fraction", "0", "told"),
    ("selftrain.positive_weight", "1.0e+300", "told"),
    ("selftrain.color_transforms", "some", "told"),
    ("log_every", "0", "told"),
    ("checkpoint_every", "0", "told"),
    ("clip", "-1", "told"),
    ("power", "-1", "told"),
    ("power", "1.0e+300", "either"),
    ("weight_decay", "1.0e+300", "either"),
    ("warmup", "2", "told"),
    ("ema_decay", "1", "told"),
)


def one(option: str, value: str) -> Callable[[Place], list[str]]:
    """A recipe that says one thing, and a command that does not say otherwise."""
    stage, dot, name = option.rpartition(".")
    text = f"{stage}: {{{name}: {value}}}\n" if dot else f"{option}: {value}\n"

    def make(place: Place) -> list[str]:
        (place.folder / "r.yaml").write_text(text)
        given = [*place.adapt(), "--recipe", "r.yaml"]
        said = f"--{option.replace('_', '-')}="
        return [argument for argument in given if not argument.startswith(said)]

    return make


def values() -> Iterator[Case]:
    for option in NUMBERS:
        for name, value in NOT_FINITE.items():
            word = option.rpartition(".")[2].replace("_", "-")
            quick = (option, name) in (("cache_gib", "nan"), ("nodata", "nan"), ("selftrain.lr", "inf"))
            yield Case("recipes", f"{option}: {name}", one(option, value), words=("r.yaml",), quick=quick)
            assert word
    for option, value, expect in VALUES:
        quick = (option, value) in (("size", "[0, 5]"), ("selftrain", "3"), ("crop", "[1, 1]"), ("devices", "0"))
        yield Case("recipes", f"{option}: {value[:30]}", one(option, value), expect, quick=quick)


def texts() -> Iterator[Case]:
    for name, (text, expect) in TEXTS.items():
        quick = "bomb" in name or name in ("two keys", "code", "circle")
        yield Case("recipes", name, recipe(text), expect, ("r.yaml",), quick=quick)
    yield Case("recipes", "code alone", _code_alone, words=("r.yaml", "--trust"), quick=True)
    for what in ("fifo", "directory", "device", "missing", "link to itself"):
        yield Case(
            "recipes", f"r.yaml is a {what}", lambda p, w=what: _special(p, w), words=("r.yaml",), quick=what == "fifo"
        )
    yield Case(
        "recipes", "two keys say where", recipe("a: 1\nseed: 1\n\nseed: 2\n"), words=("r.yaml", "line 4", "seed")
    )


def _code_alone(place: Place) -> list[str]:
    (place.folder / "evil.py").write_text("open('owned', 'w')\ndef build(**kwargs): open('owned', 'w')\n")
    (place.folder / "r.yaml").write_text("model: evil:build\n")
    given = place.adapt()
    return [given[0], *given[3:], "--recipe", "r.yaml"]


def _special(place: Place, what: str) -> list[str]:
    path = place.folder / "r.yaml"
    makers: dict[str, Any] = {
        "fifo": os.mkfifo,
        "directory": os.mkdir,
        "device": lambda p: p.symlink_to("/dev/zero"),
        "missing": lambda p: None,
        "link to itself": lambda p: p.symlink_to(p.name),
    }
    makers[what](path)
    return [*place.adapt(), "--recipe", "r.yaml"]


def suite(text: Any) -> Callable[[Place], list[str]]:
    """A suite that is sound but for what is said."""

    def make(place: Place) -> list[str]:
        part = {"images": str(place.base / "images"), "labels": str(place.base / "labels"), "num_classes": 3}
        good = {"source": part, "target": part, "test": part}
        if isinstance(text, dict):
            content: bytes = json.dumps({**good, **text}).encode()
        elif callable(text):
            content = json.dumps(text(good)).encode()
        else:
            content = text if isinstance(text, bytes) else text.encode()
        (place.folder / "s.yaml").write_bytes(content)
        given = ("--suite", "s.yaml", "--methods", "bn", "--seeds", "1", "--out", "bench", "--jobs", "1")
        return ["benchmark", *given]

    return make


def without(key: str) -> Callable[[dict], dict]:
    return lambda good: {k: v for k, v in good.items() if k != key}


SUITES: dict[str, Any] = {
    "empty": "",
    "a list": "[1]",
    "a word": "hello",
    "not YAML": "a: [",
    "deep": "[" * 5000,
    "bomb": bomb("options"),
    "circle": "options: &a {a: *a}\n",
    "two keys": "source: {images: a}\nsource: {images: b}\n",
    "code": "source: !!python/object/apply:os.system ['touch owned']\n",
    "binary": bytes(range(256)),
    "Latin-1": b"name: b\xe4r\n",
    "no source": without("source"),
    "no target": without("target"),
    "no test": without("test"),
    "a list for a part": {"source": [1]},
    "a word for a part": {"target": "here"},
    "nothing for a part": {"test": None},
    "numbers for images": {"target": {"images": 3}},
    "nowhere": {"target": {"images": "nowhere"}},
    "labels nowhere": {"test": {"images": "nowhere", "labels": "nowhere"}},
    "no labels": {"source": {"images": "nowhere"}},
    "unknown entry": {"colour": "red"},
    "unknown entry of a part": {"test": {"images": "a", "labels": "b", "colour": "red"}},
    "code for the network": {"network": "os:system"},
    "code for the model": {"source_model": "os:system"},
    "trust": {"trust": True},
    "no such network": {"network": "das3:nope"},
    "a list for the network": {"network": ["a"]},
    "arguments": {"model_args": [1]},
    "wrong arguments": {"model_args": {"width": "wide"}},
    "size 0": {"size": 0},
    "size nan": "size: .nan\n",
    "size of words": {"size": "large"},
    "options": {"options": [1]},
    "unknown option": {"options": {"colour": 1}},
    "bad option": {"options": {"batch_size": 0}},
    "nan option": {"options": {"clip": float("nan")}},
    "source options": {"source_options": {"lr": -1}},
    "unknown source option": {"source_options": {"colour": 1}},
    "source options of words": {"source_options": "fast"},
    "oracle options": {"oracle_options": {"steps": "many"}},
    "steps": {"steps": -5},
    "steps of words": {"steps": "many"},
    "a list for the name": {"name": ["a"]},
    "name of a path": {"name": "../../x"},
    "a number for classes": {"classes": 3},
    "classes nowhere": {"classes": "nowhere.json"},
    "map nowhere": {"class_map": "nowhere.json"},
    "classes of words": {"num_classes": "three"},
    "no classes": {"num_classes": 0},
    "source model nowhere": {"source_model": "no/where.pt"},
    "source model a number": {"source_model": 3},
}


def suites() -> Iterator[Case]:
    for name, text in SUITES.items():
        quick = name in ("bomb", "two keys", "code", "a list for a part")
        yield Case("recipes", f"suite: {name}", suite(text), quick=quick)


def cases() -> Iterator[Case]:
    for part in (texts, values, suites):
        yield from part()
