"""Bad and odd weights files, through `--weights`."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hostile.cases import Case, Place


def weights(
    write: Callable[[Path, dict[str, Tensor]], Any] | bytes, name: str = "w.pt"
) -> Callable[[Place], list[str]]:
    """A file made from the sound model's weights, for a network that they would fit."""

    def make(place: Place) -> list[str]:
        path = place.folder / name
        if isinstance(write, bytes):
            path.write_bytes(write)
        else:
            write(path, load_file(place.base / "model/model.safetensors"))
        args = ("--model-args", '{"width": 8}', "--num-classes", "3", "--weights", path)
        return place.predict(model="das3:small", more=args)

    return make


class Exec:
    """What a stranger's pickle does."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


class Eval:
    def __reduce__(self) -> Any:
        return eval, ("open('owned', 'w')",)


def _tar(path: Path, state: dict) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("../owned", "/tmp/owned"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))


def _zip(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Callable[[Path, dict], None]:
    def write(path: Path, state: dict) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in entries:
                archive.writestr(name, data)

    return write


def _repeat(op: bytes, count: int) -> bytes:
    return b"\x80\x02" + op * count + b"."


def _laughs() -> bytes:
    """A pickle of lists of lists, each twice in the next: 2^60 in all."""
    data = b"\x80\x02]q\x00"
    for i in range(60):
        data += b"]q" + bytes([i + 1]) + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a"
    return data + b"."


def header(entries: Any, body: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "three bytes": b"\1\2\3",
    "no tensors": header({}),
    "a header of text": header(b"hello there, this is text"),
    "a header of a list": header([]),
    "a header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "a header of 99 MB": struct.pack("<Q", 99_000_000) + b"{",
    "a deep header": header(b'{"a":' * 100_000),
    "a shape of 2^62": header({"a": entry([2**62], [0, 4])}, bytes(4)),
    "a negative shape": header({"a": entry([-1], [0, 4])}, bytes(4)),
    "offsets outside": header({"a": entry([1], [100, 104])}, bytes(4)),
    "offsets that overlap": header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, bytes(4)),
    "offsets backwards": header({"a": entry([1], [4, 0])}, bytes(4)),
    "a hole": header({"a": entry([1], [4, 8])}, bytes(8)),
    "an unknown type": header({"a": entry([1], [0, 4], "F31")}, bytes(4)),
    "fp8": header({"a": entry([4], [0, 4], "F8_E4M3")}, bytes(4)),
    "two entries of one name": header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "no type": header({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "words for offsets": header({"a": entry([1], ["a", "b"])}, bytes(4)),
    "nothing for a tensor": header({"a": None}),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "a": entry([1], [0, 4])}, bytes(4)),
    "trailing bytes": header({"a": entry([1], [0, 4])}, bytes(40)),
    "a pickle": pickle.dumps({"a": 1}),
    "the wrong names": header({"a": entry([1], [0, 4])}, bytes(4)),
    "an empty name": header({"": entry([1], [0, 4])}, bytes(4)),
    "a scalar": header({"a": entry([], [0, 4])}, bytes(4)),
}


def safetensors() -> Iterator[Case]:
    for name, data in SAFETENSORS.items():
        quick = name in ("empty", "a header of 2^63", "a deep header", "offsets that overlap")
        yield Case(
            "weights", f"safetensors: {name}", weights(data, "w.safetensors"), words=("w.safetensors",), quick=quick
        )
    for share in (0.1, 0.5, 0.999):
        cut = lambda path, state, s=share: (save_file(state, path), os.truncate(path, int(path.stat().st_size * s)))
        yield Case(
            "weights", f"safetensors: cut off at {share:.1%}", weights(cut, "w.safetensors"), words=("w.safetensors",)
        )
    yield Case("weights", "safetensors: sound", weights(lambda p, s: save_file(s, p), "w.safetensors"), "works")
    yield Case("weights", "safetensors: sound, called .pt", weights(lambda p, s: save_file(s, p)), "works")


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "complex": lambda w: w.to(torch.complex64),
    "sparse": lambda w: w.to_sparse(),
    "csr": lambda w: w.flatten(1).to_sparse_csr(),
    "int8": lambda w: (w * 100).to(torch.int8),
    "bool": lambda w: w > 0,
    "meta": lambda w: w.to("meta"),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "NaN": lambda w: w * float("nan"),
    "infinite": lambda w: w / 0,
    "one NaN": lambda w: w.index_fill(0, torch.tensor([0]), float("nan")),
    "another shape": lambda w: w[:1],
    "more dimensions": lambda w: w[None],
    "empty": lambda w: w[:0],
    "a scalar": lambda w: w.sum(),
    "nothing": lambda w: None,
    "a number": lambda w: 3.0,
    "a list": lambda w: w.tolist(),
    "a word": lambda w: "weights",
    "an array of NumPy": lambda w: w.numpy(),
    "nested": lambda w: torch.nested.nested_tensor([w[0], w[1]]),
    "fp8": lambda w: w.to(torch.float8_e4m3fn),
}
FINE: dict[str, Callable[[Tensor], Any]] = {
    "half": lambda w: w.half(),
    "bfloat16": lambda w: w.bfloat16(),
    "double": lambda w: w.double(),
    "not contiguous": lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda w: w[:, :, :1, :1].expand(w.shape),
    "channels last": lambda w: w.contiguous(memory_format=torch.channels_last),
    "a parameter": nn.Parameter,
    "with a gradient": lambda w: w.requires_grad_(),
    "zeros": torch.zeros_like,
    "tiny": lambda w: w * 1e-40,
    "huge": lambda w: w * 1e30,
}
KEY = "fuse.0.weight"


def changed(change: Callable[[Tensor], Any]) -> Callable[[Path, dict[str, Tensor]], None]:
    return lambda path, state: torch.save({**state, KEY: change(state[KEY])}, path)


def state_dicts() -> Iterator[Case]:
    for name, change in CHANGES.items():
        yield Case(
            "weights",
            f"a tensor that is {name}",
            weights(changed(change)),
            "either" if name == "fp8" else "told",
            ("w.pt",),
            quick=name in ("complex", "meta", "sparse"),
        )
    for name, change in FINE.items():
        yield Case(
            "weights", f"weights that are {name}", weights(changed(change)), "either" if name == "huge" else "works"
        )
    wrapped: dict[str, Callable[[dict], Any]] = {
        "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
        "_orig_mod.module.": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        "nested": lambda s: {"epoch": 3, "state_dict": s},
        "nested twice": lambda s: {"model": {"state_dict": s}},
        "ordered": OrderedDict,
        "with a name space": lambda s: {"state_dict": s, "optimizer": {"lr": 0.1}, "args": None},
    }
    for name, wrap in wrapped.items():
        yield Case("weights", f"wrapped: {name}", weights(lambda p, s, w=wrap: torch.save(w(s), p)), "works")
    wrong: dict[str, Callable[[dict], Any]] = {
        "a list": lambda s: list(s.values()),
        "a tensor": lambda s: s[KEY],
        "a number": lambda s: 3,
        "nothing": lambda s: None,
        "empty": lambda s: {},
        "empty inside": lambda s: {"state_dict": {}},
        "numbers for names": lambda s: dict(enumerate(s.values())),
        "one missing": lambda s: {k: v for k, v in s.items() if k != KEY},
        "one too many": lambda s: {**s, "extra": s[KEY]},
        "half a prefix": lambda s: {f"module.{k}" if i % 2 else k: v for i, (k, v) in enumerate(s.items())},
        "text": lambda s: "hello",
        "a tuple for a name": lambda s: {("a", 1): s[KEY]},
        "a set": lambda s: {1, 2},
        "an optimiser": lambda s: {"state": {}, "param_groups": [{"lr": 0.1}]},
        "100,000 others": lambda s: {f"k{i}": torch.zeros(1) for i in range(3000)},
        "names with newlines": lambda s: {f"{k}\n": v for k, v in s.items()},
    }
    for name, wrap in wrong.items():
        yield Case(
            "weights", f"not a state dict: {name}", weights(lambda p, s, w=wrap: torch.save(w(s), p)), words=("w.pt",)
        )
    yield Case("weights", "in itself", weights(_itself), words=("w.pt",), quick=True)
    yield Case("weights", "in itself by a list", weights(_itself_by_a_list), words=("w.pt",))


def _itself(path: Path, state: dict) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, path)


def _itself_by_a_list(path: Path, state: dict) -> None:
    content: list[Any] = []
    content.append(content)
    torch.save({"state_dict": content}, path)


def pickles() -> Iterator[Case]:
    old = {"_use_new_zipfile_serialization": False}
    for name, payload in (("system", Exec), ("eval", Eval)):
        for form, write in {
            "torch": lambda p, s, e=payload: torch.save({"state_dict": s, "x": e()}, p),
            "torch, old": lambda p, s, e=payload: torch.save({"state_dict": s, "x": e()}, p, **old),
            "pickle": lambda p, s, e=payload: p.write_bytes(pickle.dumps(e())),
            "pickle 0": lambda p, s, e=payload: p.write_bytes(pickle.dumps(e(), 0)),
            "pickle in a zip": lambda p, s, e=payload: _zip(("x/data.pkl", pickle.dumps(e())), ("x/version", b"3"))(
                p, s
            ),
        }.items():
            expect = "either" if form.startswith("torch") else "told"  # the weights are sound, and the rest is left
            yield Case("weights", f"{name} in a file of {form}", weights(write), expect, ("w.pt",), quick=True)
    whole = lambda p, s: torch.save(nn.Sequential(nn.Conv2d(3, 3, 1)), p)
    yield Case("weights", "a whole model", weights(whole), words=("w.pt", "state_dict"))
    raw = {
        "2^60 lists": _laughs(),
        "a million lists": _repeat(b"(l", 1_000_000),
        "a million marks": _repeat(b"(", 1_000_000),
        "a long int": b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b".",
        "a long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
        "an endless memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "a frame of 2^63": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b".",
        "nothing": b"\x80\x02.",
        "no end": b"\x80\x02}",
        "protocol 99": b"\x80\x63}.",
        "bytes of 2^40": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    }
    for name, data in raw.items():
        yield Case("weights", f"a pickle of {name}", weights(data), words=("w.pt",))
        zipped = _zip(("x/data.pkl", data), ("x/version", b"3\n"), ("x/byteorder", b"little"))
        yield Case("weights", f"a zipped pickle of {name}", weights(zipped), words=("w.pt",), quick="lists" in name)


def others() -> Iterator[Case]:
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "noise": bytes(range(256)) * 20,
        "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n",
        "a page": b"<!DOCTYPE html>",
        "a zip's head": b"PK\3\4" + bytes(100),
        "gzip": b"\x1f\x8b" + bytes(30),
    }.items():
        for suffix in ("pt", "pth"):
            yield Case("weights", f"{name} in a .{suffix}", weights(data, f"w.{suffix}"), words=(f"w.{suffix}",))
    yield Case("weights", "a tar that escapes", weights(_tar), words=("w.pt",))
    yield Case(
        "weights", "a zip that escapes", weights(_zip(("../owned", b"x"), ("x/data.pkl", b"x"))), words=("w.pt",)
    )
    zeros = _zip(("x/data.pkl", bytes(1 << 28)), ("x/version", b"3\n"), method=zipfile.ZIP_DEFLATED)
    yield Case("weights", "a zip bomb", weights(zeros), words=("w.pt",))
    huge = _zip(
        ("x/data.pkl", pickle.dumps({})),
        ("x/data/0", bytes(1 << 28)),
        ("x/version", b"3\n"),
        method=zipfile.ZIP_DEFLATED,
    )
    yield Case("weights", "a zip bomb of a tensor", weights(huge), words=("w.pt",))
    for what in ("fifo", "directory", "device", "broken link", "link to itself", "nothing"):
        makers: dict[str, Callable[[Path], Any]] = {
            "fifo": os.mkfifo,
            "directory": os.mkdir,
            "device": lambda p: p.symlink_to("/dev/zero"),
            "broken link": lambda p: p.symlink_to("nowhere"),
            "link to itself": lambda p: p.symlink_to(p.name),
            "nothing": lambda p: None,
        }
        yield Case(
            "weights", f"a {what}", weights(lambda p, s, m=makers[what]: m(p)), words=("w.pt",), quick=what == "fifo"
        )
    unreadable = lambda p, s: (p.write_bytes(b"x"), p.chmod(0))
    yield Case("weights", "unreadable", weights(unreadable), words=("w.pt", "ermission"), unprivileged=True)
    for share in (0.1, 0.5, 0.99):
        for old in (False, True):
            cut = lambda p, s, o=old, share=share: (
                torch.save(s, p, _use_new_zipfile_serialization=not o),
                os.truncate(p, int(p.stat().st_size * share)),
            )
            yield Case("weights", f"{'old ' * old}file cut off at {share:.0%}", weights(cut), words=("w.pt",))


def cases() -> Iterator[Case]:
    for part in (safetensors, state_dicts, pickles, others):
        yield from part()
