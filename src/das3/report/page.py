"""The report page: findings in, one self-contained HTML file out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from das3 import __version__
from das3.data.visualize import palette
from das3.report.capture import BINS, Capture
from das3.report.charts import Chart, line_chart, scatter_chart
from das3.report.findings import Findings, points_to_check, pseudo_labels_of
from das3.report.headline import headline
from das3.report.numbers import number, percent, points, signed
from das3.report.pictures import changed_picture, heat_picture, label_picture, largest_that_fit, photo_picture
from das3.report.provenance import changed_options, versions
from das3.report.run_folder import Difficulty, PseudoLabels, RunFolder, Stretch, class_ious
from das3.report.statistics import ImageChange, largest_flows, pick_images, shares

__all__ = ["render", "report_html"]

EACH = 8
"""Pictures of each kind: most changed, least certain, random."""

_MATRIX = 20  # classes in the transition matrix; the others are summed up
_FLOWS = 12
_GREY = 5  # number of a curve's style
_VISIBLE = 1e-3  # share of an image's pixels from which on a class counts as shown in it

_GROUPS = {
    "changed": ("Changed most", "The images in which most pixels changed their class."),
    "uncertain": ("Least certain", "Of the others, those in which the adapted model has the highest entropy."),
    "random": ("Random sample", "Drawn from the rest, so that you also see what is usual."),
}


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("das3.report"),
        autoescape=True,  # class and file names are not ours
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, signed=signed, number=number, points=points, hex=hex_color)
    return made


def render(template: str, **context: Any) -> str:
    """HTML of one of the templates."""
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return _environment().get_template(template).render(**context, made=made, das3=__version__)


def hex_color(color: Sequence[int]) -> str:
    """RGB as CSS writes it."""
    return "#" + "".join(f"{int(channel):02x}" for channel in color)


def report_html(run: RunFolder, before: Capture, after: Capture, findings: Findings) -> str:
    """The report of one run.

    Args:
        run: the run folder.
        before: predictions of the incoming model.
        after: predictions of the adapted model.
        findings: of the two.
    """
    names, difficulty = after.info.class_names, run.difficulty()
    unchanged = before.info.weights == after.info.weights
    colors = palette(names)
    gallery = _Gallery(before, after, findings.changes, run.pseudo_labels(), difficulty, colors)
    return render(
        "report.html.j2",
        title=f"das3 report: {os.path.basename(run.folder.absolute())}",
        run=run,
        names=names,
        colors=colors.tolist(),
        before=before.info,
        after=after.info,
        findings=findings,
        headline=headline(run, unchanged=unchanged),
        verdict=_verdict(run.verdict),
        points=points_to_check(findings, names),
        rows=class_rows(run, findings, names),
        matrix=transition_table(findings.matrix, names),
        flows=largest_flows(findings.matrix, _FLOWS),
        groups=largest_that_fit(gallery.groups),
        entropy_chart=_entropy_chart({"adapted": findings.histograms[1], "incoming": findings.histograms[0]}),
        image_chart=_image_chart(findings.changes),
        difficulty=difficulty,
        difficulty_chart=_difficulty_chart(difficulty),
        stages=stage_table(run.stages),
        charts=[chart for stretch in run.stretches() for chart in stretch_charts(stretch)],
        options=changed_options(run.recipe),
        recipe=yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True),
        versions=versions(run.summary),
        files=run.model_files(),
    )


def _verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The guard's words, and its candidates as a table of whatever was measured on them."""
    candidates = [_flat(one) for one in verdict.get("candidates") or [] if isinstance(one, Mapping)]
    heads = list(dict.fromkeys(key for one in candidates for key in one if key != "name"))
    return {**verdict, "heads": heads, "rows": candidates}


def _flat(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, such as `signals`, become columns of their own; lists are left out."""
    flat: dict[str, Any] = {}
    for key, value in candidate.items():
        if isinstance(value, Mapping):
            flat.update({k: v for k, v in value.items() if not isinstance(v, Mapping | list)})
        elif not isinstance(value, list):
            flat[key] = value
    return flat


def class_rows(run: RunFolder, findings: Findings, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the class table shows, by falling share of the pixels."""
    before, after = shares(findings.matrix)
    scores = zip(class_ious(run.incoming_row, len(names)), class_ious(run.returned(), len(names)), strict=True)
    rows = []
    for c, (first, last) in enumerate(scores):
        rows.append(
            {
                "id": c,
                "before": float(before[c]),
                "after": float(after[c]),
                "pseudo": None if findings.pseudo is None else float(findings.pseudo[c]),
                "iou_before": first,
                "iou_after": last,
                "iou_change": None if first is None or last is None else last - first,
            }
        )
    return sorted(rows, key=lambda row: -max(row["before"], row["after"]))


def transition_table(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """The largest classes' part of the matrix, each row in shares of its sum; the other classes are one more."""
    size = matrix.sum(axis=0) + matrix.sum(axis=1)
    chosen = [int(c) for c in np.argsort(-size, kind="stable")[:_MATRIX] if size[c]]
    others = [c for c in range(len(matrix)) if c not in chosen and size[c]]
    groups = [[c] for c in chosen] + ([others] if others else [])
    table = np.array([[matrix[np.ix_(a, b)].sum() for b in groups] for a in groups])
    rows = table / np.maximum(1, table.sum(axis=1, keepdims=True))
    heads = [names[c] for c in chosen] + ([f"{len(others)} others"] if others else [])
    return {"heads": heads, "rows": rows.tolist(), "sums": (table.sum(axis=1) / max(1, table.sum())).tolist()}


@dataclass(frozen=True)
class _Gallery:
    """The pictures of a report, see `report_html`."""

    before: Capture
    after: Capture
    changes: Sequence[ImageChange]
    pseudo: PseudoLabels | None
    difficulty: Difficulty | None
    colors: NDArray[np.uint8]

    def groups(self, side: int) -> list[dict[str, Any]]:
        """Cards by the reason for which they were picked, pictures of this longer side."""
        picked = pick_images(self.changes, EACH)
        made = [
            {"key": key, "title": title, "text": text, "cards": [self._card(i, side) for i in picked[key]]}
            for key, (title, text) in _GROUPS.items()
        ]
        return [group for group in made if group["cards"]]

    def _card(self, i: int, side: int) -> dict[str, Any]:
        """One image with its layers, as data URLs."""
        one, other, change = self.before[i], self.after[i], self.changes[i]
        old, new = one["labels"], other["labels"]
        made = pseudo_labels_of(self.pseudo, change.name, old.shape, len(self.colors))
        return {
            "change": change,
            "classes": _classes_in(change, made),
            "hard": None if self.difficulty is None else change.name not in self.difficulty.easy,
            "ratio": f"{old.shape[1]} / {old.shape[0]}",
            "photo": photo_picture(one["photo"].tobytes(), side),
            "before": label_picture(old, self.colors, side),
            "after": label_picture(new, self.colors, side),
            "changed": changed_picture(old, new, self.colors, side),
            "pseudo": None if made is None else label_picture(made, self.colors, side),
            "unlabelled": None if made is None else float((made == 255).mean()),
            "entropy_before": heat_picture(one["entropy"], side),
            "entropy_after": heat_picture(other["entropy"], side),
        }


def _classes_in(change: ImageChange, made: NDArray[np.uint8] | None) -> dict[int, tuple[float, ...]]:
    """Class id → its shares before and after, of the classes that can be seen in a prediction or in the labels."""
    seen: dict[int, tuple[float, ...]] = {c: s for c, s in change.classes.items() if max(s) >= _VISIBLE}
    if made is not None:
        counts = np.bincount(made.ravel(), minlength=256)[:255] / made.size
        labelled = {int(c) for c in np.flatnonzero(counts >= _VISIBLE)}
        seen.update({c: change.classes.get(c, (0.0, 0.0, 0.0)) for c in labelled - seen.keys()})
    return seen


def _entropy_chart(histograms: Mapping[str, NDArray[np.float64]]) -> Chart | None:
    """Share of the pixels whose entropy is higher than x."""
    edges = np.arange(BINS + 1) / BINS
    curves = {}
    for name, histogram in histograms.items():
        above = np.append(1.0, 1 - np.cumsum(histogram)).clip(0, 1) * 100
        curves[name] = list(zip(edges.tolist(), above.tolist(), strict=True))
    styles = {"incoming": _GREY}
    return line_chart("Pixels more uncertain than …", curves, "normalised entropy", "% of the pixels", styles=styles)


def _image_chart(changes: Sequence[ImageChange]) -> Chart:
    points = [
        (c.entropy_after, 100 * c.changed, f"{c.name}: {percent(c.changed)} changed, entropy {c.entropy_after:.3f}", 1)
        for c in changes
    ]
    return scatter_chart(
        "Every image of the sample", points, "mean entropy of the adapted model", "% of pixels changed"
    )


def _difficulty_chart(difficulty: Difficulty | None) -> Chart | None:
    """Images by entropy, the easy ones left of the line."""
    if difficulty is None:
        return None
    values = sorted(difficulty.entropies.items(), key=lambda item: item[1])
    step = -(-len(values) // 400)
    points = [
        (entropy, 100 * (n + 1) / len(values), f"{name}: entropy {entropy:.3f}", 0 if name in difficulty.easy else 1)
        for n, (name, entropy) in list(enumerate(values))[::step]
        for name, entropy in [(name, entropy)]
    ]
    return scatter_chart(
        "Easy and hard images", points, "mean entropy of the teacher", "% of the images", difficulty.threshold
    )


def stage_table(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whatever plain values summary.json has of each stage."""
    plain = [{k: v for k, v in row.items() if not isinstance(v, Mapping | list)} for row in stages]
    heads = [k for k in dict.fromkeys(k for row in plain for k in row) if any(row.get(k) is not None for row in plain)]
    return {"heads": heads, "rows": plain}


def stretch_charts(stretch: Stretch) -> list[Chart]:
    """A stage's losses in one chart, and each signal in one of its own: their units differ."""
    charts = [line_chart(f"{stretch.name}: losses", stretch.losses, "step", "loss")]
    charts += [line_chart(f"{stretch.name}: {key}", {key: p}, "step", key) for key, p in stretch.signals.items()]
    return [chart for chart in charts if chart is not None]
