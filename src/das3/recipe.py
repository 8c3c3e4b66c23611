"""The recipe: every option of a run, its default and its check, in one place.

The command line, the YAML file, the Python call and the docs are all made from `Recipe` and the stages' options.
"""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from das3.errors import RecipeError
from das3.recipes.old_names import FORMAT, refuse_old_names, up_to_date
from das3.registry import BASELINES, find_stage, stage_types
from das3.stages import StageOptions
from das3.stages.options import LoopOptions

__all__ = [
    "ModelOptions",
    "Recipe",
    "RunOptions",
    "add_options",
    "from_namespace",
    "load_recipe",
    "recipe_from",
    "recipe_names",
    "recipe_path",
]

T = TypeVar("T")


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
class RunOptions(LoopOptions, ModelOptions):
    """What every run that trains has, be it an adaptation or a source training.

    Attributes:
        images: folder of images, or a .txt file that lists them.
        out: folder of the run.
        crop: (height, width) of training samples; the images' median size, at most 512 pixels, when not given.
        seed: everything random depends on it.
        device: auto, cpu, cuda or mps.
        devices: how many of them, each with a process and its part of every batch; torchrun's number goes first.
        precision: auto, 32, bf16 or 16 (mixed).
        cache_gib: images are decoded once and kept in memory if they fit into this many GiB.
        eval_images: images to measure mIoU on; never trained on.
        eval_labels: their labels, a parallel folder; none for a published data set.
        classes: class table of the labels, a JSON or YAML file.
        class_map: FILE.json[:key] that maps the labels' ids to the model's classes.
    """

    images: str | None = None
    out: str | None = None
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_images is None and self.eval_labels is not None:
            raise RecipeError("--eval-labels needs --eval-images; give both or neither")
        if not 0 <= self.seed < 2**32:  # a larger one would share random streams with smaller ones' later phases
            raise RecipeError(f"seed must be at least 0 and below 2**32, got {self.seed}")
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(f"crop must be a positive (height, width), got {self.crop}")

    def to_dict(self) -> dict[str, Any]:
        """Every option as plain values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_yaml(self) -> str:
        """The resolved options as text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Recipe(RunOptions):
    """Everything about an adaptation run.

    Attributes:
        ema_decay: decay of the moving average of the weights that a stage hands on; 0 hands on those of its last step.
        stages: what is run, in this order.
        report: write report.html at the end, which compares the incoming and the adapted model.
        options: the stages' options by stage name, as far as they differ from their defaults.
    """

    ema_decay: float = 0.97
    stages: tuple[str, ...] = ("align", "selftrain", "propagate")
    report: bool = True
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
    """Where a stage's options stand in files and in Python: those of `shot-im` under shot_im."""
    return stage.replace("-", "_")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def add_options(
    parser: ArgumentParser, kind: type, prefix: str = "", skip: Collection[str] = (), *, listed: bool = True
) -> None:
    """Give a parser one option per field of a dataclass, its help taken from the docstrings of the class's bases.

    A field `eval_images` becomes `--eval-images`; with the prefix "align", `lr` becomes `--align.lr`. Options that are
    not listed are taken but left out of --help.
    """
    hints, helps = get_type_hints(kind), _field_docs(kind)
    dot = f"{prefix}." if prefix else ""
    for f in fields(kind):
        if f.name not in skip:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            option = f"--{dot}{f.name.replace('_', '-')}"
            parser.add_argument(option, type=hints[f.name], default=default, help=helps[f.name] if listed else SUPPRESS)


def _field_docs(kind: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for entry in docstring_parser.parse(base.__doc__ or "").params:
            docs[entry.arg_name] = " ".join((entry.description or "").split())
    return docs


def add_recipe_options(parser: ArgumentParser) -> None:
    """The recipe's options, then each stage's under the stage's name; --help would be endless with the baselines'."""
    add_options(parser, Recipe, skip={"options"})
    for name, stage in stage_types().items():
        add_options(parser, stage.Options, name, listed=stage not in BASELINES)


def from_namespace(kind: type[T], parsed: Namespace) -> T:
    """An instance of a dataclass from the parsed options that `add_options` declared for it."""
    return kind(**{f.name: _frozen(parsed[f.name]) for f in fields(kind) if f.name in parsed})  # type: ignore[arg-type]


def recipe_of(parsed: Namespace) -> Recipe:
    """The recipe that parsed arguments say."""
    values = {f.name: _frozen(parsed[f.name]) for f in fields(Recipe) if f.name != "options"}
    options = {}
    for name, stage in stage_types().items():
        given = {key: _frozen(value) for key, value in parsed[_key(name)].as_dict().items()}
        try:
            chosen = stage.Options(**given)
        except RecipeError as error:
            raise RecipeError(f"{name}.{error}") from error
        if chosen != stage.Options():
            options[name] = chosen
    return Recipe(**values, options=options)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def recipe_from(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Check plain values against the recipe's fields.

    Args:
        values: field → value; stages' options are mappings under the stage's name.
        where: what to call the source of the values in an error.

    Raises:
        RecipeError: if a name is unknown or out of date, or a value does not fit.
    """
    refuse_old_names(values, where)
    try:
        return recipe_of(_recipe_parser().parse_object({k: v for k, v in values.items() if k != "format"}))
    except ArgumentError as error:
        raise RecipeError(f"{where}: {plain_message(error)}") from error


@cache
def _recipe_parser() -> ArgumentParser:
    """Building it takes a fraction of a second, so it is built once."""
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_options(parser)
    return parser


def plain_message(error: ArgumentError) -> str:
    """The parser's complaint in one line a person can act on."""
    text = " ".join(str(error).split())
    if match := re.search(r'[Kk]ey "([\w.]+)": (.*)', text):
        name, detail = match.groups()
        if value := re.search(r"Given value: (.*)$|Got value: (.*)$", detail):
            detail = f"{value.group(1) or value.group(2)!s} does not fit"
        return f"{name.replace('_', '-')}: {detail}; see `das3 adapt --help`"
    return text


def recipe_path(source: str | Path) -> Path:
    """File of a recipe: the path itself, or the recipe of that name that comes with das3.

    Raises:
        RecipeError: if there is neither.
    """
    shipped = Path(str(files("das3.recipes").joinpath(f"{source}.yaml")))
    for path in (Path(source), shipped):
        if path.is_file():
            return path
    raise RecipeError(f"no recipe file {source}; recipes that come with das3, by name: {', '.join(recipe_names())}")


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Values of a recipe file, or of one of the recipes that come with das3, by name.

    Raises:
        RecipeError: if there is no such recipe or it is no YAML mapping.
    """
    try:
        values = yaml.safe_load(recipe_path(source).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{source} must hold options (name: value), one a line")
    return up_to_date(values, str(source))


def recipe_names() -> list[str]:
    """Names of the recipes that come with das3."""
    return sorted(f.name.removesuffix(".yaml") for f in files("das3.recipes").iterdir() if f.name.endswith(".yaml"))
