"""A run folder: what is in it, how it is begun and taken up again, and the stages' way through it.

RUN/recipe.yaml      the resolved recipe
RUN/metrics.jsonl    losses every few steps          RUN/tensorboard/  the same
RUN/checkpoints/     last.pt, and the weights after each stage
RUN/work/            pseudo labels
RUN/model/           the model, in the format it came in
RUN/summary.json     what came out
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from das3.files import write_atomically
from das3.registry import find_stage

from das3 import __version__
from das3.baselines.bn_statistics import running_statistics
from das3.data.images import Images
from das3.data.label_store import LabelStore
from das3.data.samples import auto_crop
from das3.errors import RecipeError
from das3.input_transforms import PLAIN
from das3.norms import NormMode, needs_reestimation
from das3.recipe import Recipe, RunOptions
from das3.segmenter import Segmenter
from das3.stages import Stage
from das3.stages.context import StageContext
from das3.training.checkpoints import load_checkpoint, save_checkpoint
from das3.training.loop import Record, StepState, train
from das3.training.progress import Display

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["NON_RESULT_OPTIONS", "Phase", "Run", "begin_after", "end_of", "phases_of", "run_phases"]

NON_RESULT_OPTIONS = frozenset({"out", "device", "workers", "log_every", "checkpoint_every", "cache_gib"})
"""Options that don't change what comes out: where a run lies and how it is watched."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training: a stage, or one round of it."""

    name: str
    make: Callable[[], Stage[Any]]


class Run:
    """The files of one run.

    Args:
        folder: of the run.
        recipe: what is run.
        resume: go on where the run in this folder stopped.

    Raises:
        RecipeError: if the folder holds a run and `resume` is not given, or that run has another recipe.
    """

    def __init__(self, folder: Path, recipe: RunOptions, *, resume: bool = False) -> None:
        self.folder = Path(folder)
        saved = self.folder / "recipe.yaml"
        if saved.exists():
            if not resume:
                raise RecipeError(f"{folder} already holds a run; go on with --resume, or choose another --out")
            _same_recipe(saved, recipe)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise RecipeError(f"{folder} is not empty and holds no das3 run; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(saved, recipe.to_yaml().encode())
        self.recipe = recipe

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def last(self) -> dict[str, Any]:
        """The state to go on from; that of a fresh run if there is no checkpoint."""
        path = self.checkpoints / "last.pt"
        return load_checkpoint(path) if path.exists() else {"phase": 0, "step": 0, "rows": [], "seconds": 0.0}

    def write_summary(self, rows: Sequence[dict[str, Any]], *, gap_closed: float | None = None) -> dict[str, Any]:
        """Write summary.json and return what it says."""
        summary = {
            "stages": [
                {key: row.get(key) for key in ("name", "look", "miou", "per_class_iou", "seconds")} for row in rows
            ],
            "gap_closed": gap_closed,
            "seed": self.recipe.seed,
            "das3": __version__,
        }
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1).encode())
        return summary


def _same_recipe(saved: Path, recipe: RunOptions) -> None:
    """A run goes on with the recipe it began with."""
    before, now = yaml.safe_load(saved.read_text()), recipe.to_dict()
    for key in sorted((before.keys() | now.keys()) - NON_RESULT_OPTIONS):
        if before.get(key) != now.get(key):
            raise RecipeError(
                f"{saved.parent} was begun with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                "resume with the same options, or choose another --out"
            )


def begin_after(folder: Path, recipe: RunOptions, rows: Sequence[dict[str, Any]], donor: Path | None = None) -> None:
    """Begin a run where another of the same model, images and seed stood after phases that both have; resume it then.

    Args:
        folder: of the new run.
        recipe: of the new run.
        rows: of the source model and of the phases that are taken over.
        donor: folder of the other run, where there is more than the source model's row.
    """
    count, to = len(rows) - 1, folder / "checkpoints"
    to.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "recipe.yaml", recipe.to_yaml().encode())
    if donor is not None:
        name = end_of(count - 1, rows[-1]["name"])
        shutil.copyfile(donor / name, folder / name)
        log = donor / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        taken = [line for line in lines if _is_before(line, count, 0)]
        write_atomically(folder / "metrics.jsonl", "".join(taken).encode())
    save_checkpoint(to / "last.pt", {"phase": count, "step": 0, "rows": list(rows), "labels": None, "seconds": 0.0})


class _Log:
    """metrics.jsonl and TensorBoard; lines of steps that a resumed run does again are dropped."""

    def __init__(self, folder: Path, phase: int, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _is_before(line, phase, step)]
            write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, phase: int, stage: str, record: Record, seconds: float, measured: dict[str, float]) -> None:
        line = {"stage": stage, "phase": phase, **asdict(record), "seconds": round(seconds, 3), **measured}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in {**record.losses, "lr": record.lr, **measured}.items():
            self.board.add_scalar(f"{stage}/{name}", value, record.step)


def _is_before(line: str, phase: int, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run
        return False
    return bool((entry["phase"], entry["step"]) <= (phase, step))


class _Clock:
    """Seconds of a phase, those of an interrupted run before it included, measuring left out."""

    def __init__(self, seconds: float) -> None:
        self.began = time.perf_counter() - seconds

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.began += time.perf_counter() - since


@dataclass
class Outcome:
    """What the phases leave behind."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    pseudo_labels: LabelStore | None = None


def phases_of(recipe: Recipe) -> list[Phase]:
    """The recipe's stages in order; a stage of several rounds is run that often."""
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
    measure: Callable[[Segmenter], dict[str, Any]],
    display: Display,
    measure_every: int = 0,
) -> Outcome:
    """Train `segmenter` in place through all phases, from where the run stands.

    Args:
        run: the run folder.
        fabric: device, precision and processes.
        segmenter: the model as it came in.
        images: target images, already at their training size.
        phases: in order.
        measure: called before the first and after each phase; returns {"miou", "per_class_iou"}, None where unknown.
        display: what a person sees.
        measure_every: also measure about every so many steps of a phase, and log it; 0 does not.

    Returns:
        A row per phase, the first being "source".
    """
    recipe, state = run.recipe, run.last()
    segmenter.to(fabric.device)
    source_moments = running_statistics(segmenter)
    outcome = Outcome(rows=list(state["rows"]))
    if state.get("labels"):
        outcome.pseudo_labels = LabelStore(run.folder / state["labels"], images.names)
    if state["phase"] > 0:
        segmenter.load_state_dict(load_checkpoint(_end(run, state["phase"] - 1, phases))["segmenter"])
    if not outcome.rows:
        outcome.rows.append(_row("source", 0.0, measure(segmenter), display, None))

    def where() -> dict[str, Any]:
        """What every checkpoint says of the phases before."""
        labels = outcome.pseudo_labels and str(outcome.pseudo_labels.folder.relative_to(run.folder))
        return {"rows": outcome.rows, "labels": labels}

    log = _Log(run.folder, state["phase"], state["step"])
    crop = recipe.crop or auto_crop(images.sizes())
    earlier: list[NormMode] = []
    for number, phase in enumerate(phases):
        stage = phase.make()
        norm = stage.options.norm
        needed = needs_reestimation(norm, earlier)
        earlier.append(norm)
        if number < state["phase"]:
            continue
        clock = _Clock(state["seconds"] if number == state["phase"] else 0.0)
        seed = (recipe.seed, number)
        folder = run.folder / "work" / f"{number}-{phase.name}"
        batch_size = recipe.batch_size // fabric.world_size
        context = StageContext(fabric, segmenter, images, folder, seed, crop, batch_size, source_moments, display.track)
        if needed:
            context.reestimate_bn()
        samples = stage.prepare(context)
        outcome.pseudo_labels = stage.pseudo_labels or outcome.pseudo_labels
        start = None
        if number == state["phase"] and state["step"]:
            segmenter.load_state_dict(state["segmenter"])
            start = StepState(state["step"], state["optimizer"], state["stage"], state["average"])

        def report(record: Record, number: int = number, name: str = phase.name, clock: _Clock = clock) -> None:
            measured = {}
            if measure_every and record.step % measure_every < recipe.log_every and record.step < record.steps:
                with clock.paused():
                    measured["miou"] = measure(segmenter)["miou"]
            log.add(number, name, record, clock.seconds(), measured)
            display.step(name, record)

        def save(step: StepState, number: int = number, clock: _Clock = clock) -> None:
            done = {**where(), "phase": number, "seconds": clock.seconds()}
            weights = {"segmenter": segmenter.state_dict()}
            save_checkpoint(run.checkpoints / "last.pt", {**done, **weights, **_fields(step)})

        train(fabric, segmenter, stage, samples, recipe, seed=seed, start=start, report=report, save=save)
        stage.finish(context)
        outcome.rows.append(_row(phase.name, clock.seconds(), measure(segmenter), display, stage.look))
        save_checkpoint(_end(run, number, phases), {"segmenter": segmenter.state_dict()})
        save_checkpoint(run.checkpoints / "last.pt", {**where(), "phase": number + 1, "step": 0, "seconds": 0.0})
    return outcome


def _fields(state: StepState) -> dict[str, Any]:
    return {"step": state.step, "optimizer": state.optimizer, "stage": state.stage, "average": state.average}


def end_of(number: int, phase: str) -> Path:
    """Where a run folder has the weights after a phase."""
    return Path("checkpoints", f"{number}-{phase}.pt")


def _end(run: Run, number: int, phases: Sequence[Phase]) -> Path:
    return run.folder / end_of(number, phases[number].name)


def _row(name: str, seconds: float, measured: dict[str, Any], display: Display, look: str | None) -> dict[str, Any]:
    miou = measured["miou"]
    if look not in (None, PLAIN):
        display.say(f"{name:<12} images are shown {look}, of which the model makes more")
    display.say(f"{name:<12}" + (f" mIoU {miou:5.1f}" if miou is not None else " done") + f"   {seconds:7.1f} s")
    return {"name": name, "look": look, "seconds": round(seconds, 3), **measured}
