"""The benchmark's suites: a labelled source, an unlabelled target, a labelled test, and the source model's training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.open import open_labelled
from das3.data.published import open_published
from das3.data.streets import Domain, Streets
from das3.errors import DataError

__all__ = ["SUITES", "Suite", "streets_demo"]


@dataclass(frozen=True)
class Suite:
    """One domain shift.

    Attributes:
        name: of the suite.
        source: labelled images that the source model is trained on; None where `source_model` is given.
        target: images to adapt to; adaptation sees `.images` alone, the oracle the labels too. Without labels there is
            no oracle.
        test: labelled images of the target that every row is measured on.
        network, model_args: as of `das3.models.load_segmenter`.
        size: shorter side of the images that the network sees.
        source_options, oracle_options: fields of `SourceRecipe`.
        options: fields of `Recipe`, the same for all methods; no method's hyperparameters.
        steps: optimiser steps of every method, see `das3.benchmark.methods.method_recipe`.
        source_model: a trained model, or weights of `network`, instead of one that is trained here.
        trust: run the code that the folder of `source_model` names for its network.
    """

    name: str
    source: Callable[[], Labelled] | None
    target: Callable[[], Labelled | Images]
    test: Callable[[], Labelled]
    network: str = "das3:small"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    source_options: Mapping[str, Any] = field(default_factory=dict)
    oracle_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    source_model: str | None = None
    trust: bool = False


@dataclass(frozen=True)
class _Folder:
    """A labelled folder that worker processes open for themselves."""

    root: Path
    class_map: str | None = None
    classes: Path | None = None

    def __call__(self) -> Labelled:
        return open_labelled(self.root / "images", self.root / "labels", self.classes, class_map=self.class_map)


_REAL: dict[str, Any] = {
    "size": 144,
    "model_args": {"width": 32},
    "source_options": {"steps": 500, "batch_size": 8, "lr": 2e-3, "color": 0.2},
    "oracle_options": {"steps": 300, "batch_size": 8, "lr": 1e-3, "color": 0.2},
}


def _root(data: Path | None) -> Path:
    if data is None:
        raise DataError("this suite needs data: name the folder that holds camvid/ and idd-lite/ with --data")
    if not (data / "camvid").is_dir():
        raise DataError(f"no folder camvid in {data}; give the folder that holds camvid/ and idd-lite/ with --data")
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
    size: tuple[int, int] = (96, 192)

    def __call__(self) -> Labelled:
        return Streets(self.domain, self.count, self.seed, self.size)


def streets(data: Path | None = None) -> Suite:
    """Rendered streets, sun to dusk: 10 classes, needs no data."""
    return Suite(
        "streets",
        _Scenes("source", 400, 0),
        _Scenes("target", 200, 0),
        _Scenes("target", 100, 1000),
        source_options={"steps": 400, "batch_size": 8, "lr": 3e-3, "crop": (96, 192)},
        oracle_options={"steps": 250, "batch_size": 8, "lr": 2e-3, "crop": (96, 192)},
    )


def streets_demo() -> Suite:
    """The same, smaller in all but das3's own recipe: `das3 demo`, in two minutes on two CPU cores."""
    size = (80, 160)
    return Suite(
        "demo",
        _Scenes("source", 300, 0, size),
        _Scenes("target", 160, 0, size),
        _Scenes("target", 60, 1000, size),
        model_args={"width": 16},
        source_options={"steps": 300, "batch_size": 8, "lr": 3e-3, "crop": size},
        oracle_options={"steps": 150, "batch_size": 8, "lr": 2e-3, "crop": size},
    )


def streets_large(data: Path | None = None) -> Suite:
    """Rendered streets, larger in all: pictures, sets, network and training. For a GPU."""
    size = (256, 512)
    return Suite(
        "streets-large",
        _Scenes("source", 2000, 0, size),
        _Scenes("target", 1000, 0, size),
        _Scenes("target", 300, 1000, size),
        model_args={"width": 64},
        source_options={"steps": 4000, "batch_size": 16, "lr": 2e-3, "workers": 4},
        oracle_options={"steps": 2000, "batch_size": 16, "lr": 1e-3, "workers": 4},
        options={"batch_size": 16, "workers": 4},
        steps=2200,
    )


@dataclass(frozen=True)
class _Published:
    """A published data set that worker processes open for themselves."""

    name: str
    root: Path
    split: str
    classes: int

    def __call__(self) -> Labelled:
        found = open_published(self.name, self.root, self.split, classes=self.classes)
        if isinstance(found, Labelled):
            return found
        raise DataError(f"{self.name}: no labels of split {self.split} in {self.root}; the benchmark measures on them")


def _to_cityscapes(source: str, classes: int, data: Path | None) -> Suite:
    """From rendered to real: the field's network, at half of Cityscapes' size, for a GPU."""
    if data is None:
        raise DataError(f"name the folder that holds {source}/ and cityscapes/ with --data")
    field_s = {"optimizer": "sgd", "lr": 2.5e-4, "weight_decay": 5e-4, "head_lr_factor": 10.0}  # AdaptSegNet's
    return Suite(
        f"{source}-cityscapes",
        _Published(source, data / source, "all", classes),
        _Published("cityscapes", data / "cityscapes", "train", classes),
        _Published("cityscapes", data / "cityscapes", "val", classes),
        network="das3:deeplabv2_resnet101",
        size=512,
        source_options={"steps": 20000, "batch_size": 4, "workers": 8, **field_s},
        oracle_options={"steps": 10000, "batch_size": 4, "workers": 8, **field_s},
        options={"batch_size": 4, "workers": 8},
        steps=5500,
    )


def gta5_cityscapes(data: Path | None) -> Suite:
    """GTA5 to Cityscapes: 19 classes."""
    return _to_cityscapes("gta5", 19, data)


def synthia_cityscapes(data: Path | None) -> Suite:
    """SYNTHIA to Cityscapes: 16 classes."""
    return _to_cityscapes("synthia", 16, data)


SUITES: Mapping[str, Callable[[Path | None], Suite]] = {
    "streets": streets,
    "camvid-dusk": camvid_dusk,
    "camvid-idd": camvid_idd,
    "streets-large": streets_large,
    "gta5-cityscapes": gta5_cityscapes,
    "synthia-cityscapes": synthia_cityscapes,
}
