"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentParser, Namespace

from das3.cli.help import Parser
from das3.errors import RecipeError
from das3.models.trust import refuse_code
from das3.recipe import ImageOptions, ModelOptions, RunOptions, add_recipe_options, load_recipe, recipe_from

__all__ = [
    "InferenceArguments",
    "add_flags",
    "add_recipe",
    "arrange_training",
    "recipe_first",
    "refuse_unnamed_code",
    "require",
]

AnyRecipe = TypeVar("AnyRecipe", bound=RunOptions)

_FLAGS = {
    "resume": "continue the run in --out where it stopped; its options need not be given again",
    "quiet": "show no progress",
    "trust": "run the code that a model folder, a hub repository or a recipe names for its network; only for your own",
    "dry-run": "check everything, estimate the time and memory of the run, and write nothing",
    "state-dict": "also save the weights as a plain state dict, model.pt",
}

_MORE = {
    "model": ("model-args", "class-names", "input-max", "channels", "in-channels", "output-key"),
    "images": ("pixel-range", "nodata", "bands", "rgb-bands", "on-bad-image"),
    "training": (
        *("optimizer", "weight-decay", "power", "warmup", "clip", "ema-decay", "accumulate", "crop"),
        *("checkpoint-activations", "compile", "channels-last", "devices", "workers"),
        *("cache-gib", "disk-cache-gib"),
        *("log-every", "checkpoint-every"),
    ),
}


@dataclass(frozen=True)
class InferenceArguments(ImageOptions, ModelOptions):
    """How a model predicts, and on what.

    Attributes:
        flip: average the predictions of each image and of its mirror image.
        scales: average the predictions at these scales, e.g. 0.75,1,1.25.
        tile: predict in overlapping square tiles of this side, in pixels; large images are tiled automatically.
        device: where to run; "auto" takes a GPU if there is one.
        precision: floating-point precision; "auto" takes bf16 where the GPU has it, else 32.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32", "bf16", "16"] = "auto"

    def how(self) -> dict[str, Any]:
        """Arguments of `das3.evaluation.evaluate.evaluate`, and `das3.evaluation.predict.PredictOptions`."""
        return {"flip": self.flip, "scales": self.scales, "tile": self.tile}


def add_flags(parser: ArgumentParser, *names: str) -> None:
    """Options without a value."""
    for name in names:
        parser.add_argument(f"--{name}", action="store_true", help=_FLAGS[name])


def add_recipe(parser: ArgumentParser) -> None:
    """`--recipe` and every field of the recipe."""
    parser.add_argument(
        "--recipe", action="config", help="recipe file, or name of a recipe (`das3 recipes`); other options override it"
    )
    add_recipe_options(parser)


def arrange_training(parser: Parser, **groups: tuple[str, ...]) -> None:
    """Show these options in --help, under the titles that they are given as, and all others in --help-all."""
    parser.arrange(groups, _MORE)


def recipe_first(arguments: list[str]) -> list[str]:
    """Check `--recipe X`, replace it by its contents and move it to the front, so that other options override it."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--recipe":
            rest = arguments[i + 1 :] if equals else arguments[i + 2 :]
            source = value if equals else (arguments[i + 1 : i + 2] or [""])[0]
            values = load_recipe(source)
            recipe_from(values, where=source)
            if any(argument.partition("=")[0] == "--recipe" for argument in rest):
                raise RecipeError("--recipe is given twice; put what they say into one file")
            return [f"--recipe={json.dumps(values)}", *arguments[:i], *rest]
    return arguments


def refuse_unnamed_code(given: Namespace, arguments: Sequence[str]) -> None:
    """Stop if the model is code that does not stand on the command line itself, but in a recipe.

    Args:
        given: parsed options of a command.
        arguments: the command line.

    Raises:
        ModelError: unless --trust is on the command line.
    """

    def values(name: str) -> list[str]:
        written = [a.removeprefix(f"{name}=") for a in arguments if a.startswith(f"{name}=")]
        return written + [value for a, value in pairwise(arguments) if a == name]

    if given.get("model") not in values("--model"):
        where = " ".join(["recipe", *values("--recipe")])
        refuse_code(given.get("model"), where, trust="--trust" in arguments)


def require(recipe: AnyRecipe, *names: str) -> AnyRecipe:
    """The recipe, if these fields have a value.

    Raises:
        RecipeError: naming the option that is missing.
    """
    for name in names:
        if getattr(recipe, name) is None:
            raise RecipeError(f"--{name.replace('_', '-')} is missing; see --help")
    return recipe
