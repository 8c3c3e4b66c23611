"""`das3 data`: published data sets on disk."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from das3.cli.options import add_flags
from das3.data.check import check_dataset
from das3.data.published import DATASETS
from das3.training.progress import Display

__all__ = ["HELP", "add", "run"]

HELP = f"""
das3 data check NAME ROOT --sheet sheet.png

NAME is one of {", ".join(DATASETS)}. The exit status is 0 if the data set is complete and readable, 1 if not.
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("action", choices=("check",), help="count images and labels, read a sample, report problems")
    parser.add_argument("name", type=str, help="name of the data set")
    parser.add_argument("root", type=str, help="its folder, laid out as its archives unpack")
    parser.add_argument("--split", type=str | None, default=None, help="check only this split, e.g. val")
    parser.add_argument("--condition", type=str | None, default=None, help="check only this condition or city")
    parser.add_argument("--classes", type=int | None, default=None, help="number of label classes: 19, 16 or 13")
    parser.add_argument("--sheet", type=str | None, default=None, help="PNG file for a sheet of images and labels")
    parser.add_argument("--sample", type=int, default=200, help="images and labels to read per split; 0 for all")
    add_flags(parser, "quiet")


def run(given: Namespace) -> int:
    """Check, print the report; returns 0 if the data set is complete and readable, 1 if not."""
    with Display(quiet=given.quiet) as display:
        report = check_dataset(
            given.name,
            given.root,
            given.sheet,
            split=given.split,
            condition=given.condition,
            classes=given.classes,
            sample=given.sample if given.sample > 0 else None,
            progress=display.track,
        )
    print(report.text())
    return 0 if report.ok else 1
