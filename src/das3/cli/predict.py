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
from das3.data.image_files import ImageFiles
from das3.data.open import open_images
from das3.data.published.classes import CITYSCAPES
from das3.data.video import VideoFrames, find_videos, is_stream
from das3.dataclass_options import add_options, from_namespace
from das3.errors import DataError, RecipeError, printable
from das3.evaluation.label_files import label_file, label_files
from das3.evaluation.label_video import label_video
from das3.evaluation.prediction_files import file_values, without_data, write_geotiff
from das3.models.image_reading import fit_images, how_read
from das3.models.preprocess_check import warn_of_preprocess
from das3.segmenter import Segmenter
from das3.training.launch import open_model
from das3.training.loop import make_fabric
from das3.training.progress import Display

__all__ = ["HELP", "add", "run"]

HELP = """
das3 predict --model RUN --images DIR --out DIR
das3 predict --model RUN --images drive.mp4 --overlays --out DIR
"""


@dataclass(frozen=True)
class PredictArguments(InferenceArguments):
    """Options of `das3 predict`.

    Attributes:
        images: folder of images and videos, a pattern in quotes ('shots/**/*.png'), a video, a camera (/dev/video0) or
            stream (rtsp://…), a .txt file that lists images, or a published data set (NAME:ROOT?split=SPLIT).
        out: folder for labels/NAME.png (a palette image: a viewer shows colours, Pillow reads class ids), and
            labels/NAME.tif with the same georeference for images that are GeoTIFF; of a video labels/NAME/000000.png
            and so on; images and videos that have labels there already are skipped.
        overlays: also write the labels over the image with a legend, overlays/NAME.png or .mp4.
        grey: write grey label files, for readers that take a palette's colours for the values, as OpenCV does.
        every: of a video or stream, label each so-many-th frame.
        ids: pixel values in the label files instead of class indices: "mask" for 0 and 255, "cityscapes" for the label
            ids that its test server expects, or a class table file for the ids in it.
    """

    images: str | None = None
    out: str | None = None
    overlays: bool = False
    grey: bool = False
    every: int = 1
    ids: str | None = None


def add(parser: Parser) -> None:
    """Declare the command's options."""
    add_options(parser, PredictArguments)
    add_flags(parser, "quiet", "trust")
    groups = {
        "model": ("model", "weights", "classifier", "num-classes", "mean", "std"),
        "images": ("images", "size"),
        "output": ("out", "overlays", "ids", "grey", "every", "quiet"),
        "prediction": ("flip", "scales", "tile", "device", "precision"),
        "help": ("help", "help-all"),
    }
    parser.arrange(groups, {})


def run(given: Namespace) -> None:
    """Label every image that has no label in `--out` yet, and print how many."""
    options = from_namespace(PredictArguments, given)
    if options.images is None or options.out is None:
        raise RecipeError("--images and --out are both needed; see `das3 predict --help`")
    if options.every < 1:
        raise RecipeError(f"--every must be 1 or more, got {options.every}")
    videos = find_videos(options.images)
    if videos and not _has_images(options.images):
        _label_videos(options, videos, open_model(options, trust=given.trust), given.quiet)
        return
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
    out = Path(options.out)
    files = [label_file(out, name) for name in images.names]
    todo = [i for i, file in enumerate(files) if not file.exists()]
    with Display(quiet=given.quiet) as display, fabric.autocast():
        for line in [*how_read(images), warn_of_preprocess(segmenter, images)]:
            display.say(line) if line else None
        label_files(
            segmenter,
            images,
            todo,
            out,
            values=values,
            overlays=options.overlays,
            grey=options.grey,
            track=display.track,
            **options.how(),
        )
    if isinstance(images, ImageFiles):
        labelled = {*todo}
        for i, (file, image) in enumerate(zip(files, images.paths, strict=True)):
            if i in labelled or not file.with_suffix(".tif").exists():
                write_geotiff(file, image, nodata=without_data(values))
    print(f"{len(todo)} images labelled into {out / 'labels'}")
    for line in describe_skipped(skipped):
        print(printable(line))
    if videos:
        _label_videos(options, videos, segmenter, given.quiet)


def _has_images(source: str) -> bool:
    """Whether there are images beside the videos."""
    if is_stream(source) or Path(source).is_file():
        return False
    try:
        return len(open_images(source)) > 0
    except DataError:
        return False


def _label_videos(options: PredictArguments, videos: Sequence[str], segmenter: Segmenter, quiet: bool) -> None:
    """Label every video that has no labels yet; Ctrl-C ends a stream, and what is there stays."""
    values, out = _values(options, segmenter), Path(options.out or ".")
    fabric = make_fabric(options.device, options.precision)
    segmenter.to(fabric.device)
    root = Path(options.images) if options.images and Path(options.images).is_dir() else None
    with Display(quiet=quiet) as display, fabric.autocast():
        for video in videos:
            path = Path(video)
            name = (
                "stream"
                if is_stream(video)
                else str((path.relative_to(root) if root else Path(path.name)).with_suffix(""))
            )
            if (out / "labels" / name).is_dir():
                continue
            frames = VideoFrames(video, options.every)
            count = label_video(
                segmenter,
                display.track(frames, name, frames.count),
                out,
                name,
                rate=frames.rate,
                values=values,
                overlays=options.overlays,
                grey=options.grey,
                **options.how(),
            )
            print(f"{count} frames of {video} labelled into {out / 'labels' / name}")


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
