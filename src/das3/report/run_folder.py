"""What a finished run folder says, read tolerantly: older runs, and runs of other versions, lack some of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das3.data.label_store import LabelStore, find_labels, name_in_pack
from das3.errors import DataError, RecipeError
from das3.report.capture import Capture
from das3.text_files import read_json, read_yaml

__all__ = ["Difficulty", "PseudoLabels", "RunFolder", "Stretch", "class_ious"]

REPORT = "work/report"
"""Where in a run folder the report's captures are."""

_RANKED = 5000  # images whose entropy is read for the split into easy and hard ones; beyond, evenly spaced ones
_POINTS = 300  # of a curve

_OWN_KEYS = frozenset({"stage", "phase", "step", "steps", "lr", "images_per_second", "seconds"})


@dataclass(frozen=True)
class Stretch:
    """One stage's lines of metrics.jsonl.

    Attributes:
        name: of the stage.
        losses: name → (step, value) pairs.
        signals: the same of everything else that was measured on the way, such as mIoU.
    """

    name: str
    losses: Mapping[str, list[tuple[float, float]]]
    signals: Mapping[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo labels on disk.

    Attributes:
        stage: folder of the stage that made them, e.g. "1-selftrain".
        store: the labels.
    """

    stage: str
    store: LabelStore

    def labels(self, name: str) -> NDArray[np.uint8] | None:
        """H×W uint8, 255 where there is no label; None if there are none of this image."""
        with suppress(ValueError, KeyError):
            return self.store.read(self.store.names.index(name_in_pack(name)), "labels")["labels"]
        return None


@dataclass(frozen=True)
class Difficulty:
    """How stage 3 split the images.

    Attributes:
        stage: folder of the stage.
        entropies: image name → mean entropy of the teacher's prediction.
        easy: names of the easy images.
        threshold: largest entropy of an easy image; −1 if none is easy.
    """

    stage: str
    entropies: Mapping[str, float]
    easy: frozenset[str]
    threshold: float


@dataclass(frozen=True)
class RunFolder:
    """A run folder's files, as plain values.

    Attributes:
        folder: of the run.
        recipe: of recipe.yaml.
        summary: of summary.json; empty if there is none.
    """

    folder: Path
    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> RunFolder:
        """Read a run folder.

        Raises:
            RecipeError: if it holds no run.
        """
        folder = Path(folder)
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"{folder} holds no das3 run (it has no recipe.yaml); name the folder given as --out")
        try:
            recipe = read_yaml(path)
            summary = folder / "summary.json"
            found = read_json(summary) if summary.is_file() else {}
        except DataError as error:
            raise RecipeError(str(error)) from error
        return cls(folder, recipe or {}, found)

    @property
    def incoming(self) -> Path:
        """Folder of the capture of the model that came in."""
        return self.folder / REPORT / "incoming"

    @property
    def adapted(self) -> Path:
        """Folder of the capture of the adapted model."""
        return self.folder / REPORT / "adapted"

    @property
    def is_captured(self) -> bool:
        """Whether the predictions of both models are there."""
        return Capture.is_complete(self.incoming) and Capture.is_complete(self.adapted)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Rows of summary.json, the first one the incoming model's."""
        return list(self.summary.get("stages") or [])

    @property
    def verdict(self) -> dict[str, Any]:
        """The guard's verdict; empty if there is none."""
        found = self.summary.get("verdict") or {}
        return dict(found) if isinstance(found, Mapping) else {"reason": str(found)}

    @property
    def incoming_row(self) -> dict[str, Any]:
        """Row of the model that came in; empty if summary.json has none."""
        return next(iter(self.stages), {})

    def returned(self) -> dict[str, Any]:
        """Row of the model that was handed back: the one that the guard chose if it is a stage's, else the last one."""
        rows, chosen = self.stages, self.verdict.get("chosen")
        return next((row for row in rows if row.get("name") == chosen), rows[-1] if rows else {})

    def stretches(self) -> list[Stretch]:
        """Losses and signals of each stage, thinned out to what a chart can show."""
        phases: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for line in self._log():
            phases.setdefault((int(line.get("phase", 0)), str(line.get("stage", ""))), []).append(line)
        return [_stretch(name, lines) for (_, name), lines in sorted(phases.items())]

    def _log(self) -> Iterator[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a killed run
                continue
            if isinstance(entry, dict) and "step" in entry:
                yield entry

    def pseudo_labels(self) -> PseudoLabels | None:
        """Those of the last stage that left some pixels without a label; else the last ones."""
        stores = list(self._stores())
        partial = [store for store, keys in stores if "entropy" not in keys]
        every = [store for store, _ in stores]
        found = partial or every
        return found[-1] if found else None

    def difficulty(self) -> Difficulty | None:
        """Easy and hard images of the last stage that ranked them, None if none did."""
        ranked = [store for store, keys in self._stores() if "entropy" in keys]
        if not ranked:
            return None
        store = ranked[-1].store
        labelled = [i for i, name in enumerate(store.names) if name]
        entropies = {}
        for i in labelled[:: -(-len(labelled) // _RANKED)]:
            with suppress(KeyError):
                entropies[store.names[i]] = float(store.read(i, "entropy")["entropy"])
        return _split(ranked[-1].stage, entropies, self._easy_share(ranked[-1].stage))

    def _easy_share(self, stage: str) -> float:
        name = re.sub(r"^\d+-|-\d+$", "", stage).replace("-", "_")
        return float((self.recipe.get(name) or {}).get("easy_share", 0.3))

    def _stores(self) -> Iterator[tuple[PseudoLabels, set[str]]]:
        """Pseudo labels in the order of the stages, and what is kept of each image."""
        numbered = [f for f in (self.folder / "work").glob("*-*") if f.name.split("-")[0].isdigit()]
        for stage in sorted(numbered, key=lambda f: int(f.name.split("-")[0])):
            for folder in sorted(f for f in stage.iterdir() if f.is_dir()):
                store = find_labels(folder)
                first = next((i for i, name in enumerate(store.names) if name and store.has(i)), None)
                if first is not None and "labels" in (keys := set(store[first])):
                    yield PseudoLabels(stage.name, store), keys

    def model_files(self) -> list[tuple[str, int, str]]:
        """(name, bytes, SHA-256) of each file of the adapted model."""
        return file_hashes(self.folder / "model")


def class_ious(row: Mapping[str, Any], num_classes: int) -> list[float | None]:
    """IoU in percent per class of a row of summary.json, None where there is none.

    By place, not by name: the labels' table may name the classes otherwise than the model does.
    """
    values = list((row.get("per_class_iou") or {}).values())
    return values if len(values) == num_classes else [None] * num_classes


def file_hashes(folder: Path) -> list[tuple[str, int, str]]:
    """(path below the folder, bytes, SHA-256) of all files in it, sorted."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append((path.relative_to(folder).as_posix(), path.stat().st_size, digest))
    return found


def _split(stage: str, entropies: Mapping[str, float], easy_share: float) -> Difficulty:
    """The images of lowest entropy are easy; the rule of `das3.stages.propagate.split_by_entropy`."""
    from das3.stages.propagate import split_by_entropy

    names = list(entropies)
    easy, _ = split_by_entropy(list(entropies.values()), easy_share)
    threshold = max((entropies[names[i]] for i in easy), default=-1.0)
    return Difficulty(stage, entropies, frozenset(names[i] for i in easy), threshold)


def _stretch(name: str, lines: list[dict[str, Any]]) -> Stretch:
    losses: dict[str, list[tuple[float, float]]] = {}
    signals: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in (line.get("losses") or {}).items():
            losses.setdefault(key, []).append((line["step"], value))
        for key, value in _numbers(line):
            signals.setdefault(key, []).append((line["step"], value))
    return Stretch(name, _thinned(losses), _thinned(signals))


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What was measured beside the losses, nested mappings of it too."""
    for key, value in line.items():
        if key in _OWN_KEYS or key == "losses":
            continue
        for name, number in value.items() if isinstance(value, Mapping) else ((key, value),):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield name, number


def _thinned(curves: Mapping[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    thinned = {}
    for name, points in curves.items():
        step = -(-len(points) // _POINTS)
        last = points[-1:] if (len(points) - 1) % step else []
        thinned[name] = points[::step] + last
    return thinned
