"""`das3 demo`: the whole of it on rendered streets, in minutes, with no data."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.benchmark.demo import print_table, run_demo
from das3.cli.options import add_flags

__all__ = ["HELP", "add", "run"]

HELP = """Watch a model fail, be adapted without its source data, and recover.

Needs no data and no GPU: streets are rendered, a small model is trained on sunny ones and adapted to dusk.
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--out", type=str, default="runs/demo", help="folder of the demo; one that was interrupted goes on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the source model and the adaptation")
    add_flags(parser, "quiet")


def run(given: Namespace) -> None:
    """Run, print the table, and say where the pictures are."""
    out = Path(given.out)
    print_table(run_demo(out, seed=given.seed, quiet=given.quiet))
    for name in ("before_after.png", "domains.png", "summary.json", "das3/report.html", "das3/model"):
        print(out / name)
