"""A benchmark suite small enough for tests, and running it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

import worlds
from das3.benchmark import grid, processes
from das3.benchmark.cell import Cell
from das3.models import load_segmenter

METHODS = ("bn", "das3", "align+selftrain")


def write_suite(folder: Path, **changes: Any) -> Path:
    """A suite file beside its three folders of images; `changes` win, None takes an entry out."""
    for part, count, seed in (("source", 8, 0), ("target", 8, 0), ("test", 4, 1)):
        domain = "source" if part == "source" else "target"
        worlds.write_world(folder / part, domain, count=count, seed=seed, size=(32, 48))
    parts = {part: {"images": f"{part}/images", "labels": f"{part}/labels"} for part in ("source", "target", "test")}
    said = {
        **parts,
        "model_args": {"width": 8},
        "size": 24,
        "source_options": {"steps": 20, "batch_size": 4, "lr": "1e-2", "device": "cpu"},
        "oracle_options": {"steps": 15, "batch_size": 4, "lr": "1e-2", "device": "cpu"},
        "options": {"batch_size": 4, "device": "cpu", "log_every": 1, "checkpoint_every": 2},
        "steps": 11,
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in said.items() if value is not None}))
    return path


def run_grid(
    suite: Path, out: Path, methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0,), **more: Any
) -> list[dict[str, Any]]:
    """Rows of the suite."""
    return grid.run_benchmark(str(suite), out, methods=methods, seeds=seeds, say=lambda line: None, **more)


def run_here(cell: Cell, *_: object) -> None:
    """In place of a process for every cell, which takes seconds to start."""
    if cell.rows() is None:
        processes.attempt(cell)


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the model that a run left."""
    return load_segmenter(folder).model.state_dict()
