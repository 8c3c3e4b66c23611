"""Hand a model over: one file that runs without das3, checked against PyTorch before it is given away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from das3.data.visualize import palette
from das3.errors import ModelError
from das3.export.formats import FORMATS, Format
from das3.export.network import InferenceNetwork, Output, Shape
from das3.export.script import PREDICT
from das3.export.verify import Comparison, compare, noise
from das3.files import write_atomically
from das3.segmenter import Segmenter

__all__ = ["Export", "export_model"]

_USUAL = (512, 512)
"""Size of the images of a file that takes one only, if none was asked for and the model has none."""


@dataclass(frozen=True)
class Export:
    """An exported file.

    Attributes:
        path: of the file.
        shape: which images it takes.
        comparison: with PyTorch.
        holds: whether rounding explains the difference.
        notes: what a user should know of it, a line each.
        script: predict.py beside it, None where it could not read the images.
    """

    path: Path
    shape: Shape
    comparison: Comparison
    holds: bool
    notes: tuple[str, ...]
    script: Path | None


def export_model(
    segmenter: Segmenter,
    folder: str | Path,
    *,
    format: str = "onnx",
    output: Output = "labels",
    size: tuple[int, int] | None = None,
    half: bool = False,
) -> Export:
    """Write a model as one file that takes images B×K×H×W in [0, 1], and compare the file with PyTorch.

    It takes any number of images of any size if the network allows, else of one size, and if it must, one image. What
    it takes is not only exported but run: the file is compared at several sizes.

    Args:
        segmenter: the model, on the CPU.
        folder: where to; model.onnx (.pt2, .ts) and predict.py are replaced if they are there.
        format: "onnx", "torch-export" or "torchscript".
        output: see `das3.export.network.Output`.
        size: (height, width) if all images have one.
        half: weights and computation in float16.

    Raises:
        ModelError: if the network can't be exported to this format, or a library that writes or runs it is missing.
        RecipeError: if the images' size is needed.
    """
    kind, folder = FORMATS[format], Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"model{kind.suffix}", folder / f".part{kind.suffix}"
    reasons: list[str] = []
    try:
        for shape in _shapes(segmenter, size):
            network = InferenceNetwork(segmenter, output, half=half, size=shape.size).eval()
            try:
                comparison = _try(kind, network, segmenter, shape, part)
            except ModelError:
                raise
            except Exception as error:  # whatever exporter and runtime raise on what they can't follow
                reasons.append(_reason(error))
                continue
            if comparison.holds(half=half) or shape.batch == 1:
                part.replace(path)
                script = _write_script(segmenter, kind, output, folder)
                return Export(
                    path, shape, comparison, comparison.holds(half=half), _notes(shape, size, segmenter), script
                )
            reasons.append(f"the file differs from PyTorch by {comparison.difference:.2g}")
    finally:
        part.unlink(missing_ok=True)
    others = " or ".join(f"--format {name}" for name in FORMATS if name != format)
    why = "; ".join(dict.fromkeys(reasons))
    raise ModelError(f"{type(segmenter.model).__name__} can't be exported to {format} ({why}); try {others}")


def _shapes(segmenter: Segmenter, size: tuple[int, int] | None) -> Iterator[Shape]:
    """What to try, from most to least freedom."""
    own = segmenter.preprocess.size
    if size is None and segmenter.one_size and own is None:
        size = (segmenter.divisor, segmenter.divisor)
    if size is None:
        yield Shape()
    fixed = size or (own if isinstance(own, tuple) else _USUAL)
    yield Shape(None, fixed)
    yield Shape(1, fixed)


def _try(kind: Format, network: InferenceNetwork, segmenter: Segmenter, shape: Shape, path: Path) -> Comparison:
    """Write the file for such images, and compare it; twice images where their number is open, so that it stays so."""
    height, width = shape.size or _example_size(segmenter)
    example = noise(segmenter.in_channels, shape.batch or 2, height, width)
    with torch.no_grad():
        kind.write(network, example, shape, path, _about(segmenter, network.output, shape))
    return compare(kind.open(path), segmenter, network.output, shape)


def _example_size(segmenter: Segmenter) -> tuple[int, int]:
    """No square, and no side that is a multiple of what the network takes by chance alone."""
    unit = segmenter.divisor if segmenter.divisor <= 64 else 1
    return -(-96 // unit) * unit, -(-160 // unit) * unit


def _about(segmenter: Segmenter, output: Output, shape: Shape) -> Mapping[str, Any]:
    """What a program that runs the file has to know."""
    return {
        "classes": segmenter.class_names,
        "colors": palette(segmenter.class_names).flatten().tolist(),
        "mode": "L" if segmenter.in_channels == 1 else "RGB",
        "image_size": shape.size,
        "output": output,
    }


def _write_script(segmenter: Segmenter, kind: Format, output: Output, folder: Path) -> Path | None:
    plain = segmenter.pixels is None and segmenter.in_channels in (1, 3)
    if kind.name != "onnx" or output == "native" or not plain:
        return None
    path = folder / "predict.py"
    write_atomically(path, PREDICT.format(file=f"model{kind.suffix}"))
    return path


def _notes(shape: Shape, asked: tuple[int, int] | None, segmenter: Segmenter) -> tuple[str, ...]:
    notes = []
    if shape.size is not None and asked is None:
        notes.append("the network allows one size of images only; choose which with --image-size")
    if segmenter.pixels is not None:
        notes.append(f"images are to be read as the model's were: {segmenter.pixels}; predict.py can't")
    return tuple(notes)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return " ".join(f"{type(error).__name__}: {lines[0]}".split())[:200]
