"""`das3 export`: a model as one file for deployment, compared with PyTorch before it is handed over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from das3.cli.help import Parser
from das3.cli.options import add_flags
from das3.dataclass_options import add_options, from_namespace
from das3.errors import RecipeError
from das3.export import Export, export_model
from das3.recipe import ModelOptions
from das3.training.launch import open_model

__all__ = ["HELP", "add", "run"]

HELP = """
das3 export RUN --format onnx
das3 export RUN --format onnx --output logits --half --image-size 1024,2048 --out DIR

The file takes images B×3×H×W, float32 from 0 to 1: the model's resize, mean and std are inside. Needs
pip install 'das3[export]' for ONNX.
"""


@dataclass(frozen=True)
class ExportArguments(ModelOptions):
    """Options of `das3 export`.

    Attributes:
        format: onnx, torch-export (.pt2) or torchscript (.ts).
        output: labels (B×H×W, the most probable class), logits (B×C×H×W at the images' size), or native (logits on the
            network's own, coarser grid).
        image_size: height,width of the images, if all have one; any size where the network allows if not given.
        half: weights and computation in float16; images and logits stay float32.
        out: folder for the file and predict.py; RUN/export if not given.
    """

    format: Literal["onnx", "torch-export", "torchscript"] = "onnx"
    output: Literal["labels", "logits", "native"] = "labels"
    image_size: tuple[int, int] | None = None
    half: bool = False
    out: str | None = None


def add(parser: Parser) -> None:
    """Declare the command's options."""
    parser.add_argument("folder", metavar="RUN", type=str, help="run folder, or whatever `das3 adapt --model` takes")
    add_options(parser, ExportArguments, skip={"model"})
    add_flags(parser, "trust")
    groups = {
        "model": ("folder", "weights", "mean", "std"),
        "file": ("format", "output", "image-size", "half", "out"),
        "help": ("help", "help-all"),
    }
    parser.arrange(groups, {})


def run(given: Namespace) -> int:
    """Export, and print how far the file is from the model; status 1 if rounding does not explain it."""
    options = from_namespace(ExportArguments, given)
    if options.image_size is not None and min(options.image_size) < 1:
        raise RecipeError(f"--image-size must be a positive height,width, got {options.image_size}")
    segmenter = open_model(options, given.folder, trust=given.trust)
    out = Path(options.out) if options.out else Path(given.folder) / "export"
    if options.out is None and not Path(given.folder).is_dir():
        raise RecipeError("--out is missing: the folder to write to")
    print(segmenter.describe())
    done = export_model(
        segmenter,
        out,
        format=options.format,
        output=options.output,
        size=options.image_size,
        half=options.half,
    )
    for line in _lines(done, options):
        print(line)
    return 0 if done.holds else 1


def _lines(done: Export, options: ExportArguments) -> list[str]:
    found = done.comparison
    runtime = "onnxruntime" if options.format == "onnx" else "PyTorch"
    what = f"{found.images[0]} images of {found.images[1]} size{'s' * (found.images[1] > 1)} in {runtime}"
    lines = [
        f"file:     {done.path} ({done.path.stat().st_size / 2**20:.1f} MiB), takes {done.shape}",
        f"compared: {what}: largest difference {found.difference:.2g} "
        f"({100 * found.relative:.2g} % of the largest logit), {100 * found.other_labels:.2g} % of the labels differ",
        *(f"note:     {note}" for note in done.notes),
    ]
    if done.script:
        lines.append(f"try it:   python {done.script} IMAGE")
    if not done.holds:
        lines.append("WRONG:    rounding does not explain this difference; do not use the file, try another --format")
    return lines
