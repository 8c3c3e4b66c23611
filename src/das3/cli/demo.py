"""`das3 demo`: everything on rendered streets, in two minutes, without data."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.benchmark.demo import print_table, run_demo
from das3.cli.options import add_flags

__all__ = ["HELP", "add", "run"]

HELP = """
Streets are rendered, a small model is trained on sunny ones and adapted to dusk, in two minutes on two CPU cores.
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--out", type=str, default="runs/demo", help="folder of the demo; an interrupted demo continues"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the source model and the adaptation")
    add_flags(parser, "quiet")


def run(given: Namespace) -> None:
    """Run the demo, print its table and the paths of its pictures."""
    out = Path(given.out)
    print_table(run_demo(out, seed=given.seed, quiet=given.quiet))
    for name in ("before_after.png", "domains.png", "summary.json", "das3/report.html", "das3/model"):
        print(out / name)
