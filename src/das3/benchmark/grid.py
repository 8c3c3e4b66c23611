"""The grid: the same source model, images and seeds for every method, each cell measured in a process of its own.

    OUT/SEED/source/     the source model            OUT/SEED/oracle/   fine-tuned on the target's labels
    OUT/SEED/METHOD/     an adaptation run           OUT/SUITE.json     all rows
    OUT/data/            images decoded once         OUT/SEED/*.json    see `das3.benchmark.cell`

A finished cell is not run again, an interrupted one continues where it stopped, and first stages that several methods
share are run once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from das3.benchmark.advent import Advent, advent_recipe
from das3.benchmark.cell import (
    Cell,
    measure_given_model,
    plain,
    run_adaptation,
    run_advent,
    run_cell,
    train_oracle,
    train_source_model,
)
from das3.benchmark.methods import find_methods, method_recipe
from das3.benchmark.processes import beside, reason, rows_of, run_all
from das3.benchmark.progress import GridProgress
from das3.benchmark.rows import Row
from das3.benchmark.suite_file import find_suite
from das3.benchmark.suites import Suite
from das3.data.cache import fingerprint, open_packed, pack
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.dataclass_options import add_options, from_namespace, plain_message
from das3.errors import DataError, RecipeError, TrainingError
from das3.evaluation.metrics import gap_closed
from das3.files import write_atomically
from das3.recipe import Recipe, RunOptions
from das3.recipes.old_names import refuse_old_names
from das3.training.phases import phases_of
from das3.training.supervised import SourceRecipe

__all__ = ["packed_suite", "run_benchmark", "run_seed"]

T = TypeVar("T")
Data = Mapping[str, Images | Labelled]
"""A suite's sets, opened: source (where there is one), target, test."""


def run_benchmark(
    suite: str | Suite,
    out: Path,
    *,
    data: Path | None = None,
    methods: Sequence[str] = ("bn", "das3"),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    options: Mapping[str, Any] | None = None,
    source_model: str | None = None,
    measure_every: int = 0,
    redo: bool = False,
    name: str | None = None,
    trust: bool = False,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Run a suite's grid.

    Args:
        suite: name or YAML file, see `das3.benchmark.suite_file`.
        out: folder of all runs; finished cells in it are kept.
        data: folder of the suite's data, if it needs any.
        methods: see `das3.benchmark.methods.find_methods`; or advent, which is also one of "all" where the suite has
            source data.
        seeds: each trains its own source model.
        jobs: number of cells to run at the same time, each on its share of the cores.
        options: fields of the recipe that hold for all methods.
        source_model: a trained model to use instead of the suite's.
        measure_every: steps between two points of a curve of mIoU, 0 for no curve.
        redo: cells that were made with other options or data are run again, not refused.
        name: of the file of rows, the suite's when None.
        trust: run code that a suite file or a model folder names for a network.
        say: called with a line: how many cells there are, each one that starts or ends, and the time that is left.

    Returns:
        A row per method, stage and seed; also in OUT/NAME.json. Rows of a cell that failed have no mIoU and an `error`;
        the other cells are run all the same.

    Raises:
        RecipeError: if the suite or a method is unknown, advent has no source data, or a cell in `out` was made with
            other options or data.
        DataError: if the suite's data can't be used.
    """
    if jobs < 1:
        raise RecipeError(f"jobs must be at least 1, got {jobs}")
    chosen = find_suite(suite, data, trust=trust) if isinstance(suite, str) else suite
    if trust:
        chosen = replace(chosen, trust=True)
    if source_model is not None:
        chosen = replace(chosen, source=None, source_model=source_model)
    opened = _opened(chosen)
    cells = plan(chosen, opened, _methods(methods, chosen), seeds, out, options or {}, measure_every)
    _refuse_mismatches(cells, redo)
    progress = GridProgress(cells, jobs, say)
    if progress.open:
        packed = _packed(chosen, opened, out / "data")
        run_all([replace(cell, suite=packed) for cell in cells], jobs, progress)
        progress.close()
    rows = [row for cell in cells for row in rows_of(cell)]
    _add_gaps(rows)
    write_atomically(out / f"{name or chosen.name}.json", json.dumps(rows, indent=1))
    return rows


def _methods(names: Sequence[str], suite: Suite) -> dict[str, dict[str, Any]]:
    """Fields of each method's recipe; advent, which has none, comes last.

    Raises:
        RecipeError: see `find_methods`, or if advent is named and the suite has no source data.
    """
    advent = Advent.name in names
    if advent and suite.source is None:
        raise RecipeError(
            f"advent trains on source data, of which suite {suite.name} has none; leave it out, or train the source "
            "model here, on the suite's source"
        )
    found = find_methods([name for name in names if name != Advent.name])
    return {**found, Advent.name: {}} if advent or ("all" in names and suite.source) else found


def packed_suite(suite: Suite, folder: Path) -> Suite:
    """The suite with its images decoded or rendered once, into files in `folder`.

    Raises:
        DataError: if its sets don't fit together.
    """
    return _packed(suite, _opened(suite), folder)


def run_seed(suite: Suite, seed: int, folder: Path, *, quiet: bool = False) -> list[Row]:
    """Source model, das3 and oracle of one seed; das3 in this process, the oracle in another one beside it.

    Args:
        suite: the shift; its target has labels, and its sets can be sent to a process, see `packed_suite`.
        seed: of everything.
        folder: gets source/, das3/ and oracle/; what is finished in it, with the present options, is kept.
        quiet: show no progress.

    Returns:
        Rows as of `run_benchmark`, those of the oracle last.

    Raises:
        TrainingError: if the oracle's process failed.
    """
    cells = plan(suite, _opened(suite), find_methods(["das3"]), [seed], folder, {}, 0)
    source, oracle, das3 = (replace(cell, folder=folder) for cell in cells)
    _refuse_mismatches([source, oracle, das3], redo=True)
    run_cell(source, quiet=quiet)
    with beside(oracle):
        run_cell(das3, quiet=quiet)
    if oracle.rows() is None:
        raise TrainingError(f"the oracle could not be trained: {reason(oracle)}")
    rows = [row for cell in (source, das3, oracle) for row in rows_of(cell)]
    _add_gaps(rows)
    return rows


def _opened(suite: Suite) -> Data:
    """The suite's sets.

    Raises:
        DataError: if their classes differ, or the test set has no labels.
    """
    makers = {"source": suite.source, "target": suite.target, "test": suite.test}
    opened = {part: make() for part, make in makers.items() if make is not None}
    test = opened["test"]
    if not isinstance(test, Labelled):
        raise DataError(f"suite {suite.name}: the test images have no labels; every row is measured on them")
    for part, data in opened.items():
        if isinstance(data, Labelled) and data.num_classes != test.num_classes:
            raise DataError(
                f"suite {suite.name}: {part} has {data.num_classes} classes ({', '.join(data.class_names)}), test has "
                f"{test.num_classes} ({', '.join(test.class_names)}); give the matching classes or class_map"
            )
    return opened


def plan(
    suite: Suite,
    opened: Data,
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    out: Path,
    options: Mapping[str, Any],
    measure_every: int,
) -> list[Cell]:
    """All cells, seed by seed: the source model, the oracle if the target has labels, then the methods.

    Raises:
        RecipeError: if an option is unknown or does not fit.
    """
    marks = {part: fingerprint(data) for part, data in opened.items()}
    shared = {**suite.options, **options}
    recipes: dict[str, RunOptions] = {
        name: advent_recipe(shared, suite.steps) if name == Advent.name else method_recipe(given, shared, suite.steps)
        for name, given in methods.items()
    }
    network = {"network": suite.network, "model_args": dict(suite.model_args)}
    given = {"model": suite.source_model, "size": suite.size}
    cells = []
    for seed in seeds:
        folder = out / str(seed)
        trained = None if suite.source_model else _supervised(suite, "source", seed)
        source = ({"recipe": plain(trained), **network} if trained else given) | {"test": marks["test"]}
        source |= {"source": marks["source"]} if trained else {}
        make_source = train_source_model if trained else measure_given_model
        cells.append(Cell(suite, "source", seed, folder, trained, source, make_source, ("source",)))
        common: dict[str, Any] = {"source": source, "target": marks["target"]}
        if isinstance(opened["target"], Labelled):
            oracle = _supervised(suite, "oracle", seed)
            inputs = {**common, "recipe": plain(oracle)}
            cells.append(Cell(suite, "oracle", seed, folder, oracle, inputs, train_oracle, ("oracle",)))
        for name, recipe in recipes.items():
            mine = replace(recipe, seed=seed)
            inputs = {**common, "recipe": plain(mine), "measure_every": measure_every}
            if isinstance(mine, Recipe):
                run, stages = run_adaptation, tuple(phase.name for phase in phases_of(mine))
            else:
                run, stages = run_advent, (name,)
                inputs["source_images"] = marks["source"]
            cells.append(Cell(suite, name, seed, folder, mine, inputs, run, stages, measure_every))
    return cells


def _supervised(suite: Suite, kind: str, seed: int) -> SourceRecipe:
    """Recipe of the source model's or the oracle's training, its values checked and of the right type."""
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser, SourceRecipe)
    given = {"size": suite.size, **getattr(suite, f"{kind}_options"), "seed": seed}
    refuse_old_names(given, f"suite {suite.name}, {kind}_options", SourceRecipe)
    try:
        return from_namespace(SourceRecipe, parser.parse_object(given))
    except ArgumentError as error:
        raise RecipeError(f"suite {suite.name}, {kind}_options: {plain_message(error)}") from error


def _refuse_mismatches(cells: Sequence[Cell], redo: bool) -> None:
    """Refuse cells that were made with other settings, or delete them to be run again."""
    mismatches = [(cell, why) for cell in cells if (why := cell.mismatch())]
    if mismatches and not redo:
        cell, why = mismatches[0]
        more = f" (and {len(mismatches) - 1} more cells)" if len(mismatches) > 1 else ""
        raise RecipeError(
            f"{cell.run} was made with {why}{more}; repeat such cells with --redo, or choose another --out"
        )
    for cell, _ in mismatches:
        cell.file.unlink()
        shutil.rmtree(cell.run, ignore_errors=True)


def _packed(suite: Suite, opened: Data, folder: Path) -> Suite:
    """The suite with its images decoded, and resized as training needs them, in files that all cells share."""
    sizes = {"source": suite.size, "target": suite.size, "test": None}  # measured at the labels' size
    packed = {
        part: partial(open_packed, folder / part)
        for part, data in opened.items()
        if pack(data, folder / part, sizes[part])
    }
    return replace(suite, **packed)  # type: ignore[arg-type]


def _add_gaps(rows: Sequence[Row]) -> None:
    bounds = {(r["seed"], r["method"]): r["miou"] for r in rows if r["method"] in ("source", "oracle")}
    for row in rows:
        source, oracle = (bounds.get((row["seed"], kind)) for kind in ("source", "oracle"))
        gap = gap_closed(source, row["miou"], oracle)
        row["gap_closed"] = None if gap is None else round(gap, 4)
