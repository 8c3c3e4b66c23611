"""`das3 evaluate`: mIoU of a model on labelled images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from das3.api import check_classes, open_model, percent
from das3.checkpoints import write_atomically
from das3.cli.options import add_flags
from das3.data.labels import open_labelled
from das3.engine import make_fabric
from das3.errors import RecipeError
from das3.evaluate import evaluate
from das3.progress import Display
from das3.recipe import ModelOptions, add_options, filled

__all__ = ["HELP", "add", "run"]

HELP = """Measure a model on labelled images.

das3 evaluate --model RUN --images DIR --labels DIR
"""


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Options of `das3 evaluate`.

    Attributes:
        images: folder of images.
        labels: their labels, a parallel folder; none for a published data set.
        classes: class table of the labels, a JSON or YAML file.
        class_map: FILE.json[:key] that maps the labels' ids to the model's classes.
        flip: average the prediction with the mirrored image's.
        scales: average the predictions at these zooms.
        out: file to write the result to, as JSON.
        device: auto, cpu, cuda or mps.
        precision: auto, 32, bf16 or 16 (mixed).
    """

    images: str | None = None
    labels: str | None = None
    classes: str | None = None
    class_map: str | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    out: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32", "bf16", "16"] = "auto"


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    add_options(parser, EvaluateOptions)
    add_flags(parser, "quiet")


def run(given: Namespace) -> None:
    """Measure, print a table and write the file if one is named."""
    options = filled(EvaluateOptions, given)
    if options.images is None:
        raise RecipeError("--images is missing; see `das3 evaluate --help`")
    segmenter = open_model(options)
    labelled = open_labelled(
        options.images,
        options.labels,
        options.classes,
        class_map=options.class_map,
        num_classes=segmenter.num_classes,
    )
    check_classes(labelled, segmenter)
    fabric = make_fabric(options.device, options.precision)
    segmenter.to(fabric.device)
    with Display(quiet=given.quiet) as display, fabric.autocast():
        result = percent(
            evaluate(segmenter, labelled, flip=options.flip, scales=options.scales, progress=display.track)
        )
    for name, iou in result["per_class_iou"].items():
        print(f"{name:<24} {'absent' if iou is None else f'{iou:6.2f}'}")
    print(f"{'mIoU':<24} {result['miou']:6.2f}")
    if options.out:
        write_atomically(Path(options.out), json.dumps(result, indent=1).encode())
