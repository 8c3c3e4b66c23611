"""Launch a run: open what the recipe names, start the device, go through the phases, save the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from das3.data.bad_images import SkippedImage, describe_skipped
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.open import open_labelled
from das3.data.shared_cache import Room
from das3.distributed import is_first_process, on_first_process
from das3.errors import ModelError, RecipeError, TrainingError
from das3.evaluation.evaluate import evaluate
from das3.evaluation.metrics import percent
from das3.models import load_segmenter, save_segmenter
from das3.models.image_reading import how_read, read_as_fitted
from das3.models.preprocess_check import warn_of_preprocess
from das3.recipe import ModelOptions, RunOptions
from das3.report import RunReporter
from das3.segmenter import Segmenter
from das3.selection.guard import GuardMode, describe_statistics, in_words
from das3.training.inputs import FileSet, Inputs
from das3.training.lock import locked_folder
from das3.training.loop import make_fabric
from das3.training.phases import Outcome, Phase, run_phases
from das3.training.pictures import Pictures
from das3.training.processes import processes
from das3.training.progress import Display
from das3.training.result import Result
from das3.training.run_folder import Run, file_errors_told

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Result", "check_classes", "launch_run", "open_evaluation", "open_model"]


def open_model(recipe: ModelOptions, model: str | Path | nn.Module | None = None, *, trust: bool = False) -> Segmenter:
    """The segmenter that the recipe's model options describe; `model` stands in for the recipe's.

    Args:
        recipe: whose `model` the user named, see `das3.models.trust`.
        model: in place of it.
        trust: as of `load_segmenter`.

    Raises:
        RecipeError: if no model is named.
        ModelError: if it can't be used.
    """
    chosen = model if model is not None else recipe.model
    if chosen is None:
        raise RecipeError("no model given; name one with --model, e.g. a folder saved by Hugging Face, smp or das3")
    segmenter = load_segmenter(
        chosen,
        weights=Path(recipe.weights) if recipe.weights is not None else None,
        classifier=recipe.classifier,
        num_classes=recipe.num_classes,
        class_names=recipe.class_names,
        mean=recipe.mean,
        std=recipe.std,
        input_max=recipe.input_max,
        channels=recipe.channels,
        in_channels=recipe.in_channels,
        size=recipe.size,
        output_key=recipe.output_key,
        model_args=recipe.model_args or None,
        trust=trust,
    )
    if segmenter.num_classes > 255:
        raise ModelError(f"the model has {segmenter.num_classes} classes; das3 supports at most 255")
    return segmenter


def open_evaluation(recipe: RunOptions, segmenter: Segmenter) -> Labelled | None:
    """The labelled images for evaluation that the recipe names, with the segmenter's classes; None if it names none."""
    if recipe.eval_images is None:
        return None
    labelled = open_labelled(
        recipe.eval_images,
        recipe.eval_labels,
        recipe.classes,
        class_map=recipe.class_map,
        num_classes=segmenter.num_classes,
    )
    labelled.check(sample=32)
    return check_classes(labelled, segmenter)


def check_classes(labelled: Labelled, segmenter: Segmenter) -> Labelled:
    """The labelled images, read as the model's images are, if the model predicts their classes.

    Raises:
        ModelError: if the numbers differ.
    """
    if labelled.num_classes != segmenter.num_classes:
        raise ModelError(
            f"the model predicts {segmenter.num_classes} classes but the evaluation labels have "
            f"{labelled.num_classes}; give the matching --classes or --class-map"
        )
    if list(labelled.class_names) == [f"class {c}" for c in range(labelled.num_classes)]:  # labels without a table
        labelled = labelled.renamed(segmenter.class_names)
    return labelled.read_as(read_as_fitted(labelled.images, segmenter))


def measure_on(labelled: Labelled | None) -> Callable[[Segmenter], dict[str, Any]]:
    """How `run_phases` measures a model: mIoU and IoU per class in percent, None without labels.

    In float32 whatever the run's precision is, as `das3 evaluate` does: a model has one mIoU.
    """

    def measure(segmenter: Segmenter) -> dict[str, Any]:
        if labelled is None:
            return {"miou": None, "per_class_iou": None}
        return percent(evaluate(segmenter, labelled, shared=True))

    return measure


def launch_run(
    segmenter: Segmenter,
    images: Images,
    phases: Sequence[Phase],
    recipe: RunOptions,
    *,
    evaluation: Labelled | None = None,
    resume: bool = False,
    quiet: bool = False,
    state_dict: bool = False,
    measure_every: int = 0,
    report: bool = False,
    guard: GuardMode = "off",
    measure_candidates: bool = False,
    skipped: Sequence[SkippedImage] = (),
    inputs: Mapping[str, FileSet] | None = None,
) -> Result:
    """Train a segmenter in place through the phases, into the run folder `recipe.out` (a temporary one if it has none).

    With several devices, processes of the same program are started (see `das3.training.processes`), which all come here
    and end here; process 0 writes and returns.

    Args:
        segmenter: the model before the first phase.
        images: to train on, at any size.
        phases: in order.
        recipe: device, precision, folder and the loop's options.
        evaluation: labelled images to measure on, before the first and after every phase.
        resume: continue the run in the folder where it stopped.
        quiet: show no progress.
        state_dict: also save the weights as a plain state dict, model.pt.
        measure_every: with `evaluation`, also measure about every so many steps, into metrics.jsonl.
        report: write report.html at the end.
        guard: how the model that is handed back is chosen, see `das3.selection.guard.GuardMode`.
        measure_candidates: with `evaluation`, also measure every candidate that the guard had.
        skipped: images that were left out since they can't be read, for the screen and summary.json.
        inputs: files that the run depends on besides the images, by what they are, such as the labels of a training.

    Raises:
        RecipeError: if the device is not there, or the folder holds another run or is in use.
        DataError: if a run is resumed with other inputs.
        TrainingError: if a loss is not finite, a file can't be written, or one of several processes fails.
    """
    folder = Path(recipe.out or tempfile.mkdtemp(prefix="das3-"))
    with processes(recipe.devices), ExitStack() as stack:
        stack.enter_context(file_errors_told(folder))
        stack.enter_context(_memory_told())
        fabric = make_fabric(recipe.device, recipe.precision, recipe.devices)
        fabric.launch()

        def begin() -> Run:
            stack.enter_context(locked_folder(folder))
            given = _inputs_of(segmenter, images, evaluation, inputs or {})
            return Run(folder, recipe, resume=resume, inputs=given)

        run = on_first_process(begin)
        with Display(quiet=quiet or not is_first_process()) as display:
            display.say(segmenter.describe())
            display.say(f"{len(images)} images, on {_where(fabric)}, into {run.folder}")
            changed = [f"goes on with {what}" for what in run.changed]
            warning = warn_of_preprocess(segmenter, images)
            for line in [*how_read(images), *filter(None, [warning]), *describe_skipped(skipped), *changed]:
                display.say(line)
            images = images.resized(segmenter.preprocess.size, room=_room(recipe, run.folder, fabric.world_size))
            stack.callback(images.close)
            reporter = RunReporter(run.folder, on=report and is_first_process(), say=display.say, track=display.track)
            reporter.before(segmenter.to(fabric.device), images)
            outcome = run_phases(
                run,
                fabric,
                segmenter,
                images,
                phases,
                measure=measure_on(evaluation),
                display=display,
                measure_every=measure_every,
                guard=guard,
                measure_candidates=measure_candidates,
                picture=Pictures(images) if is_first_process() else None,
            )
            reporter.after(segmenter, images)
            segmenter.to("cpu").eval()

            def write() -> dict[str, Any]:
                save_segmenter(segmenter, run.folder / "model", state_dict=state_dict)
                return run.write_summary(
                    outcome.rows, more=_verdict_of(outcome) | {"skipped_images": [asdict(one) for one in skipped]}
                )

            summary = on_first_process(write)
            reporter.write()
            for line in in_words(outcome.verdict, outcome.stopped, outcome.rows[0]["miou"], outcome.miou):
                display.say(line)
        return Result(segmenter.model, segmenter, summary, outcome.pseudo_labels, run.folder)


def _room(recipe: RunOptions, folder: Path, count: int) -> Room:
    """For the decoded images of each of so many processes."""
    memory, disk = int(recipe.cache_gib * 2**30), int(recipe.disk_cache_gib * 2**30)
    return Room(memory, disk // count, folder)


def _inputs_of(
    segmenter: Segmenter, images: Images, evaluation: Labelled | None, more: Mapping[str, FileSet]
) -> Inputs:
    """What a run is given, for the comparison on --resume."""
    sets: dict[str, Images | FileSet] = {"images": images, **more}
    if evaluation is None:
        return Inputs(segmenter, sets)
    sets |= {"evaluation images": evaluation.images, "evaluation labels": label_files(evaluation)}
    table = evaluation.table
    meaning = [list(table.names), sorted(table.known_ids.items()), sorted(table.known_colors.items())]
    return Inputs(segmenter, sets, {"the meaning of the evaluation labels": meaning})


def label_files(labelled: Labelled) -> FileSet:
    """The label files of labelled images, where there are any."""
    paths = labelled.paths if len(labelled.paths) == len(labelled) else []
    return FileSet(labelled.images.names[: len(paths)], paths)


@contextmanager
def _memory_told() -> Iterator[None]:
    """A GPU whose memory is full ends a run with one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory is full; start a new run with a smaller --batch-size or --crop, with smaller images "
            "(--size), or with --precision bf16"
        ) from error


def _verdict_of(outcome: Outcome) -> dict[str, Any]:
    """What summary.json says of norm statistics, collapses and the choice of the model."""
    return {
        "bn_statistics": describe_statistics(outcome.statistics) if outcome.statistics else None,
        "stopped": outcome.stopped,
        "verdict": outcome.verdict.to_dict() if outcome.verdict else None,
        "miou": outcome.miou,
    }


def _where(fabric: Fabric) -> str:
    return str(fabric.device) if fabric.world_size == 1 else f"{fabric.world_size} processes ({fabric.device.type})"
