"""The recipe: every option of a run, its default and its check, in one place.

The command line, the YAML file, the Python call and the docs are all made from `Recipe` and the stages' options.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from das3.dataclass_options import add_options, frozen, plain_message
from das3.errors import DataError, RecipeError
from das3.recipes.old_names import FORMAT, refuse_old_names, up_to_date
from das3.registry import find_stage, stage_types
from das3.segmenter import LARGEST_SIDE
from das3.stages import StageOptions
from das3.stages.options import LoopOptions, option
from das3.text_files import read_yaml, refuse_odd_values

__all__ = [
    "ImageOptions",
    "ModelOptions",
    "Recipe",
    "RunOptions",
    "load_recipe",
    "recipe_from",
    "recipe_names",
    "recipe_path",
]


@dataclass(frozen=True)
class ModelOptions:
    """The model, and how its inputs and outputs are to be treated.

    Attributes:
        model: folder saved by Hugging Face, segmentation-models-pytorch or das3; Hugging Face hub id (owner/name);
            torchvision:NAME or smp:NAME; or your own code, package.module:function.
        weights: file with a state dict (.pt, .pth or .safetensors).
        model_args: arguments of the function that builds the network, as JSON.
        classifier: name(s) of the last layer(s), which stage 1 freezes; detected if not given.
        num_classes: number of classes; read from the model if not given.
        class_names: names of the classes.
        mean: mean that is subtracted from each channel; the model's own, or ImageNet's, if not given.
        std: standard deviation that each channel is divided by; as for --mean.
        input_max: largest value that the network was trained on, before mean and std, 1 or 255; for the values in image
            files see --pixel-range.
        in_channels: number of channels that the network takes; detected if not given.
        channels: meaning of the channels: rgb, bgr, grey (one channel), or bands (those of the images, any number).
        output_key: entry of the network's output that holds the logits.
        size: resize images to this shorter side, or to this height,width, before they enter the network; if not given,
            the model's input size, or else the images' own size.
    """

    model: str | None = None
    weights: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    classifier: list[str] | str | None = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_max: float | None = option(None, above=0, old="value_range")
    in_channels: int | None = option(None, low=1)
    channels: Literal["rgb", "bgr", "grey", "bands"] | None = None
    output_key: str | int | None = None
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class ImageOptions:
    """How image files are read.

    Attributes:
        pixel_range: values in the image files that are dark and bright: "auto" finds them in a sample of the images,
            "LOW,HIGH" gives them, "percentile:1,99" takes these percentiles of the sample, "dtype" all that the files'
            type can hold. One range for all images, kept with the model; 8-bit pictures need none.
        nodata: value of pixels without data in the image files, besides NaN and GeoTIFF's own tag.
        bands: bands of the image files that the network sees, in its order: numbers from 1, or names.
        rgb_bands: those of these bands that are red, green and blue, for colour changes and overlays; the first three
            if not given.
        on_bad_image: "stop" at an image that can't be read, or "skip" it: all images are then decoded once before the
            run, and those that are left out are counted and listed.
    """

    pixel_range: str | list[float | str] | None = None
    nodata: float | None = None
    bands: list[int | str] | None = None
    rgb_bands: list[int | str] | None = None
    on_bad_image: Literal["stop", "skip"] = option("stop", choices=("stop", "skip"))


@dataclass(frozen=True)
class RunOptions(LoopOptions, ImageOptions, ModelOptions):
    """Options of every run that trains, be it an adaptation or the training of a source model.

    Attributes:
        images: folder of images, a .txt file that lists them, tar files or a URL (s3://…), or a published data set
            (NAME:ROOT?split=SPLIT).
        out: folder for the run: model, summary, log, checkpoints.
        crop: height,width of training samples; if not given, the images' median size, at most 512 pixels.
        seed: seed of all random numbers.
        device: where to run; "auto" takes a GPU if there is one.
        devices: number of devices to train on, each with a process of its own; torchrun sets it itself.
        precision: floating-point precision; "auto" takes bf16 where the GPU has it, else 32.
        cache_gib: decoded images are kept in memory, the first ones, up to this many GiB.
        disk_cache_gib: those after them are kept in a file in the run folder, up to this many GiB and half of what is
            free there; it has no name, and is gone when the run ends.
        eval_images: images to measure mIoU on after each stage; never trained on.
        eval_labels: their labels, a folder with the same file names; not needed for a published data set.
        classes: class table of the labels, a JSON or YAML file.
        class_map: FILE.json[:key] that maps the labels' ids to the model's classes.
    """

    images: str | None = None
    out: str | None = None
    crop: tuple[int, int] | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = option(1, low=1, high=1024)
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    cache_gib: float = option(4.0, low=0, high=1_000_000)
    disk_cache_gib: float = option(16.0, low=0, high=1_000_000)
    eval_images: str | None = None
    eval_labels: str | None = None
    classes: str | None = None
    class_map: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_images is None and self.eval_labels is not None:
            raise RecipeError("--eval-labels needs --eval-images; give both or neither")
        if not 0 <= self.seed < 2**32:  # a larger one would share random streams with smaller ones' later phases
            raise RecipeError(f"seed must be at least 0 and below 2**32, got {self.seed}")
        if self.crop is not None and not (min(self.crop) >= 1 and max(self.crop) <= LARGEST_SIDE):
            raise RecipeError(f"crop must be a positive (height, width), at most {LARGEST_SIDE} each, got {self.crop}")

    def to_dict(self) -> dict[str, Any]:
        """Every option as plain values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_yaml(self) -> str:
        """The resolved options as text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Recipe(RunOptions):
    """Every option of an adaptation run.

    Attributes:
        ema_decay: decay of the exponential moving average (EMA) of the weights, which each stage passes on; 0 passes on
            the weights of the last step.
        stages: stages to run, in this order.
        guard: "best" hands back the incoming model, or what the stages made of it, whichever is judged best without
            labels; "stop" only takes back a stage that collapses; "off" hands back what the last stage left.
        report: write report.html at the end, which compares the incoming and the adapted model.
        measure_every: with --eval-images, also measure mIoU about every so many steps; 0 for never.
        logger: also send losses, mIoU and pictures to wandb or mlflow, through their own client and its settings.
        options: the stages' options by stage name, as far as they differ from their defaults.
    """

    ema_decay: float = 0.97
    stages: tuple[str, ...] = ("align", "selftrain", "propagate")
    report: bool = True
    measure_every: int = option(0, low=0)
    logger: Literal["wandb", "mlflow"] | None = None
    guard: Literal["best", "stop", "off"] = option("best", choices=("best", "stop", "off"))
    options: dict[str, StageOptions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise RecipeError("stages is empty; name at least one, e.g. --stages align,selftrain,propagate")
        for name in self.stages:
            find_stage(name)

    def options_of(self, stage: str) -> StageOptions:
        """Options of a stage: as given, else its defaults."""
        return self.options.get(stage) or find_stage(stage).Options()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every option of the stages that are run included; `recipe_from` reads it back."""
        plain = super().to_dict()
        del plain["options"]
        return (
            {"format": FORMAT}
            | plain
            | {_key(stage): _plain(asdict(self.options_of(stage))) for stage in dict.fromkeys(self.stages)}
        )


def _key(stage: str) -> str:
    """Name of a stage's options in files and in Python: those of `shot-im` are under shot_im."""
    return stage.replace("-", "_")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def add_recipe_options(parser: ArgumentParser, stages: Collection[str] | None = None) -> None:
    """The recipe's options, then those of all stages, or of some, under the stage's name."""
    add_options(parser, Recipe, skip={"options"})
    for name, stage in stage_types().items():
        if stages is None or name in stages:
            add_options(parser, stage.Options, name)


def recipe_of(parsed: Namespace) -> Recipe:
    """The recipe that parsed arguments describe."""
    values = {f.name: frozen(parsed[f.name]) for f in fields(Recipe) if f.name != "options"}
    options = {}
    for name, stage in stage_types().items():
        if _key(name) not in parsed:
            continue
        given = {key: frozen(value) for key, value in parsed[_key(name)].as_dict().items()}
        try:
            chosen = stage.Options(**given)
        except RecipeError as error:
            raise RecipeError(f"{name}.{error}") from error
        if chosen != stage.Options():
            options[name] = chosen
    return Recipe(**values, options=options)


def recipe_from(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Check plain values against the recipe's fields.

    Args:
        values: field → value; stages' options are mappings under the stage's name.
        where: name of the source of the values, for error messages.

    Raises:
        RecipeError: if a name is unknown or out of date, or a value does not fit.
    """
    refuse_old_names(values, where, Recipe)
    given = {n: value for n, value in values.items() if n != "format" and (value is not None or n not in _stage_keys())}
    for name in _stage_keys() & given.keys():
        if not isinstance(given[name], Mapping):
            raise RecipeError(
                f"{where}: {name} is {str(given[name])[:50]!r}, not a stage's options; write {name}: {{lr: 0.001}}"
            )
    stages = frozenset(name for name in stage_types() if name in given or _key(name) in given)
    try:
        return recipe_of(_recipe_parser(stages).parse_object(given))
    except ArgumentError as error:
        raise RecipeError(f"{where}: {plain_message(error)}") from error


@cache
def _stage_keys() -> frozenset[str]:
    return frozenset(map(_key, stage_types()))


@cache
def _recipe_parser(stages: frozenset[str]) -> ArgumentParser:
    """For recipes that set options of these stages alone: one for all takes half a second to build and to parse by."""
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_options(parser, stages)
    return parser


def recipe_path(source: str | Path) -> Path:
    """Path of a recipe: the file itself, or the recipe of that name that comes with das3.

    Raises:
        RecipeError: if there is neither.
    """
    shipped = Path(str(files("das3.recipes").joinpath(f"{source}.yaml")))
    for path in (Path(source), shipped):
        if path.is_file():
            return path
    if os.path.lexists(source):  # a folder, a named pipe, a link to itself: reading it says so
        return Path(source)
    raise RecipeError(f"no recipe file {source}; recipes that come with das3, by name: {', '.join(recipe_names())}")


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Values of a recipe file, or of one of the recipes that come with das3, by name.

    Raises:
        RecipeError: if there is no such recipe, it is no YAML mapping, or holds NaN or infinity.
    """
    try:
        values = read_yaml(recipe_path(source))
        values = {} if values is None else values
        refuse_odd_values(values, source)
    except DataError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(values, dict):
        raise RecipeError(f"{source} must be a mapping of options (name: value)")
    return up_to_date(values, str(source), Recipe)


def recipe_names() -> list[str]:
    """Names of the recipes that come with das3."""
    return sorted(f.name.removesuffix(".yaml") for f in files("das3.recipes").iterdir() if f.name.endswith(".yaml"))
