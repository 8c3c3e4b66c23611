"""`das3 predict`: label images with a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace

from das3.cli.help import Parser
from das3.cli.options import InferenceArguments, add_flags
from das3.data.bad_images import SkippedImage, describe_skipped, sound_images
from das3.data.class_table import load_classes
from das3.data.images import ImageFiles
from das3.data.open import open_images
from das3.data.pixels import as_rgb8
from das3.data.published.classes import CITYSCAPES
from das3.data.visualize import palette
from das3.errors import RecipeError, printable
from das3.evaluation.predict import (
    file_values,
    predict_labels,
    predict_to_file,
    without_data,
    write_geotiff,
    write_prediction,
)
from das3.models.image_reading import fit_images, how_read
from das3.models.preprocess_check import warn_of_preprocess
from das3.recipe import add_options, from_namespace
from das3.segmenter import Segmenter
from das3.training.launch import open_model
from das3.training.loop import make_fabric
from das3.training.progress import Display

__all__ = ["HELP", "add", "run"]

HELP = """
das3 predict --model RUN --images DIR --out DIR
"""


@dataclass(frozen=True)
class PredictArguments(InferenceArguments):
    """Options of `das3 predict`.

    Attributes:
        images: folder of images, a .txt file that lists them, or a published data set (NAME:ROOT?split=SPLIT).
        out: folder for labels/NAME.png, and labels/NAME.tif with the same georeference for images that are GeoTIFF;
            images that have a label there already are skipped.
        overlays: also write the labels in colour, colors/NAME.png, and over the image, overlays/NAME.png.
        ids: pixel values in the label files instead of class indices: "mask" for 0 and 255, "cityscapes" for the label
            ids that its test server expects, or a class table file for the ids in it.
    """

    images: str | None = None
    out: str | None = None
    overlays: bool = False
    ids: str | None = None


def add(parser: Parser) -> None:
    """Declare the command's options."""
    add_options(parser, PredictArguments)
    add_flags(parser, "quiet", "trust")
    groups = {
        "model": ("model", "weights", "classifier", "num-classes", "mean", "std"),
        "images": ("images", "size"),
        "output": ("out", "overlays", "ids", "quiet"),
        "prediction": ("flip", "scales", "tile", "device", "precision"),
        "help": ("help", "help-all"),
    }
    parser.arrange(groups, {})


def run(given: Namespace) -> None:
    """Label every image that has no label in `--out` yet, and print how many."""
    options = from_namespace(PredictArguments, given)
    if options.images is None or options.out is None:
        raise RecipeError("--images and --out are both needed; see `das3 predict --help`")
    images = open_images(options.images)
    skipped: list[SkippedImage] = []
    if options.on_bad_image == "skip":
        images, _, skipped = sound_images(images)
    segmenter = open_model(options, trust=given.trust)
    images = fit_images(images, segmenter, options)
    images.verify()
    values = _values(options, segmenter)
    fabric = make_fabric(options.device, options.precision)
    segmenter.to(fabric.device)
    colors, out = palette(segmenter.num_classes), Path(options.out)
    files = [out / "labels" / f"{name}.png" for name in images.names]
    todo = [i for i, file in enumerate(files) if not file.exists()]
    with Display(quiet=given.quiet) as display, fabric.autocast():
        for line in [*how_read(images), warn_of_preprocess(segmenter, images)]:
            display.say(line) if line else None
        for i in display.track(todo, "predicting", len(todo)):
            name = images.names[i]
            # From file to file, so that an image may be larger than memory.
            source = images.paths[i] if isinstance(images, ImageFiles) else images[i]
            if options.overlays:
                labels = predict_labels(segmenter, source, **options.how())
                seen = as_rgb8(images[i], segmenter.preprocess.rgb_bands)
                write_prediction(out, name, labels, values=values, colors=colors, image=seen)
            else:
                predict_to_file(segmenter, source, files[i], values=values, **options.how())
    if isinstance(images, ImageFiles):
        for i, (file, image) in enumerate(zip(files, images.paths, strict=True)):
            if i in todo or not file.with_suffix(".tif").exists():
                write_geotiff(file, image, nodata=without_data(values))
    print(f"{len(todo)} images labelled into {out / 'labels'}")
    for line in describe_skipped(skipped):
        print(printable(line))


def _values(options: PredictArguments, segmenter: Segmenter) -> Sequence[int] | None:
    """Pixel value of each class in the label files; None for class indices."""
    if options.ids is None:
        return None
    if options.ids == "mask":
        values: Sequence[int] = (0, 255)
    elif options.ids == "cityscapes":
        values = file_values(CITYSCAPES)
    else:
        values = file_values(load_classes(options.ids))
    if len(values) != segmenter.num_classes:
        raise RecipeError(
            f"--ids {options.ids} is for {len(values)} classes, but the model has {segmenter.num_classes}"
        )
    return values
