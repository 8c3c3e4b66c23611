"""The recipe: every option of a run, its default and its check, in one place.

The command line, the YAML file, the Python call and the docs are all made from `Recipe` and the stages' options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from das3.engine import LoopOptions
from das3.errors import RecipeError
from das3.stages import StageOptions, find_stage, stage_types

__all__ = ["ModelOptions", "Recipe", "load_recipe", "recipe_from", "recipe_names"]


@dataclass(frozen=True)
class ModelOptions:
    """What model it is, and how it wants to be used.

    Attributes:
        model: a folder saved by Hugging Face, segmentation-models-pytorch or das3; a hub id; `torchvision:NAME`,
            `smp:NAME`, `das3:NAME`; or `package.module:function` of your own code.
        weights: file with a state dict (.pt, .pth or .safetensors).
        model_args: arguments of the function that builds the network.
        classifier: name(s) of the last layer(s); found by itself when not given.
        num_classes: number of classes; read from the model when not given.
        class_names: names of the classes.
        mean: mean that is subtracted from each channel.
        std: standard deviation that divides each channel.
        value_range: largest pixel value that the network was trained on, 1 or 255.
        channels: channel order, rgb or bgr.
        output_key: entry of the network's output that holds the logits.
        size: images are resized to this shorter side, or to this (height, width), before the network; their own size
            when neither this nor the model says.
    """

    model: str | None = None
    weights: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    classifier: list[str] | str | None = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    value_range: float | None = None
    channels: Literal["rgb", "bgr"] | None = None
    output_key: str | int | None = None
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Recipe(LoopOptions, ModelOptions):
    """Everything about an adaptation run.

    Attributes:
        images: folder of unlabelled target images, or a .txt file that lists them.
        out: folder of the run.
        stages: what is run, in this order.
        crop: (height, width) of training samples; the images' median size, at most 512 pixels, when not given.
        seed: everything random depends on it.
        device: auto, cpu, cuda or mps.
        devices: how many of them.
        precision: auto, 32, bf16 or 16 (mixed).
        cache_gib: images are decoded once and kept in memory if they fit into this many GiB.
        eval_images: images to measure mIoU on after each stage; never trained on.
        eval_labels: their labels, a parallel folder.
        classes: class table of the labels, a JSON or YAML file.
        class_map: FILE.json[:key] that maps the labels' ids to the model's classes.
        options: the stages' options by stage name, as far as they differ from their defaults.
    """

    images: str | None = None
    out: str | None = None
    stages: tuple[str, ...] = ("align", "selftrain", "propagate")
    crop: tuple[int, int] | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    cache_gib: float = 4.0
    eval_images: str | None = None
    eval_labels: str | None = None
    classes: str | None = None
    class_map: str | None = None
    options: dict[str, StageOptions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise RecipeError("stages is empty; name at least one, e.g. stages=align,selftrain,propagate")
        for name in self.stages:
            find_stage(name)
        if (self.eval_images is None) != (self.eval_labels is None):
            raise RecipeError("eval_images and eval_labels go together; give both or neither")
        if self.seed < 0:
            raise RecipeError(f"seed can't be negative, got {self.seed}")
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(f"crop must be a positive (height, width), got {self.crop}")

    def options_of(self, stage: str) -> StageOptions:
        """Options of a stage: as given, else its defaults."""
        return self.options.get(stage) or find_stage(stage).Options()

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, every option of the stages that are run included; `recipe_from` reads it back."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        plain |= {stage: asdict(self.options_of(stage)) for stage in dict.fromkeys(self.stages)}
        return {key: _plain(value) for key, value in plain.items()}

    def to_yaml(self) -> str:
        """The resolved recipe as text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def add_recipe_arguments(parser: ArgumentParser, *, stages: bool = True) -> None:
    """Give a parser one option per field of the recipe and, nested under its name, of every stage."""
    parser.add_class_arguments(Recipe, skip={"options"})
    for name, stage in stage_types().items() if stages else ():
        parser.add_class_arguments(stage.Options, name)


def recipe_of(parsed: Namespace) -> Recipe:
    """The recipe that parsed arguments say."""
    values = {f.name: parsed[f.name] for f in fields(Recipe) if f.name != "options"}
    values["stages"] = tuple(values["stages"])
    options = {}
    for name, stage in stage_types().items():
        given = parsed[name].as_dict()
        if given != _plain(asdict(stage.Options())):
            options[name] = stage.Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    return Recipe(**values, options=options)


def recipe_from(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Check plain values against the recipe's fields.

    Args:
        values: field → value; stages' options are mappings under the stage's name.
        where: what to call the source of the values in an error.

    Raises:
        RecipeError: if a name is unknown or a value does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_arguments(parser)
    try:
        return recipe_of(parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Values of a recipe file, or of one of the recipes that come with das3, by name.

    Raises:
        RecipeError: if there is no such recipe or it is no YAML mapping.
    """
    path = Path(source)
    if not path.is_file():
        shipped = files("das3.recipes").joinpath(f"{source}.yaml")
        if not shipped.is_file():
            raise RecipeError(f"no recipe file {source}; there is also, by name: {', '.join(recipe_names())}")
        text = shipped.read_text()
    else:
        text = path.read_text()
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{source} must hold options (name: value), one a line")
    return values


def recipe_names() -> list[str]:
    """Names of the recipes that come with das3."""
    return sorted(f.name.removesuffix(".yaml") for f in files("das3.recipes").iterdir() if f.name.endswith(".yaml"))

