"""Bad and odd model folders: das3's own, Hugging Face's and smp's."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile.cases import Case, Place
from hostile.weights import CHANGES, Exec, header

EVIL = (
    "open('owned', 'w')\ndef build(*args, **kwargs):\n    open('owned', 'w')\nclass Config: pass\nclass Model: pass\n"
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def folder(
    change: Callable[[Path], Any], of: str = "model", more: tuple[str, ...] = ()
) -> Callable[[Place], list[str]]:
    """A copy of a sound folder, changed."""

    def make(place: Place) -> list[str]:
        copy = place.folder / "m"
        shutil.copytree(place.base / of, copy)
        (place.folder / "evil.py").write_text(EVIL)
        change(copy)
        return place.predict(model="m", more=more)

    return make


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**content, **values}))

    return change


def without(name: str, *keys: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({k: v for k, v in content.items() if k not in keys}))

    return change


def written(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "a list": b"[]",
    "a number": b"3",
    "nothing": b"null",
    "deep": b"[" * 100_000,
    "deep mappings": b'{"a":' * 100_000,
    "cut off": b'{"das3": "0.1", "kind"',
    "binary": bytes(range(256)),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NUL": bytes(100),
    "git lfs": LFS,
    "many digits": b'{"divisor": ' + b"9" * 10_000 + b"}",
}

CARDS: dict[str, dict[str, Any]] = {
    "divisor 0": {"divisor": 0},
    "negative divisor": {"divisor": -32},
    "divisor of text": {"divisor": "32"},
    "huge divisor": {"divisor": 10**12},
    "largest divisor": {"divisor": 65536},
    "divisor nan": {"divisor": NAN},
    "divisor true": {"divisor": True},
    "square of text": {"square": "yes"},
    "kind": {"kind": "pickle"},
    "kind huggingface": {"kind": "huggingface"},
    "kind smp": {"kind": "smp"},
    "kind object": {"kind": "object"},
    "model a number": {"model": 3},
    "model nothing": {"model": None},
    "model empty": {"model": ""},
    "model unknown": {"model": "das3:nope"},
    "model a path": {"model": "../../etc"},
    "code": {"model": "os:system", "model_args": {"command": "touch owned"}},
    "code of a package": {"model": "subprocess:getoutput", "model_args": {"cmd": "touch owned"}},
    "code beside": {"model": "evil:build"},
    "code in the folder": {"model": "m.evil:build"},
    "code by torch": {"model": "torch.hub:load", "model_args": {"repo_or_dir": "a/b", "model": "c"}},
    "code in a name": {"model": "torchvision:__import__"},
    "arguments a list": {"model_args": [1]},
    "arguments nothing": {"model_args": None},
    "arguments wrong": {"model_args": {"width": "wide"}},
    "arguments huge": {"model_args": {"width": 10**6, "num_classes": 3}},
    "arguments negative": {"model_args": {"width": -8, "num_classes": 3}},
    "arguments unknown": {"model_args": {"colour": 1}},
    "classes negative": {"model_args": {"width": 8, "num_classes": -4}},
    "classes huge": {"model_args": {"width": 8, "num_classes": 10**9}},
    "a download": {"model": "smp:Unet", "model_args": {"encoder_name": "tu-hf-hub:a/b", "classes": 3}},
    "a download of weights": {"model": "smp:Unet", "model_args": {"encoder_weights": "imagenet", "classes": 3}},
    "a url": {"model_args": {"width": "https://127.0.0.1/x"}},
    "weights of torchvision": {"model": "torchvision:fcn_resnet50", "model_args": {"weights": "DEFAULT"}},
    "nesting": {"nesting": "state_dict"},
    "prefix": {"prefix": None},
    "names of numbers": {"class_names": [1, 2, 3]},
    "names of two": {"class_names": ["a", "b"]},
    "names of text": {"class_names": "abc"},
    "classifier of text": {"classifier": "head"},
    "classifier unknown": {"classifier": ["nope"]},
    "key": {"output_key": 1.5},
    "key unknown": {"output_key": "nope"},
    "align": {"align_corners": 2},
    "align of text": {"align_corners": "yes"},
    "preprocess a list": {"preprocess": []},
    "preprocess nothing": {"preprocess": None},
    "two means": {"preprocess": {"mean": [0.5, 0.5]}},
    "mean of text": {"preprocess": {"mean": ["a", "b", "c"]}},
    "mean a number": {"preprocess": {"mean": 0.5}},
    "mean nan": {"preprocess": {"mean": [NAN, 0, 0]}},
    "std 0": {"preprocess": {"std": [0, 1, 1]}},
    "std inf": {"preprocess": {"std": [INF, 1, 1]}},
    "std negative": {"preprocess": {"std": [-1, 1, 1]}},
    "std of text": {"preprocess": {"std": "abc"}},
    "size 0": {"preprocess": {"size": 0}},
    "size of one 0": {"preprocess": {"size": [64, 0]}},
    "size of three": {"preprocess": {"size": [1, 2, 3]}},
    "size huge": {"preprocess": {"size": 10**9}},
    "size 65536": {"preprocess": {"size": [65536, 65536]}},
    "size of text": {"preprocess": {"size": "large"}},
    "size nan": {"preprocess": {"size": NAN}},
    "unknown setting": {"preprocess": {"colour": 1}},
    "input max 0": {"preprocess": {"input_max": 0}},
    "input max of text": {"preprocess": {"input_max": "1"}},
    "order": {"preprocess": {"channels": "hsv"}},
    "order a list": {"preprocess": {"channels": ["rgb"]}},
    "rgb of bands": {"preprocess": {"rgb": [7, 8, 9]}},
    "rgb of text": {"preprocess": {"rgb": "abc"}},
    "rgb of two": {"preprocess": {"rgb": [0, 1]}},
    "channels 0": {"in_channels": 0},
    "channels 4": {"in_channels": 4},
    "channels huge": {"in_channels": 65536},
    "channels of text": {"in_channels": "three"},
    "pixels a list": {"pixels": [0, 255]},
    "pixels of no type": {"pixels": {"dtype": "colour"}},
    "pixels of text": {"pixels": {"dtype": "U8"}},
    "pixels unknown": {"pixels": {"colour": 1}},
    "no bands": {"pixels": {"channels": 0}},
    "other bands": {"pixels": {"channels": 4}},
    "range of text": {"pixels": {"low": ["dark"]}},
    "empty range": {"pixels": {"low": [7], "high": [7]}},
    "range nan": {"pixels": {"low": [NAN]}},
    "bands of nothing": {"pixels": {"bands": [None, 1, 2]}},
    "bands a number": {"pixels": {"bands": 3}},
    "bands unknown": {"pixels": {"bands": ["nir", "red", "red"]}},
    "nodata of text": {"pixels": {"nodata": "none"}},
    "nodata nan": {"pixels": {"nodata": NAN}},
    "fill of text": {"pixels": {"fill": ["x"]}},
    "fill huge": {"pixels": {"fill": [1e300]}},
    "dtype of objects": {"pixels": {"dtype": "O"}},
    "dtype a list": {"pixels": {"dtype": ["u1"]}},
}


def own() -> Iterator[Case]:
    for name, data in BROKEN.items():
        yield Case(
            "folders", f"das3.json: {name}", folder(written("das3.json", data)), words=("m",), quick=name == "deep"
        )
    for name, values in CARDS.items():
        fine = name in ("kind huggingface", "a download of weights", "key unknown", "other bands")
        quick = "code" in name or name in ("divisor 0", "two means")
        yield Case(
            "folders",
            f"das3.json: {name}",
            folder(edited("das3.json", **values)),
            "either" if fine else "told",
            (),
            quick=quick,
        )
    for key in ("kind", "model", "model_args", "preprocess", "class_names", "divisor"):
        yield Case("folders", f"das3.json without {key}", folder(without("das3.json", key)), words=("das3.json", key))
    yield Case("folders", "das3.json with more", folder(edited("das3.json", later=[1, 2])), "works")
    yield Case(
        "folders",
        "das3.json: a fifo",
        folder(lambda p: ((p / "das3.json").unlink(), os.mkfifo(p / "das3.json"))),
        words=("m",),
    )
    yield Case(
        "folders",
        "das3.json: trust",
        folder(edited("das3.json", model="evil:build", trust=True)),
        words=("evil:build", "--trust"),
        quick=True,
    )
    files = {
        "gone": lambda p: (p / "model.safetensors").unlink(),
        "a fifo": lambda p: ((p / "model.safetensors").unlink(), os.mkfifo(p / "model.safetensors")),
        "git lfs": written("model.safetensors", LFS),
        "empty": written("model.safetensors", b""),
        "a pickle": written("model.safetensors", pickle.dumps(Exec())),
        "other names": written(
            "model.safetensors", header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
        ),
        "cut off": lambda p: os.truncate(p / "model.safetensors", 500),
        "a link to itself": lambda p: (
            (p / "model.safetensors").unlink(),
            (p / "model.safetensors").symlink_to("model.safetensors"),
        ),
    }
    for name, change in files.items():
        yield Case(
            "folders",
            f"model.safetensors: {name}",
            folder(change),
            words=("model.safetensors",),
            quick=name in ("a fifo", "a pickle"),
        )
    yield Case("folders", "an empty folder", _empty, words=("m:",))
    yield Case("folders", "a link to itself", _link, words=("m",))
    yield Case("folders", "a folder in a folder of code", lambda p: p.predict(model="evil.py"), words=("evil.py",))
    for spec in (
        "owner/name.pt",
        "./nowhere",
        "nowhere/model.pt",
        "nowhere",
        "",
        "a:b:c",
        "das3:",
        ":small",
        "torchvision:nope",
        "smp:nope",
        "smp:__init__",
        "no_such_module:build",
        "json:loads",
        "os:nope",
        "a" * 5000,
        "a\0b",
        "../" * 500,
    ):
        yield Case(
            "folders",
            f"--model {spec[:20]!a}",
            lambda p, s=spec: p.predict(model=s) if s else [*p.predict()[:2], "", *p.predict()[3:]],
        )


def _empty(place: Place) -> list[str]:
    (place.folder / "m").mkdir()
    return place.predict(model="m")


def _link(place: Place) -> list[str]:
    (place.folder / "m").symlink_to("m")
    return place.predict(model="m")


PROCESSORS: dict[str, dict[str, Any]] = {
    "two means": {"image_mean": [0.5, 0.5]},
    "no mean": {"image_mean": []},
    "means of text": {"image_mean": ["a", "b", "c"]},
    "a mean of text": {"image_mean": "half"},
    "zero std": {"image_std": [0, 0, 0]},
    "std nan": {"image_std": [NAN, 1, 1]},
    "mean nan": {"image_mean": [0.5, NAN, 0.5]},
    "unknown": {"image_processor_type": "NoSuchProcessor"},
    "type a list": {"image_processor_type": ["a"]},
    "code": {"image_processor_type": "NoSuchProcessor", "auto_map": {"AutoImageProcessor": "evil.Config"}},
    "negative size": {"do_resize": True, "size": {"height": -3, "width": 5}},
    "size of text": {"do_resize": True, "size": "large"},
    "size nan": {"do_resize": True, "size": {"height": NAN, "width": 5}},
    "size huge": {"do_resize": True, "size": {"height": 10**7, "width": 10**7}},
    "size unknown": {"do_resize": True, "size": {"depth": 3}},
    "size a list": {"do_resize": True, "size": [1, 2, 3]},
    "factor 0": {"rescale_factor": 0},
    "factor nan": {"rescale_factor": NAN},
    "factor of text": {"rescale_factor": "1/255"},
    "normalise of text": {"do_normalize": "maybe"},
}

CONFIGS: dict[str, dict[str, Any]] = {
    "unknown type": {"model_type": "nope"},
    "type a list": {"model_type": ["segformer"]},
    "type a number": {"model_type": 3},
    "another type": {"model_type": "bert"},
    "quantised": {"quantization_config": {"bits": 4}},
    "quantised of text": {"quantization_config": "4 bits"},
    "kernels": {"attn_implementation": "a/b"},
    "inner kernels": {"_attn_implementation_internal": "a/b"},
    "remote": {"backbone": "hf-hub:a/b"},
    "a url": {"_name_or_path": "https://127.0.0.1/x"},
    "code": {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSemanticSegmentation": "evil.Model"},
    },
    "code and a known type": {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSemanticSegmentation": "evil.Model"}
    },
    "code elsewhere": {"model_type": "evil", "auto_map": {"AutoConfig": "someone/else--evil.Config"}},
    "depths of text": {"depths": "many"},
    "depths empty": {"depths": []},
    "negative depths": {"depths": [-1, 1, 1, 1]},
    "heads 0": {"num_attention_heads": [0, 1, 2, 2]},
    "heads that don't divide": {"num_attention_heads": [3, 1, 2, 2]},
    "hidden huge": {"hidden_sizes": [10**7] * 4},
    "hidden other": {"hidden_sizes": [16, 16, 24, 32]},
    "labels negative": {"id2label": {"-1": "a"}},
    "labels of text": {"id2label": "abc"},
    "labels of two": {"id2label": {"0": "a", "1": "b"}},
    "labels a list": {"id2label": ["a", "b", "c"]},
    "labels words": {"id2label": {"a": "b"}},
    "activation": {"hidden_act": "eval"},
    "activation a list": {"hidden_act": ["a"]},
    "dropout 7": {"classifier_dropout_prob": 7},
    "drop nan": {"drop_path_rate": NAN},
    "epsilon nan": {"layer_norm_eps": NAN},
    "channels 0": {"num_channels": 0},
    "channels 5": {"num_channels": 5},
    "strides 0": {"strides": [0, 0, 0, 0]},
    "type of numbers": {"dtype": "float16"},
    "unknown dtype": {"dtype": "float99"},
    "dtype of code": {"dtype": "os.system"},
    "architectures": {"architectures": ["Evil"]},
    "an adapter": {"peft_type": "LORA"},
}


def hugging() -> Iterator[Case]:
    for name, values in PROCESSORS.items():
        fine = name in ("size unknown", "normalise of text", "size a list", "size nan")
        yield Case(
            "folders",
            f"processor: {name}",
            folder(edited("preprocessor_config.json", **values), "hf"),
            "either" if fine else "told",
            ("m",),
            quick=name in ("two means", "code"),
        )
    fine = (
        "a url",
        "code and a known type",
        "activation",
        "drop nan",
        "dropout 7",
        "type of numbers",
        "architectures",
        "an adapter",
        "labels a list",
        "labels words",
        "labels negative",
        "activation a list",
        "unknown dtype",
        "dtype of code",
        "inner kernels",
        "labels of two",
        "negative depths",
        "epsilon nan",
    )
    for name, values in CONFIGS.items():
        expect = "either" if name in fine else "told"
        yield Case(
            "folders",
            f"config: {name}",
            folder(edited("config.json", **values), "hf"),
            expect,
            ("m",),
            quick="code" in name,
        )
    for file in ("config.json", "preprocessor_config.json", "generation_config.json"):
        for name, data in BROKEN.items():
            expect = "either" if file == "generation_config.json" else "told"
            yield Case(
                "folders",
                f"{file}: {name}",
                folder(written(file, data), "hf"),
                expect,
                ("m",),
                quick=name == "deep" and file == "config.json",
            )
    for name in ("complex", "sparse", "int8", "NaN", "another shape", "a word"):
        yield Case("folders", f"pytorch_model.bin: {name}", folder(_as_bin(CHANGES[name]), "hf"), words=("m",))
    yield Case("folders", "pytorch_model.bin: code", folder(_code_bin, "hf"), "either", ("m",), quick=True)
    files = {
        "git lfs": written("model.safetensors", LFS),
        "empty": written("model.safetensors", b""),
        "three bytes": written("model.safetensors", b"\1\2\3"),
        "cut off": lambda p: os.truncate(p / "model.safetensors", 5000),
        "gone": lambda p: (p / "model.safetensors").unlink(),
        "a fifo": lambda p: ((p / "model.safetensors").unlink(), os.mkfifo(p / "model.safetensors")),
        "without a head": lambda p: _less(p, "decode_head"),
        "NaN": lambda p: _changed(p, lambda w: w * NAN),
        "int8": lambda p: _changed(p, lambda w: (w * 9).to(torch.int8)),
    }
    for name, change in files.items():
        yield Case(
            "folders",
            f"transformers' weights: {name}",
            folder(change, "hf"),
            words=("m",),
            quick=name in ("git lfs", "a fifo"),
        )
    indices = {
        "escapes": {"weight_map": {"a": "../../w.safetensors"}},
        "missing parts": {"weight_map": {"a": "part1.safetensors"}},
        "no map": {},
        "a list": [1],
        "map of numbers": {"weight_map": {"a": 3}},
    }
    for name, content in indices.items():
        change = lambda p, c=content: (
            (p / "model.safetensors").unlink(),
            (p / "model.safetensors.index.json").write_text(json.dumps(c)),
        )
        yield Case("folders", f"index: {name}", folder(change, "hf"), words=("m",))
    yield Case(
        "folders",
        "transformers: a fifo for the config",
        folder(lambda p: ((p / "config.json").unlink(), os.mkfifo(p / "config.json")), "hf"),
        words=("m",),
    )
    more = lambda p: os.mkfifo(p / "generation_config.json")
    yield Case("folders", "transformers: a fifo for another file", folder(more, "hf"), words=("m",))
    yield Case("folders", "transformers: sound", folder(lambda p: None, "hf"), "works")


KEY = "decode_head.classifier.weight"


def _changed(path: Path, change: Callable) -> None:
    state = load_file(path / "model.safetensors")
    save_file({**state, KEY: change(state[KEY]).contiguous()}, path / "model.safetensors", metadata={"format": "pt"})


def _less(path: Path, prefix: str) -> None:
    state = {k: v for k, v in load_file(path / "model.safetensors").items() if not k.startswith(prefix)}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def _as_bin(change: Callable) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        torch.save({**state, KEY: change(state[KEY])}, path / "pytorch_model.bin")

    return write


def _code_bin(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save({**state, "x": Exec()}, path / "pytorch_model.bin")


SMP: dict[str, dict[str, Any]] = {
    "unknown class": {"_model_class": "Evil"},
    "class a list": {"_model_class": ["Unet"]},
    "encoder unknown": {"encoder_name": "nope"},
    "encoder remote": {"encoder_name": "tu-hf-hub:a/b"},
    "encoder of timm's": {"encoder_name": "tu-hf_hub:a/b"},
    "encoder a number": {"encoder_name": 3},
    "classes negative": {"classes": -1},
    "classes of text": {"classes": "three"},
    "channels of text": {"in_channels": "x"},
    "unknown argument": {"colour": 1},
    "activation": {"activation": "nope"},
    "weights": {"encoder_weights": "imagenet"},
}


def smp() -> Iterator[Case]:
    for name, values in SMP.items():
        content = {"_model_class": "Unet", "encoder_name": "resnet18", "encoder_weights": None, "classes": 3, **values}

        def change(path: Path, content: dict = content) -> None:
            (path / "das3.json").unlink()
            (path / "config.json").write_text(json.dumps(content))

        yield Case("folders", f"smp: {name}", folder(change))  # its weights are of another network in any case


def cases() -> Iterator[Case]:
    for part in (own, hugging, smp):
        yield from part()
