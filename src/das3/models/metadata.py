"""das3.json: what a weights file alone does not say about a network, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from das3 import __version__
from das3.errors import ModelError
from das3.segmenter import Origin, Preprocess, Segmenter

__all__ = ["METADATA_FILE", "ModelMetadata", "read_metadata", "write_metadata"]

METADATA_FILE = "das3.json"


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
        "class_names": card.class_names,
        "classifier": card.classifier,
        "output_key": card.output_key,
        "align_corners": card.align_corners,
        "divisor": card.divisor,
        "square": card.square,
    }
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise ModelError(f"--model-args hold something that JSON can't ({error}); give plain values") from None
    (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")


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
        return ModelMetadata(
            preprocess=_preprocess(values["preprocess"]),
            class_names=_names(values["class_names"]),
            classifier=_names(values["classifier"]),
            output_key=values["output_key"],
            align_corners=values["align_corners"],
            divisor=values["divisor"],
            square=values["square"],
            origin=Origin(values["kind"], values["model"], values["model_args"], values["nesting"], values["prefix"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: damaged ({error!r}); write it again with das3, or delete it and give options"
        ) from None


def _names(values: list[str] | None) -> tuple[str, ...] | None:
    return tuple(values) if values else None


def _preprocess(values: Mapping[str, Any]) -> Preprocess:
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Preprocess(**lists)
