"""`das3 predict`: label images with a model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from PIL import Image

from das3.api import open_model
from das3.checkpoints import write_atomically
from das3.cli.options import add_flags
from das3.data.images import open_images
from das3.engine import make_fabric
from das3.errors import RecipeError
from das3.pictures import overlay, palette
from das3.predict import predict_labels
from das3.progress import Display
from das3.recipe import ModelOptions, add_options, filled

__all__ = ["HELP", "add", "run"]

HELP = """Label images with a model.

das3 predict --model RUN --images DIR --out DIR
"""


@dataclass(frozen=True)
class PredictOptions(ModelOptions):
    """Options of `das3 predict`.

    Attributes:
        images: folder of images, or a .txt file that lists them.
        out: folder for labels/NAME.png (class ids) and, if asked for, overlays/NAME.png; existing files are kept.
        overlays: also write the classes' colours over the images.
        masks: write 0 and 255 instead of 0 and 1; for models of two classes.
        flip: average the prediction with the mirrored image's.
        scales: average the predictions at these zooms.
        tile: predict in overlapping tiles of this side; large images are tiled by themselves.
        device: auto, cpu, cuda or mps.
        precision: auto, 32, bf16 or 16 (mixed).
    """

    images: str | None = None
    out: str | None = None
    overlays: bool = False
    masks: bool = False
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32", "bf16", "16"] = "auto"


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    add_options(parser, PredictOptions)
    add_flags(parser, "quiet")


def run(given: Namespace) -> None:
    """Label every image that has no label in `--out` yet."""
    options = filled(PredictOptions, given)
    if options.images is None or options.out is None:
        raise RecipeError("--images and --out are both needed; see `das3 predict --help`")
    images = open_images(options.images)
    images.verify()
    segmenter = open_model(options)
    if options.masks and segmenter.num_classes != 2:
        raise RecipeError(f"--masks is for models of two classes; this one has {segmenter.num_classes}")
    fabric = make_fabric(options.device, options.precision)
    segmenter.to(fabric.device)
    colors, out = palette(segmenter.num_classes), Path(options.out)
    todo = [i for i, name in enumerate(images.names) if not (out / "labels" / f"{name}.png").exists()]
    with Display(quiet=given.quiet) as display, fabric.autocast():
        for i in display.track(todo, "predicting", len(todo)):
            image, name = images[i], images.names[i]
            labels = predict_labels(segmenter, image, flip=options.flip, scales=options.scales, tile=options.tile)
            if options.overlays:
                _save(out / "overlays" / f"{name}.png", overlay(image, labels, colors))
            _save(out / "labels" / f"{name}.png", labels * np.uint8(255) if options.masks else labels)
    print(f"{len(todo)} images labelled into {out / 'labels'}")


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
