"""Run the stages in order: each phase is prepared, trained, measured and saved, starting where the run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das3.data.images import Images
from das3.data.label_store import LabelStore
from das3.data.samples import auto_crop
from das3.distributed import is_first_process, wait_for_all
from das3.input_transforms import IDENTITY
from das3.norms import BatchNormMode, needs_reestimation
from das3.recipe import Recipe, RunOptions
from das3.registry import find_stage
from das3.segmenter import Segmenter
from das3.stages import Stage, StageContext
from das3.training.checkpoints import load_checkpoint, save_checkpoint
from das3.training.loop import Record, StepState, train
from das3.training.progress import Display
from das3.training.run_folder import Log, Run, weights_after

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Outcome", "Phase", "phases_of", "run_phases"]

Measure = Callable[[Segmenter], dict[str, Any]]
"""A model → {"miou", "per_class_iou"}, None where unknown."""


@dataclass(frozen=True)
class Phase:
    """A stage, or one round of it."""

    name: str
    make: Callable[[], Stage[Any]]


@dataclass
class Outcome:
    """Result of the phases.

    Attributes:
        rows: one per phase, the first being "source".
        pseudo_labels: of the last phase that made any.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pseudo_labels: LabelStore | None = None


def phases_of(recipe: Recipe) -> list[Phase]:
    """The recipe's stages in order; a stage of several rounds appears that many times."""
    phases: list[Phase] = []
    for stage in recipe.stages:
        options, kind = recipe.options_of(stage), find_stage(stage)
        for round_ in range(getattr(options, "rounds", 1)):
            taken = {p.name for p in phases}
            name, count = stage, 1 + round_
            while name in taken or (round_ and name == stage):
                name = f"{stage}-{max(2, count)}"
                count += 1
            phases.append(Phase(name, lambda kind=kind, options=options: kind(options)))  # type: ignore[misc]
    return phases


def run_phases(
    run: Run,
    fabric: Fabric,
    segmenter: Segmenter,
    images: Images,
    phases: Sequence[Phase],
    *,
    measure: Measure,
    display: Display,
    measure_every: int = 0,
) -> Outcome:
    """Train `segmenter` in place through all phases, starting where the run stopped.

    Args:
        run: the run folder.
        fabric: device, precision and processes.
        segmenter: the model before the first phase.
        images: target images, already at their training size.
        phases: in order.
        measure: called before the first and after each phase.
        display: shows the progress.
        measure_every: also measure about every this many steps of a phase, and log it; 0 for never.
    """
    return _Progression(run, fabric, segmenter, images, phases, measure, display, measure_every).run_all()


@dataclass
class _Progression:
    """One pass through the phases; the fields are the arguments of `run_phases`."""

    run: Run
    fabric: Fabric
    segmenter: Segmenter
    images: Images
    phases: Sequence[Phase]
    measure: Measure
    display: Display
    measure_every: int

    def run_all(self) -> Outcome:
        self.recipe: RunOptions = self.run.recipe
        self.segmenter.to(self.fabric.device)
        state = self.run.last()
        self._restore(state)
        wait_for_all()  # before process 0 writes what another one is still to read
        self.log = Log(self.run.folder, state["phase"], state["step"]) if is_first_process() else None
        self.crop = self.recipe.crop or auto_crop(self.images.sizes())
        earlier: list[BatchNormMode] = []
        for number, phase in enumerate(self.phases):
            stage = phase.make()
            reestimation = needs_reestimation(stage.options.bn_mode, earlier)
            earlier.append(stage.options.bn_mode)
            if number >= state["phase"]:
                self._run_phase(number, stage, reestimation, state if number == state["phase"] else None)
        return self.outcome

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the rows, labels and weights of the phases that are finished."""
        self.outcome = Outcome(rows=list(state["rows"]))
        if state.get("labels"):
            self.outcome.pseudo_labels = LabelStore(self.run.folder / state["labels"], self.images.names)
        if state["phase"] > 0:
            self.segmenter.load_state_dict(load_checkpoint(self._end(state["phase"] - 1))["segmenter"])
        if not self.outcome.rows:
            self._add_row("source", 0.0, None)

    def _run_phase(self, number: int, stage: Stage[Any], reestimation: bool, state: dict[str, Any] | None) -> None:
        """Run a phase, from its beginning or from the state of an interrupted run."""
        name = self.phases[number].name
        clock = _Clock(state["seconds"] if state else 0.0)
        context = StageContext(
            self.fabric,
            self.segmenter,
            self.images,
            self.run.folder / "work" / f"{number}-{name}",
            (self.recipe.seed, number),
            self.crop,
            self.recipe.batch_size,
            self.display.track,
        )
        if reestimation:
            context.reestimate_bn()
        samples = stage.prepare(context)
        self.outcome.pseudo_labels = stage.pseudo_labels or self.outcome.pseudo_labels
        start = None
        if state and state["step"]:
            self.segmenter.load_state_dict(state["segmenter"])
            start = StepState(state["step"], state["optimizer"], state["stage"], state["ema"])
        train(
            self.fabric,
            self.segmenter,
            stage,
            samples,
            self.recipe,
            seed=context.seed,
            start=start,
            report=lambda record: self._report(number, record, clock),
            save=lambda step: self._save_step(number, step, clock),
        )
        stage.finish(context)
        self._add_row(name, clock.seconds(), stage.input_transform)
        if is_first_process():
            save_checkpoint(self._end(number), {"segmenter": self.segmenter.state_dict()})
        self._save({"phase": number + 1, "step": 0, "seconds": 0.0})

    def _report(self, number: int, record: Record, clock: _Clock) -> None:
        measured = {}
        due = self.measure_every and record.step % self.measure_every < self.recipe.log_every
        if due and record.step < record.steps:
            with clock.paused():
                measured["miou"] = self.measure(self.segmenter)["miou"]
        if self.log is not None:
            self.log.add(number, self.phases[number].name, record, clock.seconds(), measured)
        self.display.step(self.phases[number].name, record)

    def _save_step(self, number: int, step: StepState, clock: _Clock) -> None:
        trained = {"step": step.step, "optimizer": step.optimizer, "stage": step.stage, "ema": step.ema}
        weights = {"segmenter": self.segmenter.state_dict()}
        self._save({"phase": number, "seconds": clock.seconds(), **weights, **trained})

    def _save(self, state: dict[str, Any]) -> None:
        """Let process 0 write last.pt: the state, and what every checkpoint says of the phases before."""
        if not is_first_process():
            return
        labels = self.outcome.pseudo_labels and str(self.outcome.pseudo_labels.folder.relative_to(self.run.folder))
        save_checkpoint(self.run.checkpoints / "last.pt", {"rows": self.outcome.rows, "labels": labels, **state})

    def _end(self, number: int) -> Path:
        return self.run.folder / weights_after(number, self.phases[number].name)

    def _add_row(self, name: str, seconds: float, input_transform: str | None) -> None:
        measured = self.measure(self.segmenter)
        miou = measured["miou"]
        if input_transform not in (None, IDENTITY):
            self.display.say(
                f"{name:<12} using transformed images ({input_transform}): the model is more confident on them"
            )
        self.display.say(
            f"{name:<12}" + (f" mIoU {miou:5.1f}" if miou is not None else " done") + f"   {seconds:7.1f} s"
        )
        row = {"name": name, "input_transform": input_transform, "seconds": round(seconds, 3), **measured}
        self.outcome.rows.append(row)


class _Clock:
    """Seconds of a phase without measuring, including those of a run that was interrupted in it."""

    def __init__(self, seconds: float) -> None:
        self.began = time.perf_counter() - seconds

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.began += time.perf_counter() - since
