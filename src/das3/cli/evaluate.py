"""`das3 evaluate`: mIoU of a model on labelled images; without labels, what its predictions say of themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from das3.benchmark.tables import latex_table, markdown_table
from das3.cli.help import Parser
from das3.cli.options import InferenceArguments, add_flags
from das3.data.bad_images import SkippedImage, describe_skipped, sound_images, sound_labelled
from das3.data.open import open_images, open_labelled
from das3.data.published import is_spec
from das3.data.published.classes import SUBSETS, TRAIN_IDS
from das3.dataclass_options import add_options, from_namespace
from das3.errors import RecipeError
from das3.evaluation.evaluate import Evaluation, evaluate
from das3.evaluation.metrics import percent
from das3.files import write_atomically
from das3.models.image_reading import fit_images, how_read
from das3.models.preprocess_check import warn_of_preprocess
from das3.recipe import ModelOptions
from das3.segmenter import Segmenter
from das3.selection.unlabelled import measure_unlabelled
from das3.training.launch import check_classes, open_model
from das3.training.loop import make_fabric
from das3.training.progress import Display

__all__ = ["HELP", "add", "run"]

HELP = """
das3 evaluate --model RUN --images DIR --labels DIR
das3 evaluate --model RUN --images DIR --reference MODEL
das3 evaluate --model RUN --images 'cityscapes:ROOT?split=val' --classes-subset 13 --out TABLES
"""


@dataclass(frozen=True)
class EvaluateArguments(InferenceArguments):
    """Options of `das3 evaluate`.

    Attributes:
        images: folder of images, or a published data set (NAME:ROOT?split=SPLIT).
        labels: their labels, a folder with the same file names; not needed for a published data set. Without labels,
            label-free signals are printed in place of the mIoU: some 32 of the images are looked at.
        reference: without labels, a model to compare with, such as the one that came in.
        classes: class table of the labels, a JSON or YAML file.
        class_map: FILE.json[:key] that maps the labels' ids to the model's classes.
        classes_subset: average over these of Cityscapes' 19 classes only: 16 and 13 for SYNTHIA, 13 for Cross-City.
        boundary: also measure the boundary IoU (edges within 0.5 % of the image's diagonal).
        out: folder for evaluation.json, .md and .tex; a name that ends in .json writes only that file.
        precision: 32, as every run measures its models, so that a model has one mIoU; or auto, bf16 or 16 (mixed).
    """

    images: str | None = None
    labels: str | None = None
    reference: str | None = None
    classes: str | None = None
    class_map: str | None = None
    classes_subset: Literal[19, 16, 13] | None = None
    boundary: bool = False
    out: str | None = None
    precision: Literal["auto", "32", "bf16", "16"] = "32"


def add(parser: Parser) -> None:
    """Declare the command's options."""
    add_options(parser, EvaluateArguments)
    add_flags(parser, "quiet", "trust")
    groups = {
        "model": ("model", "weights", "classifier", "num-classes", "mean", "std"),
        "images": ("images", "labels", "reference", "classes", "class-map", "size"),
        "evaluation": ("classes-subset", "boundary"),
        "output": ("out", "quiet"),
        "prediction": ("flip", "scales", "tile", "device", "precision"),
        "help": ("help", "help-all"),
    }
    parser.arrange(groups, {})


def run(given: Namespace) -> None:
    """Measure, print a table, and write the result to --out if given."""
    options = from_namespace(EvaluateArguments, given)
    if options.images is None:
        raise RecipeError("--images is missing; see `das3 evaluate --help`")
    segmenter = open_model(options, trust=given.trust)
    if options.labels is None and not is_spec(options.images):
        _run_unlabelled(options, segmenter, given)
        return
    if options.reference is not None:
        raise RecipeError("--reference compares models without labels; leave it out, and evaluate each on its own")
    labelled = open_labelled(
        options.images,
        options.labels,
        options.classes,
        class_map=options.class_map,
        num_classes=segmenter.num_classes,
    )
    skipped: list[SkippedImage] = []
    if options.on_bad_image == "skip":
        labelled, skipped = sound_labelled(labelled)
    images = fit_images(labelled.images, segmenter, options)
    labelled = check_classes(labelled.read_as(images), segmenter)
    chosen = _subset(labelled.class_names, options.classes_subset)
    fabric = make_fabric(options.device, options.precision)
    segmenter.to(fabric.device)
    with Display(quiet=given.quiet) as display, fabric.autocast():
        for line in [*how_read(images), warn_of_preprocess(segmenter, images), *describe_skipped(skipped)]:
            display.say(line) if line else None
        evaluation = evaluate(
            segmenter,
            labelled,
            **options.how(),
            classes=chosen,
            boundary=options.boundary,
            progress=display.track,
        )
    result = _result(evaluation, chosen) | {"images": len(labelled)}
    if skipped:
        result["skipped_images"] = [asdict(one) for one in skipped]
    heads = [["class", "IoU", "edges"]] if options.boundary else []
    for name, *scores in [*heads, *_lines(result, "absent", "")]:
        print(f"{name:<24}" + "".join(f" {score:>6}" for score in scores))
    if skipped:
        print(f"{len(skipped)} of {len(skipped) + len(labelled)} images left out, since they can't be read")
    if options.out:
        _write(Path(options.out), result)


def _run_unlabelled(options: EvaluateArguments, segmenter: Segmenter, given: Namespace) -> None:
    """Print the label-free signals, and write them to --out if given."""
    asked = {"classes": options.classes, "class-map": options.class_map, "classes-subset": options.classes_subset}
    if named := [f"--{name}" for name, value in {**asked, "boundary": options.boundary or None}.items() if value]:
        raise RecipeError(f"{named[0]} is of labels; give their folder with --labels")
    images = open_images(options.images)
    skipped: list[SkippedImage] = []
    if options.on_bad_image == "skip":
        images, _, skipped = sound_images(images)
    reference = None
    if options.reference is not None:
        reference = open_model(ModelOptions(model=options.reference), trust=given.trust)
    images = fit_images(images, segmenter, options)
    with Display(quiet=given.quiet) as display:
        for line in [*how_read(images), warn_of_preprocess(segmenter, images), *describe_skipped(skipped)]:
            display.say(line) if line else None
        result = measure_unlabelled(
            make_fabric(options.device, options.precision), segmenter, images, reference=reference
        )
    for line in _unlabelled_lines(result):
        print(line)
    if options.out:
        out = Path(options.out)
        out = out if out.suffix == ".json" else out / "evaluation.json"
        write_atomically(out, json.dumps(result, indent=1) + "\n")


def _unlabelled_lines(result: dict[str, Any]) -> list[str]:
    """A table: a row per signal, and the reference's value beside it."""
    compared = result.get("reference")
    columns = [result, *([compared["signals"]] if compared else [])]
    print_row = f"{{:<36}}{' {:>9}' * len(columns)}".format
    rows = [
        ("entropy, as a share of log C", "entropy"),
        ("mutual information of image and class", "mutual_information"),
    ]
    rows += [("soft neighbourhood density", "density"), ("consistency, mean IoU of all views", "consistency_mean")]
    lines = [f"no labels: signals of {result['images']} images; see docs/howto/is_it_better.md for what they say"]
    lines.append(print_row("", "model", *(["reference"] if compared else [])))
    lines += [print_row(title, *(f"{column[key]:.3f}" for column in columns)) for title, key in rows]
    for view in result["consistent_miou"]:
        lines.append(print_row(f"  {view}", *(f"{column['consistent_miou'][view]:.3f}" for column in columns)))
    lines += [
        print_row(f"% of the pixels: {name}", *(f"{100 * column['shares'][name]:.1f}" for column in columns))
        for name in result["shares"]
    ]
    if compared:
        lines += [
            f"labelled alike: {compared['agreement']:.1%} of the pixels, {compared['sure_agreement']:.1%} of those "
            "that the reference was sure of",
            f"class shares moved by {compared['share_shift']:.1%} of the pixels; mean IoU with the mean of both: "
            "{:.3f} and {:.3f}".format(*compared["ensemble_agreement"]),
        ]
    return lines


def _subset(names: Sequence[str], count: int | None) -> tuple[int, ...] | None:
    """Indices of the protocol's classes among those of the labels, found by name.

    Raises:
        RecipeError: if the labels lack one of them.
    """
    if count is None:
        return None
    wanted = [TRAIN_IDS.names[c] for c in SUBSETS[count]]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise RecipeError(
            f"--classes-subset {count} needs Cityscapes' classes, but the labels have no class {missing[0]!r}; "
            "use a published data set, or name a table with these classes with --classes"
        )
    return tuple(names.index(name) for name in wanted)


def _result(evaluation: Evaluation, chosen: Sequence[int] | None) -> dict[str, Any]:
    """Contents of evaluation.json: scores in percent, None for a class that does not occur."""
    result = percent(evaluation) | {"pixel_accuracy": round(100 * evaluation.confusion.pixel_accuracy(), 4)}
    names = list(evaluation.per_class_iou)
    if chosen is not None:
        result["mean_over"] = [names[c] for c in chosen]
    if edges := evaluation.boundary:
        scores = dict(zip(names, edges.iou().tolist(), strict=True))
        result["boundary"] = percent(Evaluation(edges.miou(chosen), scores, evaluation.confusion))
    return result


def _lines(result: dict[str, Any], absent: str, left_out: str) -> list[list[str]]:
    """A row per class (name, scores), then the means; classes that are not in the mean are marked by `left_out`."""
    measured = [result, *([result["boundary"]] if "boundary" in result else [])]
    counted = result.get("mean_over", result["per_class_iou"])
    lines = []
    for name in result["per_class_iou"]:
        scores = [part["per_class_iou"][name] for part in measured]
        texts = [absent if score is None else f"{score:.2f}" for score in scores]
        lines.append([name if name in counted else f"{name}{left_out}", *texts])
    return [*lines, ["mIoU", *(f"{part['miou']:.2f}" for part in measured)]]


def _write(out: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=1) + "\n"
    if out.suffix == ".json":
        write_atomically(out, text)
        return
    heads = ["class", "IoU %", *(["boundary IoU %"] if "boundary" in result else [])]
    lines = _lines(result, "–", " *")
    write_atomically(out / "evaluation.json", text)
    note = "\n\\* not in the mean\n" if "mean_over" in result else ""
    write_atomically(out / "evaluation.md", markdown_table(heads, lines) + note)
    latex = latex_table(heads, _lines(result, "--", " *"), rules=[len(lines) - 1])
    write_atomically(out / "evaluation.tex", latex)
    print(out / "evaluation.md")
