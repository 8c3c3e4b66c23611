"""The benchmark's suites: a labelled source, an unlabelled target, a labelled test, and the source model's training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from das3.data.labels import Labelled, open_labelled
from das3.data.streets import Domain, Streets
from das3.errors import DataError

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """One domain shift.

    Attributes:
        name: of the suite.
        source: labelled images that the source model is trained on.
        target: images to adapt to; adaptation sees `.images` alone, the oracle the labels too.
        test: labelled images of the target that every row is measured on.
        network, model_args: as of `das3.models.load_segmenter`.
        size: shorter side of the images that the network sees.
        source_options, oracle_options: fields of `SourceRecipe`.
        options: fields of `Recipe`, the same for all methods; no method's hyperparameters.
    """

    name: str
    source: Callable[[], Labelled]
    target: Callable[[], Labelled]
    test: Callable[[], Labelled]
    network: str = "das3:small"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    source_options: Mapping[str, Any] = field(default_factory=dict)
    oracle_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Folder:
    """A labelled folder that worker processes open for themselves."""

    root: Path
    class_map: str | None = None
    classes: Path | None = None

    def __call__(self) -> Labelled:
        return open_labelled(self.root / "images", self.root / "labels", self.classes, class_map=self.class_map)


# Strong colour changes are part of any source training today; without, CamVid's white skies make blue ones unheard of.
# bf16 doubles the speed of a CPU that has it, which pays for the larger images and network.
_REAL: dict[str, Any] = {
    "size": 240,
    "model_args": {"width": 32},
    "source_options": {"steps": 500, "batch_size": 8, "lr": 2e-3, "color": 0.5, "precision": "bf16"},
    "oracle_options": {"steps": 300, "batch_size": 8, "lr": 1e-3, "color": 0.5, "precision": "bf16"},
    "options": {"precision": "bf16"},
}


def _root(data: Path | None) -> Path:
    if data is None or not (data / "camvid").is_dir():
        raise DataError(f"no folder camvid in {data}; name the folder that holds camvid/ and idd-lite/ with --data")
    return data


def camvid_dusk(data: Path | None) -> Suite:
    """CamVid, day to dusk: 11 classes, a shift of light."""
    root = _root(data) / "camvid"
    return Suite(
        "camvid-dusk", _Folder(root / "day"), _Folder(root / "dusk-train"), _Folder(root / "dusk-test"), **_REAL
    )


def camvid_idd(data: Path | None) -> Suite:
    """CamVid by day to IDD-Lite: 7 classes, another country and camera."""
    root = _root(data)
    merged = f"{root / 'camvid' / 'classes.json'}:as_idd_lite"
    return Suite(
        "camvid-idd",
        _Folder(root / "camvid" / "day", class_map=merged),
        _Folder(root / "idd-lite" / "train"),
        _Folder(root / "idd-lite" / "val"),
        **_REAL,
    )


@dataclass(frozen=True)
class _Scenes:
    """Rendered streets that worker processes render for themselves."""

    domain: Domain
    count: int
    seed: int

    def __call__(self) -> Labelled:
        return Streets(self.domain, self.count, self.seed)


def streets(data: Path | None = None) -> Suite:
    """Rendered streets, sun to dusk: 10 classes, needs no data. The demo."""
    return Suite(
        "streets",
        _Scenes("source", 400, 0),
        _Scenes("target", 200, 0),
        _Scenes("target", 100, 1000),
        source_options={"steps": 400, "batch_size": 8, "lr": 3e-3, "crop": (96, 192)},
        oracle_options={"steps": 250, "batch_size": 8, "lr": 2e-3, "crop": (96, 192)},
    )


SUITES: Mapping[str, Callable[[Path | None], Suite]] = {
    "streets": streets,
    "camvid-dusk": camvid_dusk,
    "camvid-idd": camvid_idd,
}
