"""`das3 benchmark`: a suite's grid of methods and seeds."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.benchmark.grid import run_benchmark
from das3.benchmark.methods import METHODS, variants
from das3.benchmark.report import report
from das3.benchmark.suites import SUITES
from das3.cli.options import add_flags
from das3.errors import TrainingError
from das3.registry import stage_types

__all__ = ["HELP", "add", "run"]

HELP = """
das3 benchmark --suite streets --out runs/streets
das3 benchmark --suite streets --out runs/streets --ablation
das3 benchmark --suite my-data.yaml --out runs/mine --methods all --jobs 2
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    methods = ", ".join(dict.fromkeys([*METHODS, *stage_types(), "advent"]))
    suites = f"one of: {', '.join(SUITES)}; or a YAML file that describes your data"
    parser.add_argument("--suite", type=str, required=True, help=suites)
    parser.add_argument("--out", type=str, required=True, help="folder of all runs; finished runs in it are kept")
    parser.add_argument("--data", type=str, default=None, help="folder of the suite's data, if it needs any")
    parser.add_argument(
        "--methods",
        type=list[str],
        default=["bn", "das3"],
        help=f"all; or any of: {methods}; stages joined by + (align+selftrain); das3 with an option changed "
        "(selftrain.top_fraction=0.5); recipe files",
    )
    parser.add_argument("--ablation", action="store_true", help="compare variants of das3, one option changed in each")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on its share of the cores")
    parser.add_argument(
        "--source-model", type=str, default=None, help="trained model to use instead of the suite's own"
    )
    add_flags(parser, "trust")
    parser.add_argument("--curve", type=int, default=0, help="also measure mIoU every N steps, for a plot; 0 to not")
    parser.add_argument("--redo", action="store_true", help="repeat runs that were made with other options or data")


def run(given: Namespace) -> None:
    """Run the grid, write its tables and plots, print the mean ± standard deviation over the seeds."""
    out = Path(given.out)
    suite = Path(given.suite).stem if given.suite.endswith((".yaml", ".yml")) else given.suite
    name = f"{suite}-ablation" if given.ablation else suite
    rows = run_benchmark(
        given.suite,
        out,
        data=Path(given.data) if given.data else None,
        methods=variants() if given.ablation else given.methods,
        seeds=range(given.seeds),
        jobs=given.jobs,
        source_model=given.source_model,
        measure_every=given.curve,
        redo=given.redo,
        name=name,
        trust=given.trust,
    )
    print(report(rows, out, name, ablation=given.ablation), end="")
    print(out / f"{name}.json")
    failed = list(dict.fromkeys(f"{row['method']} (seed {row['seed']})" for row in rows if "error" in row))
    if failed:
        raise TrainingError(
            f"{len(failed)} runs failed: {', '.join(failed)}; see {out}/SEED/METHOD.error.txt, and run the same "
            "command again to retry them"
        )
