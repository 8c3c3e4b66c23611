"""A run folder: its files, and how a run starts and resumes.

RUN/recipe.yaml      the resolved recipe
RUN/metrics.jsonl    losses every few steps          RUN/tensorboard/  the same
RUN/checkpoints/     last.pt, and the weights after each stage
RUN/work/            pseudo labels
RUN/model/           the model, in the format it came in
RUN/summary.json     what came out                   RUN/report.html   the same to look at
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from das3 import __version__
from das3.errors import RecipeError
from das3.files import write_atomically
from das3.recipe import RunOptions
from das3.recipes.old_names import up_to_date
from das3.training.checkpoints import load_checkpoint, save_checkpoint
from das3.training.loggers import open_loggers
from das3.training.loop import Record

__all__ = ["NON_RESULT_OPTIONS", "Log", "Run", "begin_after", "weights_after"]

NON_RESULT_OPTIONS = frozenset(
    {"format", "out", "device", "devices", "workers", "log_every", "checkpoint_every", "cache_gib", "report"}
    | {"measure_every", "logger"}
)
"""Options that don't change what comes out: where a run lies and how it is watched."""


class Run:
    """The files of one run.

    Args:
        folder: of the run.
        recipe: its options.
        resume: continue the run in this folder where it stopped.

    Raises:
        RecipeError: if the folder holds a run and `resume` is not given, or that run has another recipe.
    """

    def __init__(self, folder: Path, recipe: RunOptions, *, resume: bool = False) -> None:
        self.folder = Path(folder)
        saved = self.folder / "recipe.yaml"
        if saved.exists():
            if not resume:
                raise RecipeError(f"{folder} already holds a run; continue it with --resume, or choose another --out")
            _same_recipe(saved, recipe)
            _remove_halves(self.folder)
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
        """The state to continue from; that of a new run if there is no checkpoint."""
        path = self.checkpoints / "last.pt"
        if not path.exists():
            return {"phase": 0, "step": 0, "rows": [], "seconds": 0.0}
        return _up_to_date_state(load_checkpoint(path))

    def write_summary(self, rows: Sequence[dict[str, Any]], *, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write summary.json and return its contents."""
        summary = {
            "stages": [
                {key: row.get(key) for key in ("name", "input_transform", "miou", "per_class_iou", "seconds")}
                for row in rows
            ],
            "gap_closed": None,
            **(more or {}),
            "seed": self.recipe.seed,
            "das3": __version__,
        }
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1).encode())
        return summary


def _remove_halves(folder: Path) -> None:
    """Remove what a killed run was writing when it was killed."""
    for part in folder.rglob("*.part"):
        part.unlink(missing_ok=True)


def _up_to_date_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of das3 0.1 in the present format: some of its keys had other names."""
    if "average" in state:
        state["ema"] = state.pop("average")
        state["stage"] = {key: value for key, value in state["stage"].items() if key != "running"}
    for row in state["rows"]:
        if "look" in row:
            row["input_transform"] = row.pop("look")
    return state


def _same_recipe(saved: Path, recipe: RunOptions) -> None:
    """A run goes on with the recipe it began with."""
    before, now = up_to_date(yaml.safe_load(saved.read_text()), str(saved), type(recipe)), recipe.to_dict()
    for key in sorted((before.keys() | now.keys()) - NON_RESULT_OPTIONS):
        if before.get(key) != now.get(key):
            raise RecipeError(
                f"{saved.parent} was started with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                "resume with the same options, or choose another --out"
            )


def begin_after(folder: Path, recipe: RunOptions, rows: Sequence[dict[str, Any]], donor: Path | None = None) -> None:
    """Start a run from the phases that another run of the same model, images and seed shares with it; resume it then.

    Args:
        folder: of the new run.
        recipe: of the new run.
        rows: of the source model and of the shared phases.
        donor: folder of the other run; needed if there is more than the source model's row.
    """
    count, to = len(rows) - 1, folder / "checkpoints"
    to.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "recipe.yaml", recipe.to_yaml().encode())
    if donor is not None:
        name = weights_after(count - 1, rows[-1]["name"])
        shutil.copyfile(donor / name, folder / name)
        log = donor / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        taken = [line for line in lines if _is_before(line, count, 0)]
        write_atomically(folder / "metrics.jsonl", "".join(taken).encode())
    save_checkpoint(to / "last.pt", {"phase": count, "step": 0, "rows": list(rows), "labels": None, "seconds": 0.0})


class Log:
    """metrics.jsonl, TensorBoard and what else is asked for; lines of steps that a resumed run repeats are dropped."""

    def __init__(self, folder: Path, phase: int, step: int, recipe: RunOptions | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _is_before(line, phase, step)]
            write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())
        self.loggers = open_loggers(folder, getattr(recipe, "logger", None), recipe.to_dict() if recipe else {})

    def add(self, phase: int, stage: str, record: Record, seconds: float, measured: dict[str, float]) -> None:
        """Write the loop's report, with measurements if there are any."""
        line = {"stage": stage, "phase": phase, **asdict(record), "seconds": round(seconds, 3), **measured}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        values = {f"{stage}/{name}": value for name, value in {**record.losses, "lr": record.lr, **measured}.items()}
        for logger in self.loggers:
            logger.scalars(values, record.step)

    def phase(self, number: int, name: str, miou: float | None, picture: NDArray[np.uint8] | None) -> None:
        """Note the model after a phase, the incoming one as number 0: mIoU in percent, and a picture H×W×3."""
        for logger in self.loggers:
            if miou is not None:
                logger.scalars({"evaluation/mIoU": miou}, number)
            if picture is not None:
                logger.picture(f"pictures/{number}-{name}", picture, number)

    def close(self) -> None:
        """Write what is still to be written."""
        for logger in self.loggers:
            logger.close()


def _is_before(line: str, phase: int, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run
        return False
    return bool((entry["phase"], entry["step"]) <= (phase, step))


def weights_after(number: int, phase: str) -> Path:
    """Path of the weights after a phase in a run folder."""
    return Path("checkpoints", f"{number}-{phase}.pt")
