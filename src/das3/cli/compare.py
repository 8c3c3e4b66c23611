"""`das3 compare`: several runs side by side in one page."""

from __future__ import annotations

from jsonargparse import Namespace

from das3.cli.help import Parser
from das3.report import write_comparison

__all__ = ["HELP", "add", "run"]

HELP = """
das3 compare RUN RUN --out compare.html
"""


def add(parser: Parser) -> None:
    """Declare the command's options."""
    parser.add_argument("folders", metavar="RUN", type=str, nargs="+", help="the run folders, two or more")
    parser.add_argument("--out", type=str, required=True, help="the HTML file")


def run(given: Namespace) -> None:
    """Write the page."""
    print(f"comparison: {write_comparison(given.folders, given.out).path}")
