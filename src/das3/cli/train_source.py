"""`das3 train-source`: train a source model on labelled images."""

from __future__ import annotations

from jsonargparse import Namespace

from das3.cli.help import Parser
from das3.cli.options import add_flags, arrange_training, require
from das3.dataclass_options import add_options, from_namespace
from das3.distributed import is_first_process
from das3.training.supervised import SourceRecipe, train_source

__all__ = ["HELP", "RECIPE", "add", "run"]

RECIPE = SourceRecipe

HELP = """
das3 train-source --images DIR --labels DIR --classes classes.json --out RUN
"""


def add(parser: Parser) -> None:
    """Declare the command's options."""
    add_options(parser, SourceRecipe)
    add_flags(parser, "resume", "quiet", "trust")
    arrange_training(
        parser,
        model=("model", "weights", "num-classes", "mean", "std"),
        images=("images", "labels", "classes", "class-map", "size"),
        output=("out", "resume", "quiet"),
        training=("steps", "lr", "batch-size", "seed", "device", "precision"),
        evaluation=("eval-images", "eval-labels"),
        help=("help", "help-all"),
    )


def run(given: Namespace) -> None:
    """Train, and print where the model is."""
    recipe = require(from_namespace(SourceRecipe, given), "images", "out")
    result = train_source(recipe, resume=given.resume, quiet=given.quiet, trust=given.trust)
    if is_first_process():
        print(f"model:   {result.folder / 'model'}")
        print(f"summary: {result.folder / 'summary.json'}")
