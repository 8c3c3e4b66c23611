"""`das3 benchmark`: a suite's grid of methods and seeds."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.benchmark import METHODS, run_benchmark
from das3.stages import stage_types
from das3.suites import SUITES
from das3.tables import results_table, write_tables

__all__ = ["HELP", "add", "run"]

HELP = """Compare methods on a suite of domain shifts, over seeds.

das3 benchmark --suite streets --out runs/bench/streets
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    methods = ", ".join(dict.fromkeys([*METHODS, *stage_types()]))
    parser.add_argument("--suite", type=str, required=True, help=f"one of: {', '.join(SUITES)}")
    parser.add_argument("--out", type=str, required=True, help="folder of all runs; finished cells in it are kept")
    parser.add_argument("--data", type=str, default=None, help="folder of the suite's data, where it needs any")
    parser.add_argument("--methods", type=list[str], default=["bn", "das3"], help=f"any of: {methods}")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, each on its share of the cores")


def run(given: Namespace) -> None:
    """Run the grid, write its tables and print the mean ± standard deviation over the seeds."""
    data = Path(given.data) if given.data else None
    out = Path(given.out)
    rows = run_benchmark(given.suite, out, data=data, methods=given.methods, seeds=range(given.seeds), jobs=given.jobs)
    write_tables(rows, out, f"{given.suite}-table")
    print(results_table(rows).markdown(), end="")
    print(out / f"{given.suite}.json")
