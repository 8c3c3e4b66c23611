"""Run the stages in order: each phase is prepared, trained, measured and saved, starting where the run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from das3.data.images import Images
from das3.data.label_store import LabelStore
from das3.data.samples import auto_crop
from das3.distributed import is_first_process, wait_for_all
from das3.ema import copy_weights
from das3.errors import DivergedError
from das3.input_transforms import IDENTITY
from das3.norms import BatchNormMode, needs_reestimation
from das3.recipe import Recipe, RunOptions
from das3.registry import find_stage
from das3.segmenter import Segmenter
from das3.selection.bn_statistics import StatisticsChoice
from das3.selection.candidates import Verdict
from das3.selection.carried_statistics import put_statistics
from das3.selection.guard import Guard, GuardMode, StageStopped
from das3.stages import Stage, StageContext, StageOptions
from das3.training.checkpoints import BackgroundWriter, load_checkpoint, save_checkpoint, snapshot_of, unfit
from das3.training.loop import Record, StepState, train
from das3.training.progress import Display
from das3.training.run_folder import Log, Run, weights_after
from das3.training.stopping import sigterm_postponed

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
        statistics: which batch-norm statistics were chosen, if a stage left it to the run.
        verdict: what the guard chose, and why.
        stopped: which stage collapsed and why, if one did.
        miou: of the model that is handed back, in percent, if the guard chose it and labels were given.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pseudo_labels: LabelStore | None = None
    statistics: StatisticsChoice | None = None
    verdict: Verdict | None = None
    stopped: str | None = None
    miou: float | None = None


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
    guard: GuardMode = "off",
    measure_candidates: bool = False,
    picture: Callable[[Segmenter, LabelStore | None], NDArray[np.uint8]] | None = None,
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
        guard: see `das3.selection.guard.GuardMode`.
        measure_candidates: also measure every candidate of the guard, for benchmarks.
        picture: makes the picture H×W×3 that is logged of the model before the first and after each phase.
    """
    progression = _Progression(
        run, fabric, segmenter, images, phases, measure, display, measure_every, guard, measure_candidates, picture
    )
    return progression.run_all()


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
    guard_mode: GuardMode
    measure_candidates: bool
    picture: Callable[[Segmenter, LabelStore | None], NDArray[np.uint8]] | None

    def run_all(self) -> Outcome:
        self.recipe: RunOptions = self.run.recipe
        self.segmenter.to(self.fabric.device)
        self.crop = self.recipe.crop or auto_crop(self.images.sizes())
        self.guard = Guard(self.guard_mode, self.segmenter, self._context(0, "selection"), self._load)
        self.writer = BackgroundWriter()
        state = self.run.last()
        self._restore(state)
        wait_for_all()  # before process 0 writes what another one is still to read
        first = is_first_process()
        self.log = Log(self.run.folder, state["phase"], state["step"], self.recipe) if first else None
        try:
            self._log_phase(state["phase"])
            return self._run_from(state)
        finally:
            if self.log is not None:
                self.log.close()

    def _run_from(self, state: dict[str, Any]) -> Outcome:
        stages = [phase.make() for phase in self.phases]
        statistics = self._choose_statistics(stages, state)
        earlier: list[BatchNormMode] = []
        for number, stage in enumerate(stages):
            stage.options = _resolved(stage.options, statistics)
            reestimation = needs_reestimation(stage.options.bn_mode, earlier)
            earlier.append(stage.options.bn_mode)
            if number >= state["phase"]:
                try:
                    self._run_phase(number, stage, reestimation, state if number == state["phase"] else None)
                except (StageStopped, DivergedError) as error:
                    if self.guard_mode == "off":
                        raise
                    self._step_back(number, str(error))
                    break
            self._add_candidates(number)
        self._conclude()
        return self.outcome

    def _context(self, number: int, name: str) -> StageContext:
        return StageContext(
            self.fabric,
            self.segmenter,
            self.images,
            self.run.folder / "work" / (f"{number}-{name}" if name != "selection" else name),
            (self.recipe.seed, number),
            self.crop,
            self.recipe.batch_size,
            self.display.track,
            accumulate=self.recipe.accumulate,
        )

    def _load(self, file: Path) -> Mapping[str, Tensor]:
        weights = load_checkpoint(file).get("segmenter")
        if not isinstance(weights, Mapping):
            raise unfit(file, "it holds no weights")
        return weights

    def _put(self, weights: Any, file: Path) -> None:
        try:
            self.segmenter.load_state_dict(weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise unfit(file, "its weights are not those of this network") from error

    def _choose_statistics(self, stages: Sequence[Stage[Any]], state: dict[str, Any]) -> StatisticsChoice | None:
        """Resolve bn_mode "auto" on the incoming model; a resumed run does so again, to the same choice."""
        if not any(stage.options.bn_mode == "auto" for stage in stages):
            return None
        reached = copy_weights(self.segmenter)
        self.segmenter.load_state_dict(self.guard.incoming)
        choice = self.guard.choose_statistics()
        if state["phase"] > 0:
            self.segmenter.load_state_dict(reached)
        self.outcome.statistics = choice
        self.display.say(f"batch norm   {choice.reason}")
        return choice

    def _step_back(self, number: int, reason: str) -> None:
        """A stage collapsed: the weights before it are handed on, and no further stage is run."""
        name = self.phases[number].name
        before = self._load(self._end(number - 1)) if number else self.guard.untrained()
        self.segmenter.load_state_dict(before)
        self.outcome.stopped = f"{name} was stopped: {reason}"
        self.display.say(f"{name:<12} stopped and taken back: {reason}")

    def _add_candidates(self, number: int) -> None:
        wait_for_all()  # until process 0 has written them
        name = self.phases[number].name
        snapshots = sorted(
            self.run.checkpoints.glob(f"{number}-{name}-step*.pt"), key=lambda p: int(p.stem.split("step")[1])
        )
        for file in () if self.guard.keeps_statistics else snapshots:  # each would cost a pass over the images
            self.guard.add(f"{name} at step {file.stem.split('step')[1]}", "snapshot", file)
        if self._end(number).exists():
            self.guard.add(name, "stage", self._end(number))

    def _conclude(self) -> None:
        """Choose among the candidates; the segmenter ends with the chosen weights."""
        if self.guard_mode != "best":
            return
        measured = {}
        if self.measure_candidates:
            for name, weights in self.guard.candidate_weights():
                self.segmenter.load_state_dict(weights)
                measured[name] = self.measure(self.segmenter)["miou"]
        verdict = self.guard.verdict()
        for candidate in verdict.candidates:
            candidate["miou"] = measured.get(candidate["name"])
        self.outcome.verdict = verdict
        self.outcome.miou = self.measure(self.segmenter)["miou"]

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the rows, labels and weights of the phases that are finished."""
        self.outcome = Outcome(rows=list(state["rows"]))
        if state.get("labels"):
            self.outcome.pseudo_labels = LabelStore(self.run.folder / state["labels"], self.images.names)
        if state["phase"] > len(self.phases):
            raise unfit(self.run.checkpoints / "last.pt", f"it is of phase {state['phase']} of {len(self.phases)}")
        if state["phase"] > 0:
            file = self._end(state["phase"] - 1)
            self._put(self._load(file), file)
        if not self.outcome.rows:
            self._add_row("source", 0.0, None)

    def _run_phase(self, number: int, stage: Stage[Any], reestimation: bool, state: dict[str, Any] | None) -> None:
        """Run a phase, from its beginning or from the state of an interrupted run."""
        name = self.phases[number].name
        clock = _Clock(state["seconds"] if state else 0.0)
        context = self._context(number, name)
        if reestimation:
            chosen = self.outcome.statistics
            if number == 0 and chosen and chosen.target:  # these weights' own, estimated for the choice
                put_statistics(self.segmenter, chosen.target)
            else:
                context.reestimate_bn()
        samples = stage.prepare(context)
        self.outcome.pseudo_labels = stage.pseudo_labels or self.outcome.pseudo_labels
        start = None
        if state and state["step"]:
            start = self._start(state)
        # The writer ends first: a signal that takes effect finds the last step on the disk.
        with sigterm_postponed() as stop, self.writer:
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
                snapshot=lambda step, weights: self._save_snapshot(number, step, weights),
                snapshots=self.guard.snapshots,
                stop=stop,
                say=self.display.say,
            )
        stage.finish(context)
        if stage.options.steps:
            self.guard.check(self.segmenter.state_dict())
        self._add_row(name, clock.seconds(), stage.input_transform)
        self._log_phase(number + 1)
        if is_first_process():
            save_checkpoint(self._end(number), {"segmenter": self.segmenter.state_dict()})
        self._save({"phase": number + 1, "step": 0, "seconds": 0.0})

    def _start(self, state: dict[str, Any]) -> StepState:
        """Where the loop goes on; the segmenter gets the weights of that step."""
        file = self.run.checkpoints / "last.pt"
        missing = [key for key in ("segmenter", "optimizer", "stage", "ema") if key not in state]
        if missing:
            raise unfit(file, f"it has no {', '.join(missing)}")
        self._put(state["segmenter"], file)
        return StepState(state["step"], state["optimizer"], state["stage"], state["ema"])

    def _log_phase(self, number: int) -> None:
        """Log the row of the incoming model (0) or of a phase, with a picture."""
        if self.log is None or number >= len(self.outcome.rows):
            return
        row = self.outcome.rows[number]
        seen = self.picture(self.segmenter, self.outcome.pseudo_labels) if self.picture else None
        self.log.phase(number, row["name"], row["miou"], seen)

    def _report(self, number: int, record: Record, clock: _Clock) -> None:
        self.writer.check()
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
        if is_first_process():
            state = snapshot_of({"phase": number, "seconds": clock.seconds(), **weights, **trained})
            self.writer.start(lambda: self._save(state))

    def _save_snapshot(self, number: int, step: int, weights: Mapping[str, Tensor]) -> None:
        self.guard.check(weights)
        if is_first_process():
            file = self.run.checkpoints / f"{number}-{self.phases[number].name}-step{step}.pt"
            state = snapshot_of({"segmenter": weights})
            self.writer.start(lambda: save_checkpoint(file, state))

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


def _resolved(options: StageOptions, choice: StatisticsChoice | None) -> StageOptions:
    """The options with "auto" resolved: trained on batches, unless the images are too few or the layers came frozen.

    Also where the source's statistics are better: held statistics do not fit weights that move, which cost a pretrained
    network 4 mIoU in stage 1. The guard puts the trained weights back on them instead (docs/decisions/0020).
    """
    if options.bn_mode != "auto" or choice is None:
        return options
    return replace(options, bn_mode="batch" if choice.consistency else "frozen")


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
