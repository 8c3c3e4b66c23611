"""das3.json: what a weights file alone does not say about a network, kept beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from das3 import __version__
from das3.data.pixels import Pixels
from das3.errors import ModelError
from das3.files import write_atomically
from das3.segmenter import LARGEST_SIDE, Origin, Preprocess, Segmenter

__all__ = ["METADATA_FILE", "ModelMetadata", "read_metadata", "write_metadata"]

METADATA_FILE = "das3.json"

_RENAMED = {"value_range": "input_max"}  # fields of the preprocessing under the names that older files have


@dataclass(frozen=True)
class ModelMetadata:
    """Everything `Segmenter` wants to know of a network, None where it is to be found out.

    Attributes are those of `Segmenter`.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    class_names: tuple[str, ...] | None = None
    classifier: tuple[str, ...] | None = None
    output_key: str | int | None = None
    align_corners: bool = False
    divisor: int | None = None
    square: bool | None = None
    origin: Origin = field(default_factory=lambda: Origin("object", ""))
    in_channels: int | None = None
    pixels: Pixels | None = None

    @classmethod
    def of(cls, segmenter: Segmenter) -> ModelMetadata:
        """The card of a finished segmenter, which builds an equal one around the same network."""
        return cls(
            segmenter.preprocess,
            segmenter.class_names,
            segmenter.classifier,
            segmenter.output_key,
            segmenter.align_corners,
            segmenter.divisor,
            segmenter.square,
            segmenter.origin,
            segmenter.in_channels,
            segmenter.pixels,
        )

    def segmenter(self, model: nn.Module) -> Segmenter:
        """Wrap a network."""
        return Segmenter(
            model,
            preprocess=self.preprocess,
            classifier=self.classifier,
            class_names=self.class_names,
            output_key=self.output_key,
            align_corners=self.align_corners,
            divisor=self.divisor,
            square=self.square,
            origin=self.origin,
            in_channels=self.in_channels,
            pixels=self.pixels,
        )


def write_metadata(card: ModelMetadata, folder: Path) -> None:
    """Write das3.json.

    Raises:
        ModelError: if an argument of the network's builder can't be written as JSON.
    """
    values = {
        "das3": __version__,
        "kind": card.origin.kind,
        "model": card.origin.spec,
        "model_args": card.origin.model_args,
        "nesting": card.origin.nesting,
        "prefix": card.origin.prefix,
        "preprocess": asdict(card.preprocess),
        "preprocess_from": card.origin.preprocess,
        "class_names": card.class_names,
        "classifier": card.classifier,
        "output_key": card.output_key,
        "align_corners": card.align_corners,
        "divisor": card.divisor,
        "square": card.square,
        "in_channels": card.in_channels,
        "pixels": asdict(card.pixels) if card.pixels else None,
    }
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise ModelError(f"--model-args hold something that JSON can't ({error}); give plain values") from None
    write_atomically(folder / METADATA_FILE, text + "\n")


def read_metadata(folder: Path) -> ModelMetadata | None:
    """Read das3.json, None if the folder has none.

    Raises:
        ModelError: if it is damaged.
    """
    path = folder / METADATA_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        _check(values)
        return ModelMetadata(
            preprocess=_preprocess(values["preprocess"]),
            class_names=_names(values["class_names"]),
            classifier=_names(values["classifier"]),
            output_key=values["output_key"],
            align_corners=values["align_corners"],
            divisor=values["divisor"],
            square=values["square"],
            in_channels=values.get("in_channels"),
            pixels=_pixels(values.get("pixels")),
            origin=Origin(
                values["kind"],
                values["model"],
                values["model_args"],
                values["nesting"],
                values["prefix"],
                preprocess=values.get("preprocess_from", METADATA_FILE),
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ModelError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: damaged ({reason}); write it again with das3, or delete it and give options"
        ) from None


def _check(values: Mapping[str, Any]) -> None:
    """Refuse values that das3 never writes.

    Raises:
        ValueError: naming the first.
    """
    if not isinstance(values, Mapping):
        raise ValueError("no mapping")

    def is_side(value: object) -> bool:
        return type(value) is int and 0 < value <= LARGEST_SIDE

    def are_texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    size = values["preprocess"].get("size") if isinstance(values["preprocess"], Mapping) else None
    fits = {
        "kind": values["kind"] in ("huggingface", "smp", "plain", "object"),
        "model": isinstance(values["model"], str),
        "model_args": isinstance(values["model_args"], Mapping),
        "nesting": are_texts(values["nesting"]),
        "prefix": isinstance(values["prefix"], str),
        "preprocess_from": isinstance(values.get("preprocess_from", ""), str),
        "preprocess": isinstance(values["preprocess"], Mapping) and _all_finite(values["preprocess"]),
        "preprocess.size": size is None
        or is_side(size)
        or (isinstance(size, list) and len(size) == 2 and all(map(is_side, size))),
        "class_names": values["class_names"] is None or are_texts(values["class_names"]),
        "classifier": values["classifier"] is None or are_texts(values["classifier"]),
        "output_key": isinstance(values["output_key"], str | int | None),
        "align_corners": isinstance(values["align_corners"], bool),
        "divisor": values["divisor"] is None or is_side(values["divisor"]),
        "square": isinstance(values["square"], bool | None),
        "in_channels": values.get("in_channels") is None or is_side(values["in_channels"]),
        "pixels": values.get("pixels") is None or isinstance(values["pixels"], Mapping),
    }
    for name, ok in fits.items():
        if not ok:
            raise ValueError(f"{name} can't be {values.get(name, size)!r}"[:150])


def _all_finite(values: object) -> bool:
    if isinstance(values, Mapping):
        return all(map(_all_finite, values.values()))
    if isinstance(values, list):
        return all(map(_all_finite, values))
    return not isinstance(values, int | float) or (math.isfinite(values) and abs(values) < 1e30)


def _names(values: list[str] | None) -> tuple[str, ...] | None:
    return tuple(values) if values else None


def _pixels(values: Mapping[str, Any] | None) -> Pixels | None:
    if not values:
        return None
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Pixels(**lists)


def _preprocess(values: Mapping[str, Any]) -> Preprocess:
    lists: dict[str, Any] = {_RENAMED.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Preprocess(**lists)
