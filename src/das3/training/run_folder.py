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
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3 import __version__
from das3.errors import DataError, RecipeError, TrainingError
from das3.files import DISK_ERRORS, remove_leftovers, why_not_written, write_atomically
from das3.recipe import RunOptions
from das3.recipes.old_names import up_to_date
from das3.text_files import read_yaml
from das3.training.checkpoints import load_checkpoint, save_checkpoint, unfit
from das3.training.inputs import INPUT_OPTIONS, Inputs, check_inputs
from das3.training.lock import LOCK, locked_folder
from das3.training.loggers import open_loggers
from das3.training.loop import Record

__all__ = [
    "NON_RESULT_OPTIONS",
    "Log",
    "Run",
    "begin_after",
    "check_folder",
    "check_run_folder",
    "file_errors_told",
    "saved_options",
    "saved_recipe",
    "weights_after",
]

NON_RESULT_OPTIONS = frozenset(
    {
        "format",
        "out",
        "device",
        "devices",
        "workers",
        "checkpoint_activations",
        "shard_weights",
        "compile",
        "channels_last",
        "log_every",
        "checkpoint_every",
        "cache_gib",
        "disk_cache_gib",
        "report",
        "on_bad_image",
        "measure_every",
        "logger",
    }
)
"""Options that don't change what comes out: where a run lies and how it is watched."""
_CHANGEABLE = NON_RESULT_OPTIONS | INPUT_OPTIONS | {"precision"}
"""Options that a resumed run may have otherwise: inputs are compared by their contents; precision helps against NaN."""
_RESTORE = "restore it from a copy, or choose another --out"


class Run:
    """The files of one run, whose folder is locked.

    Args:
        folder: of the run.
        recipe: its options.
        resume: continue the run in this folder where it stopped.
        inputs: what it is given; compared with what the run in this folder began with.

    Raises:
        RecipeError: if the folder holds a run and `resume` is not given, or that run has another recipe.
        DataError: if that run has other inputs.
        TrainingError: if its files are damaged.
    """

    def __init__(self, folder: Path, recipe: RunOptions, *, resume: bool = False, inputs: Inputs | None = None) -> None:
        self.folder = Path(folder)
        self.changed: list[str] = []
        check_folder(self.folder, resume=resume)
        saved = self.folder / "recipe.yaml"
        if saved.exists():
            self.changed = _same_recipe(self.folder, saved_options(self.folder, type(recipe)) or {}, recipe)
        remove_leftovers(self.folder)
        if inputs is not None:
            check_inputs(self.folder / "inputs.json", inputs)
        write_atomically(saved, recipe.to_yaml())
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
        state = load_checkpoint(path)
        kinds = {"phase": int, "step": int, "rows": list, "seconds": int | float}
        if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()) or not all(
            isinstance(row, dict) and "name" in row for row in state["rows"]
        ):
            raise unfit(path, "it is not the state of a run")
        return _up_to_date_state(state)

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
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1))
        return summary


def check_folder(folder: Path, *, resume: bool) -> None:
    """Check, before anything is loaded, that a run can write into a folder.

    Raises:
        RecipeError: if it is a file, holds something else or a run that is not to be resumed, or can't be written in.
    """
    if folder.is_dir():
        if (folder / "recipe.yaml").exists():
            if not resume:
                raise RecipeError(f"{folder} already holds a run; continue it with --resume, or choose another --out")
            _check_places(folder)
        elif not all(_is_of_a_beginning(path) for path in folder.iterdir()):
            raise RecipeError(f"{folder} is not empty and holds no das3 run; choose another --out")
    elif folder.exists() or folder.is_symlink():
        raise RecipeError(f"{folder} is not a folder; choose another --out")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise RecipeError(f"{folder} can't be made: {above} is not a folder; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RecipeError(f"{folder} can't be written in: {above} is read-only for you; choose another --out")


def _check_places(folder: Path) -> None:
    """Say now what would be in the way when the run has something to write there."""
    for name in ("checkpoints", "work", "tensorboard", "model"):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise RecipeError(f"{folder / name} is a file where the run has a folder; move it away")
    for name in ("recipe.yaml", "inputs.json", "metrics.jsonl", "summary.json", "checkpoints/last.pt"):
        if (folder / name).is_dir():
            raise RecipeError(f"{folder / name} is a folder where the run has a file; move it away")


def check_run_folder(out: str | None, *, resume: bool) -> None:
    """`check_folder` at the start of a program, in the process that will write, also whether another run writes there.

    Raises:
        RecipeError: if a run can't write there.
    """
    if out is None or os.environ.get("RANK", "0") != "0":
        return
    check_folder(Path(out), resume=resume)
    if (Path(out) / LOCK).exists():
        with locked_folder(Path(out)):
            pass


def _is_of_a_beginning(path: Path) -> bool:
    """Whether a file is of a run that was killed before it had a recipe."""
    return path.name in (LOCK, "inputs.json") or path.name.endswith(".part")


@contextmanager
def file_errors_told(folder: Path) -> Iterator[None]:
    """Within, a file of the run that can't be written or read ends it with one line.

    Raises:
        TrainingError: naming the file and the remedy.
    """
    try:
        yield
    except OSError as error:
        named = isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(folder)
        if not named and error.errno not in DISK_ERRORS:
            raise
        where = error.filename or folder
        raise TrainingError(f"{why_not_written(where, error)}, then go on with --resume") from error


def saved_recipe(folder: Path, kind: type[RunOptions]) -> dict[str, Any] | None:
    """`saved_options` as they are to be given here: paths that were relative to another folder lead to the same files.

    Raises:
        RecipeError: if they can't be read.
    """
    values = saved_options(folder, kind)
    if values is None:
        return None
    try:
        there = Path(json.loads((folder / "inputs.json").read_bytes())["here"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return values
    for name in INPUT_OPTIONS & values.keys():
        path = values[name]
        if isinstance(path, str) and not Path(path).exists() and (there / path).exists():
            values[name] = str(there / path)
    return values


def saved_options(folder: Path, kind: type[RunOptions]) -> dict[str, Any] | None:
    """Options of the run in a folder, None if there is none.

    Args:
        folder: of the run.
        kind: of its recipe.

    Raises:
        RecipeError: if they can't be read.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        return None
    try:
        values = read_yaml(path)
    except DataError as error:
        raise RecipeError(f"{error}; {_RESTORE}") from error
    if not isinstance(values, dict) or not {"seed", "batch_size"} <= values.keys():
        raise RecipeError(f"{path} is not the recipe of a run; {_RESTORE}")
    return up_to_date(values, str(path), kind)


def _up_to_date_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of das3 0.1 in the present format: some of its keys had other names."""
    if "average" in state:
        state["ema"] = state.pop("average")
        state["stage"] = {key: value for key, value in state["stage"].items() if key != "running"}
    for row in state["rows"]:
        if "look" in row:
            row["input_transform"] = row.pop("look")
    return state


def _same_recipe(folder: Path, before: Mapping[str, Any], recipe: RunOptions) -> list[str]:
    """A run goes on with the recipe it began with. Returns what has been changed, of what may be."""
    old, new = _flat(before), _flat(recipe.to_dict())
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    refused = [f"{key}={old.get(key)!r}, not {new.get(key)!r}" for key in differing if key not in _CHANGEABLE]
    if refused:
        raise RecipeError(
            f"{folder} was started with {'; '.join(refused)}; leave the options out, as --resume reads them from the "
            "run, or choose another --out"
        )
    return [f"{key} {new.get(key)}, not {old.get(key)}" for key in differing if key not in NON_RESULT_OPTIONS]


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of stages by their full names, such as align.lr."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        nested = isinstance(value, Mapping) and key != "model_args"
        flat |= {f"{key}.{name}": item for name, item in value.items()} if nested else {key: value}
    return flat


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
    write_atomically(folder / "recipe.yaml", recipe.to_yaml())
    if donor is not None:
        name = weights_after(count - 1, rows[-1]["name"])
        shutil.copyfile(donor / name, folder / name)
        log = donor / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        taken = [line for line in lines if _is_before(line, count, 0)]
        write_atomically(folder / "metrics.jsonl", "".join(taken))
    save_checkpoint(to / "last.pt", {"phase": count, "step": 0, "rows": list(rows), "labels": None, "seconds": 0.0})


class Log:
    """metrics.jsonl, TensorBoard and what else is asked for; lines of steps that a resumed run repeats are dropped."""

    def __init__(self, folder: Path, phase: int, step: int, recipe: RunOptions | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _is_before(line, phase, step)]
            write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        self.loggers = open_loggers(folder, getattr(recipe, "logger", None), recipe.to_dict() if recipe else {})

    def add(self, phase: int, stage: str, record: Record, seconds: float, measured: dict[str, float]) -> None:
        """Write the loop's report, with measurements if there are any."""
        line = {"stage": stage, "phase": phase, **asdict(record), "seconds": round(seconds, 3), **measured}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # of writing, which says no name
            raise OSError(error.errno, error.strerror, str(self.path)) from error
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
        return bool((entry["phase"], entry["step"]) <= (phase, step))
    except (ValueError, TypeError, KeyError, RecursionError):  # the last line of a killed run, or a damaged one
        return False


def weights_after(number: int, phase: str) -> Path:
    """Path of the weights after a phase in a run folder."""
    return Path("checkpoints", f"{number}-{phase}.pt")
