"""The bench: the same source model, images and seeds for every method, each cell measured in a process of its own.

    OUT/SEED/source/     the source model            OUT/SEED/oracle/   fine-tuned on the target's labels
    OUT/SEED/METHOD/     an adaptation run           OUT/SUITE.json     all rows

A finished cell is never run again, an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from das3.api import adapt
from das3.checkpoints import write_atomically
from das3.errors import RecipeError
from das3.metrics import gap_closed
from das3.models import load_segmenter
from das3.recipe import recipe_from
from das3.source import SourceRecipe, train_supervised
from das3.suites import SUITES, Suite

__all__ = ["METHODS", "run_benchmark", "run_seed"]

METHODS: Mapping[str, Sequence[str]] = {
    "bn": ("bn",),
    "das3": ("align", "selftrain", "propagate"),
}
"""Stages of the methods that have a name of their own; any stage can also be named as a method."""


def run_benchmark(
    suite: str,
    out: Path,
    *,
    data: Path | None = None,
    methods: Sequence[str] = ("bn", "das3"),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run a suite's grid.

    Args:
        suite: name, see `das3.suites`.
        out: folder of all runs; finished cells in it are kept.
        data: folder of the suite's data, where it needs any.
        methods: see `METHODS`.
        seeds: each trains its own source model.
        jobs: cells at once, each on its share of the cores.
        options: fields of the recipe that hold for all methods.
        say: where a line per finished cell goes.

    Returns:
        A row per method, stage and seed; also in OUT/SUITE.json.

    Raises:
        RecipeError: if the suite is unknown.
        DataError: if its data are not there.
    """
    if suite not in SUITES:
        raise RecipeError(f"no suite is called {suite!r}; there are: {', '.join(SUITES)}")
    chosen = SUITES[suite](data)
    threads = max(1, torch.get_num_threads() // jobs)
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:

        def all_of(kinds: Sequence[str]) -> None:
            cells = [(seed, kind) for seed in seeds for kind in kinds]
            futures = [
                pool.submit(_cell, chosen, kind, seed, out, threads, dict(options or {})) for seed, kind in cells
            ]
            for future in futures:
                for row in future.result():
                    rows.append(row)
                    say(f"{suite}  seed {row['seed']}  {row['method']:<10} {row['stage']:<12} {row['miou']:6.2f}")

        all_of(["source"])
        all_of(["oracle", *methods])
    _add_gaps(rows)
    write_atomically(out / f"{suite}.json", json.dumps(rows, indent=1).encode())
    return rows


def run_seed(suite: Suite, seed: int, folder: Path, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Source model, das3 and oracle of one seed, in this process.

    Args:
        suite: the shift.
        seed: of everything.
        folder: gets source/, das3/ and oracle/; what is finished in it is kept.
        quiet: show no progress.

    Returns:
        Rows as of `run_benchmark`.
    """
    rows = [row for kind in ("source", "das3", "oracle") for row in _rows(suite, kind, seed, folder, {}, quiet)]
    _add_gaps(rows)
    return rows


def _cell(suite: Suite, kind: str, seed: int, out: Path, threads: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """One cell in a process of its own, whose peak memory is the cell's."""
    done = out / str(seed) / f"{kind}.json"
    if done.exists():
        return list(json.loads(done.read_text()))
    torch.set_num_threads(threads)
    rows = _rows(suite, kind, seed, out / str(seed), options, quiet=True)
    for row in rows:
        row["peak_mib"] = _peak_mib()
    write_atomically(done, json.dumps(rows, indent=1).encode())
    return rows


def _rows(suite: Suite, kind: str, seed: int, base: Path, options: dict[str, Any], quiet: bool) -> list[dict[str, Any]]:
    folder = base / kind
    resume = (folder / "recipe.yaml").exists()
    if kind in ("source", "oracle"):
        summary = _supervised(suite, kind, seed, folder, resume, quiet)
    else:
        fields = {
            "stages": list(METHODS.get(kind, (kind,))),
            "seed": seed,
            **suite.options,
            **options,
        }
        result = adapt(
            base / "source",
            suite.target().images,
            out=folder,
            recipe=recipe_from(fields),
            evaluation=suite.test(),
            resume=resume,
            quiet=quiet,
        )
        summary = result.metrics
    stages = summary["stages"][1:]
    common = {"suite": suite.name, "method": kind, "seed": seed, "peak_mib": None, "commit": _commit()}
    return [
        {**common, "stage": stage["name"], "miou": stage["miou"], "gap_closed": None, "seconds": stage["seconds"]}
        | {"per_class_iou": stage["per_class_iou"]}
        for stage in stages
    ]


def _supervised(suite: Suite, kind: str, seed: int, folder: Path, resume: bool, quiet: bool) -> dict[str, Any]:
    """The source model, from random weights; or the oracle, from the source model's."""
    labelled = suite.source() if kind == "source" else suite.target()
    recipe = SourceRecipe(seed=seed, out=str(folder), size=suite.size, **getattr(suite, kind + "_options"))
    if kind == "source":
        torch.manual_seed(seed)
        segmenter = load_segmenter(
            suite.network,
            num_classes=labelled.num_classes,
            class_names=list(suite.test().class_names),
            size=suite.size,
            model_args=dict(suite.model_args),
        )
    else:
        source = folder.with_name("source")
        segmenter, recipe = load_segmenter(source), replace(recipe, model=str(source))
    result = train_supervised(
        segmenter, labelled, recipe, evaluation=suite.test(), resume=resume, quiet=quiet, name=kind
    )
    return result.metrics


def _add_gaps(rows: Sequence[dict[str, Any]]) -> None:
    bounds = {(r["seed"], r["method"]): r["miou"] for r in rows if r["method"] in ("source", "oracle")}
    for row in rows:
        source, oracle = (bounds.get((row["seed"], kind)) for kind in ("source", "oracle"))
        gap = gap_closed(source, row["miou"], oracle)
        row["gap_closed"] = None if gap is None else round(gap, 4)


def _peak_mib() -> int:
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
