"""What a file is, told from its content alone: nothing is unpickled, and no other library is needed for it."""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

__all__ = ["is_safetensors", "pickled_names", "refusal", "whole_model"]

_LOAD_IT = "go with --model package.module:function, the function that builds the network"

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch the file itself with `git lfs pull`"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras writes them (.h5); das3 adapts PyTorch networks: take the model's PyTorch version",
    ),
    (b"GGUF", "a GGUF file of quantised weights, which can't be trained; take the model's PyTorch version"),
    (b"\x93NUMPY", "a NumPy array, not weights by name; save a state dict with torch.save or safetensors"),
    (b"\x1f\x8b", "a gzip archive; unpack it and give what is inside"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it and give what is inside"),
    (b"\xfd7zXZ", "an xz archive; unpack it and give what is inside"),
    (b"<!DOCTYPE", "a web page, maybe of a download that failed; download the file itself"),
    (b"<!doctype", "a web page, maybe of a download that failed; download the file itself"),
    (b"<html", "a web page, maybe of a download that failed; download the file itself"),
    (b"<?xml", "an XML file, not weights; give the file with the network's weights"),
)

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that torch's format from before 1.6 begins with

_ONNX = (
    "an ONNX file: a network fixed for inference, which can't be trained; give the PyTorch network that it was made "
    "from"
)
_TENSORFLOW = "a TensorFlow SavedModel; das3 adapts PyTorch networks: take the model's PyTorch version"


def refusal(path: Path) -> str | None:
    """What a file is that can't be weights of PyTorch, and what to do; None if it may be.

    Args:
        path: a regular file.

    Raises:
        OSError: if it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty; copy or download it again"
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    if head[:4] == b"PK\x03\x04":
        return _zip_refusal(path)
    if head[:1] == b"\x80" and _MAGIC not in head[:32]:
        return f"a plain pickle, not a file of torch.save: {whole_model(pickled_names(path))}"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file: a network fixed for inference, which can't be trained; take its PyTorch version"
    if head[257:262] == b"ustar" and size > 512:
        return "a tar archive; unpack it and give what is inside"
    if head[:1] == b"\x08" and len(head) > 4 and head[1] < 32:
        return _protobuf_refusal(head)
    if path.suffix == ".safetensors" or is_safetensors(path):
        return _safetensors_refusal(path, size)
    return None


def _zip_refusal(path: Path) -> str | None:
    """torch.save writes zip archives too, and so do TorchScript, torch.export, Keras and NumPy."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "cut off or damaged; copy or download it again"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return (
            "a TorchScript module, which can't be adapted: its code is not Python's; write its weights with "
            f"torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), which {_LOAD_IT}"
        )
    if {"archive_format", "models/model.json"} & inner or "serialized_exported_program.json" in {*names, *inner}:
        return (
            "a torch.export program, which can't be adapted: it is fixed for inference; write its weights with "
            f"torch.save(dict(torch.export.load(FILE).state_dict), 'weights.pt'), which {_LOAD_IT}"
        )
    if {"metadata.json", "config.json"} <= set(names) and any(name.endswith(".weights.h5") for name in names):
        return "a Keras model (.keras); das3 adapts PyTorch networks: take the model's PyTorch version"
    if all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz), not weights by name that torch reads; save a state dict with torch.save"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive of other things than weights; unpack it and give what is inside"
    return None


def _protobuf_refusal(head: bytes) -> str | None:
    """ONNX begins with its version and the producer's name, TensorFlow with its version and a graph."""
    tag, length = head[2], head[3]
    if tag == 0x12:
        name = head[4 : 4 + length]
        return _ONNX if length < 0x80 and name.isascii() and name.decode().isprintable() else _TENSORFLOW
    return _ONNX if tag in (0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42) else None


def is_safetensors(path: Path) -> bool:
    """Whether a file has a safetensors header, of whatever name."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _safetensors_refusal(path: Path, size: int) -> str | None:
    """The header says how long the file is; a library that maps a shorter one into memory may hang or die."""
    again = "copy or download it again"
    if not is_safetensors(path):
        return f"not a safetensors file, whatever its name says; {again}"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            return f"cut off: it has {size} bytes and its header alone is longer; {again}"
        header = file.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return f"damaged: its header can't be read; {again}"
    if not ends:
        return "a safetensors file without a single tensor; save the weights again"
    if wanted != size:
        return f"cut off or damaged: it has {size} bytes where its header wants {wanted}; {again}"
    return None


def whole_model(classes: Iterable[str]) -> str:
    """What to say of a file that holds pickled objects in place of a state dict.

    Args:
        classes: names of what it would import, as `pickled_names` gives them.
    """
    classes = list(classes)
    roots = list(dict.fromkeys(name.split(".")[0] for name in classes))
    if {"ultralytics", "yolov5"} & set(roots) or any(name.startswith("models.yolo") for name in classes):
        return (
            "a file of Ultralytics (YOLO): a whole pickled model that finds objects and their masks, not a class for "
            "every pixel; take a semantic segmentation network"
        )
    of = f" (it wants to import {', '.join(roots[:3])})" if roots else ""
    return (
        f"a whole pickled model or other Python objects{of}, and das3 never executes pickled code; save the weights "
        "alone with torch.save(model.state_dict(), path) and name the function that builds the network with --model"
    )


def pickled_names(path: Path) -> list[str]:
    """Names that the pickles in a file would import, found without importing any; [] where they can't be read.

    Args:
        path: a file of torch.save in any of its formats, or a plain pickle.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _names_in(file)
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(entry) as file:
                return _names_in(file)
    except Exception:  # a damaged pickle makes pickletools raise nearly anything
        return []


def _names_in(file: IO[bytes]) -> list[str]:
    """Imported names of the pickles one after the other in a file; torch's old format has five of them."""
    names: dict[str, None] = {}
    for _ in range(5):
        texts: list[str] = []
        try:
            for op, value, _ in pickletools.genops(file):
                if op.name in ("GLOBAL", "INST"):
                    names[str(value).replace(" ", ".")] = None
                elif op.name == "STACK_GLOBAL" and len(texts) >= 2:
                    names[f"{texts[-2]}.{texts[-1]}"] = None
                elif isinstance(value, str):
                    texts.append(value)
        except ValueError:
            break  # what follows the last pickle in the old format is no pickle
    return list(names)
