"""`das3 adapt`: a model and a folder of images in, the adapted model and a report out."""

from __future__ import annotations

from jsonargparse import Namespace

from das3.api import adapt
from das3.cli.help import Parser
from das3.cli.options import add_flags, add_recipe, arrange_training, require
from das3.distributed import is_first_process
from das3.recipe import Recipe, recipe_of
from das3.training.cost_estimate import dry_run

__all__ = ["HELP", "RECIPE", "add", "run"]

RECIPE = Recipe

HELP = """
das3 adapt --model M --images DIR --out RUN
das3 adapt --model M --images 'cityscapes:ROOT?split=train' --recipe gta5-cityscapes --dry-run
das3 adapt --out RUN --resume
"""


def add(parser: Parser) -> None:
    """Declare the command's options."""
    add_recipe(parser)
    add_flags(parser, "resume", "quiet", "state-dict", "dry-run", "trust")
    arrange_training(
        parser,
        model=("model", "weights", "classifier", "num-classes", "mean", "std"),
        images=("images", "size"),
        output=("out", "state-dict", "report", "resume", "quiet", "dry-run"),
        training=(
            *("recipe", "stages", "align.steps", "selftrain.steps", "propagate.steps"),
            *("batch-size", "seed", "device", "precision"),
        ),
        evaluation=("eval-images", "eval-labels", "classes", "class-map", "measure-every"),
        help=("help", "help-all", "help-stage"),
    )


def run(given: Namespace) -> None:
    """Adapt, and print where the result is."""
    if given.dry_run:
        print(dry_run(require(recipe_of(given), "model", "images"), trust=given.trust).text())
        return
    recipe = require(recipe_of(given), "model", "images", "out")
    result = adapt(
        recipe=recipe, resume=given.resume, quiet=given.quiet, state_dict=given.state_dict, trust=given.trust
    )
    if is_first_process():
        print(f"adapted model: {result.folder / 'model'}")
        print(f"summary:       {result.folder / 'summary.json'}")
        if (result.folder / "report.html").is_file():
            print(f"report:        {result.folder / 'report.html'}")
