"""`das3 train-source`: train a source model on labelled images."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from das3.cli.options import add_flags
from das3.distributed import is_first_process
from das3.recipe import add_options, from_namespace
from das3.training.supervised import SourceRecipe, train_source

__all__ = ["HELP", "add", "run"]

HELP = """Train a model on labelled images, to have something to adapt.

das3 train-source --images DIR --labels DIR --classes classes.json --out RUN
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    add_options(parser, SourceRecipe)
    add_flags(parser, "resume", "quiet", "trust")


def run(given: Namespace) -> None:
    """Train, and say where the model is."""
    result = train_source(
        from_namespace(SourceRecipe, given), resume=given.resume, quiet=given.quiet, trust=given.trust
    )
    if is_first_process():
        print(f"model:   {result.folder / 'model'}")
        print(f"summary: {result.folder / 'summary.json'}")
