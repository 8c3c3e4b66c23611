"""`das3 tables`: one comparison of several suites' results."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.benchmark.report import put_into, report, summary
from das3.benchmark.rows import read_rows

__all__ = ["HELP", "add", "run"]

HELP = """
das3 tables --rows benchmarks/results --page benchmarks/README.md
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--rows",
        type=list[str],
        required=True,
        help="result files of `das3 benchmark` (OUT/SUITE.json), or folders of them",
    )
    parser.add_argument("--out", type=str, default=None, help="folder to also write tables and plots to")
    parser.add_argument(
        "--page", type=str, default=None, help="Markdown page to put the tables into, between its two marker comments"
    )


def run(given: Namespace) -> None:
    """Read, write and print."""
    rows, ablations = read_rows([Path(path) for path in given.rows])
    text = summary(rows, ablations)
    print(text, end="")
    if given.out:
        for name, chosen in (("results", rows), ("ablation", ablations)):
            if chosen:
                report(chosen, Path(given.out), name, ablation=chosen is ablations)
    if given.page:
        put_into(Path(given.page), text)
