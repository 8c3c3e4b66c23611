"""`das3 report`: write the report of a finished run again, or for a run that has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from das3.cli.help import Parser
from das3.cli.options import add_flags
from das3.data.bad_images import sound_images
from das3.data.open import open_images
from das3.errors import ModelError, RecipeError
from das3.models import load_segmenter
from das3.models.image_reading import fit_images
from das3.recipe import Recipe, recipe_from
from das3.report import write_report
from das3.report.run_folder import RunFolder
from das3.segmenter import Segmenter
from das3.training.launch import open_model
from das3.training.loop import make_fabric
from das3.training.progress import Display

__all__ = ["HELP", "add", "run"]

HELP = """
das3 report RUN
das3 report RUN --model M --images DIR
"""


def add(parser: Parser) -> None:
    """Declare the command's options."""
    parser.add_argument("folder", metavar="RUN", type=str, help="the run folder")
    parser.add_argument("--model", type=str, default=None, help="the incoming model; that of the recipe by default")
    parser.add_argument("--weights", type=str, default=None, help="its state dict, if --model names only the network")
    parser.add_argument("--images", type=str, default=None, help="target images; those of the recipe by default")
    parser.add_argument("--out", type=str, default=None, help="the HTML file; RUN/report.html by default")
    add_flags(parser, "quiet")


def run(given: Namespace) -> None:
    """Use the predictions that the run kept, unless others are asked for or some are missing."""
    folder = RunFolder.open(given.folder)
    with Display(quiet=given.quiet) as display:
        fresh = given.model or given.images or not folder.is_captured
        models = _models(folder, given) if fresh else {}
        report = write_report(folder.folder, out=given.out, track=display.track, **models)
    print(f"report: {report.path}")


def _models(folder: RunFolder, given: Namespace) -> dict[str, Any]:
    """Both models and the images, opened as the recipe says where the command line says nothing."""
    recipe = recipe_from(folder.recipe, where=str(folder.folder / "recipe.yaml"))
    if given.model:
        recipe = replace(recipe, model=given.model, weights=given.weights, model_args={})
    where = given.images or recipe.images
    if where is None or recipe.model is None:
        raise RecipeError(
            f"the recipe of {folder.folder} does not name "
            f"{'the images; name them with --images' if where is None else 'the model; name it with --model'}"
        )
    device = make_fabric(recipe.device, "32").device
    incoming, adapted = open_model(recipe), _adapted(folder.folder, recipe)
    images = open_images(where)
    if recipe.on_bad_image == "skip":
        images, _, _ = sound_images(images)
    images = fit_images(images, adapted, recipe).resized(incoming.preprocess.size)
    incoming.preprocess = replace(incoming.preprocess, rgb=adapted.preprocess.rgb)
    return {"incoming": incoming.to(device), "adapted": adapted.to(device), "images": images}


def _adapted(folder: Path, recipe: Recipe) -> Segmenter:
    """The run's model; a network that came in as a Python object is built as the incoming one is."""
    try:
        return load_segmenter(folder)
    except ModelError:
        return open_model(replace(recipe, weights=str(folder / "model")))
