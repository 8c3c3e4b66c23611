"""What a run gives back to Python code and notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from das3.data.label_store import LabelStore
from das3.data.open import open_images
from das3.evaluation.frames import data_frame
from das3.evaluation.predict import PredictOptions
from das3.evaluation.predictions import Predictions
from das3.models.image_reading import read_as_fitted
from das3.report import Report, write_report
from das3.report.numbers import duration
from das3.segmenter import Segmenter

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Result"]


@dataclass(frozen=True, repr=False)
class Result:
    """Result of an adaptation.

    Attributes:
        model: the adapted network, of the same type as the one given, on the CPU and in evaluation mode.
        segmenter: the same network with its preprocessing and class names: images in [0, 1] to logits.
        metrics: contents of summary.json: a row per stage with its seconds, and mIoU in percent if labels were given.
        pseudo_labels: labels of the last self-training stage per image, or None if no stage made any.
        folder: the run folder.
    """

    model: nn.Module
    segmenter: Segmenter
    metrics: dict[str, Any]
    pseudo_labels: LabelStore | None
    folder: Path

    def predict(self, images: Any, **how: Unpack[PredictOptions]) -> Predictions:
        """Labels that the adapted model predicts.

        It runs where `segmenter` is, on the CPU; `result.segmenter.to("cuda")` moves it.

        Args:
            images: a folder, a list file, paths, arrays or a dataset, as for `das3.adapt`, read as those were.
            **how: `flip`, `scales`, `tile`, …, see `das3.evaluation.predict.PredictOptions`.

        Returns:
            A sequence of H×W uint8 arrays, predicted when they are asked for.

        Raises:
            DataError: if there are no such images.
        """
        return Predictions(self.segmenter, read_as_fitted(open_images(images), self.segmenter), **how)

    def report(self) -> Report:
        """The run's report, which a notebook shows inline; made now if the run made none.

        Raises:
            RecipeError: if the run kept no predictions to make it from (`report: false`).
        """
        path = self.folder / "report.html"
        return Report(path) if path.is_file() else write_report(self.folder)

    @property
    def table(self) -> DataFrame:
        """A pandas table with a row per stage: seconds and, where labels were given, mIoU and IoU per class in percent.

        Raises:
            Das3Error: without pandas.
        """
        return data_frame([_flat(row) for row in self.metrics["stages"]], "stage")

    def __repr__(self) -> str:
        parts = (type(self.model).__name__, *filter(None, [self._change()]), f"folder={str(self.folder)!r}")
        return f"Result({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """In a notebook: the stages as a small table, the verdict, and what to call for more."""
        heads = ("stage", "mIoU %", "time")
        rows = [(r["name"], _number(r.get("miou")), _time(r.get("seconds"))) for r in self.metrics["stages"]]
        lines = [*_verdict(self.metrics), f"Run folder: {self.folder}. result.report() shows what changed."]
        head = "".join(f"<th>{cell}</th>" for cell in heads)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        said = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}"

    def _change(self) -> str | None:
        before, after = self.metrics["stages"][0].get("miou"), self.metrics.get("miou")
        if before is not None and after is not None:
            return f"mIoU {before:.1f} -> {after:.1f}"
        verdict = self.metrics.get("verdict")
        return None if verdict is None else "changed" if verdict["changed"] else "unchanged"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    per_class = {f"IoU {name}": value for name, value in (row.get("per_class_iou") or {}).items()}
    return {"stage": row["name"], "mIoU": row.get("miou"), **per_class, "seconds": row.get("seconds")}


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _verdict(metrics: Mapping[str, Any]) -> list[str]:
    verdict = metrics.get("verdict")
    if verdict is None:
        return []
    return [f"The model is {'changed' if verdict['changed'] else 'unchanged'}: {verdict['reason']}"]
