"""A suite of the user's own data, described in a YAML file.

    source: {images: day/images, labels: day/labels}       # labels may be left out for `NAME:ROOT` of a published set
    target: {images: night/images, labels: night/labels}   # without labels there is no oracle
    test: {images: night-test/images, labels: night-test/labels}
    classes: classes.json            # each of the three may have its own classes and class_map
    network: das3:small
    size: 240
    source_options: {steps: 500}     # fields of the source model's training
    oracle_options: {steps: 300}
    options: {batch_size: 8}         # fields of the recipe, for all methods

Paths are relative to the file. `name` is the file's stem; `source_model: PATH` replaces the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from das3.benchmark.suites import SUITES, Suite
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled
from das3.data.published import is_spec
from das3.errors import DataError, RecipeError
from das3.models.trust import refuse_code

__all__ = ["find_suite", "load_suite"]

_PARTS = ("source", "target", "test")
_LABELS = ("classes", "class_map", "num_classes")


def find_suite(name: str, data: Path | None = None, *, trust: bool = False) -> Suite:
    """A suite that comes with das3, by name, or that of a YAML file.

    Args:
        name: of the suite, or its file.
        data: folder of the suite's data, where it needs any.
        trust: as of `load_suite`.

    Raises:
        RecipeError: if there is neither.
        DataError: if its data are not there.
    """
    if name.endswith((".yaml", ".yml")):
        return load_suite(Path(name), trust=trust)
    if name not in SUITES:
        raise RecipeError(f"no suite is called {name!r}; there are: {', '.join(SUITES)}, and YAML files")
    return SUITES[name](data)


def load_suite(path: Path, *, trust: bool = False) -> Suite:
    """Read a suite from a YAML file, see above.

    Args:
        path: the file.
        trust: its network and its source model may be code, `package.module:function`.

    Raises:
        RecipeError: if the file can't be read, or says something unknown.
        ModelError: if it names code without `trust`.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"can't read the suite {path} ({' '.join(str(error).split())})") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{path} must hold a mapping with source, target and test")
    known = {f.name for f in fields(Suite)} - {"trust"} | set(_LABELS)
    if unknown := sorted(given.keys() - known):
        raise RecipeError(f"{path}: unknown {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for key in ("network", "source_model"):
        refuse_code(given.get(key), f"{path} ({key})", trust=trust, instead="--trust")
    shared = {key: given.pop(key) for key in _LABELS if key in given}
    parts = {key: _part(path, key, given.pop(key, None), shared) for key in _PARTS}
    model = given.pop("source_model", None)
    if parts["target"] is None or parts["test"] is None or (parts["source"] is None and model is None):
        raise RecipeError(f"{path}: a suite needs target, test, and source or source_model")
    if isinstance(given.get("size"), list):
        given["size"] = tuple(given["size"])
    beside = model is not None and (path.parent / model).exists()
    chosen = str(path.parent / model) if beside else model
    return Suite(given.pop("name", path.stem), **parts, source_model=chosen, trust=trust, **given)


@dataclass(frozen=True)
class _Part:
    """Images, with labels or without, that worker processes open for themselves."""

    images: str
    labels: str | None
    classes: str | None
    class_map: str | None
    num_classes: int | None

    def __call__(self) -> Labelled | Images:
        if self.labels is None and not is_spec(self.images):
            return open_images(self.images)
        return open_labelled(
            self.images, self.labels, self.classes, class_map=self.class_map, num_classes=self.num_classes
        )


def _part(path: Path, name: str, given: Any, shared: Mapping[str, Any]) -> Any:
    if given is None:
        return None
    known = {f.name for f in fields(_Part)}
    if not isinstance(given, dict) or "images" not in given or given.keys() - known:
        raise RecipeError(f"{path}: {name} must be a mapping with images, and maybe {', '.join(sorted(known))}")
    if name != "target" and "labels" not in given and not is_spec(given["images"]):
        raise DataError(f"{path}: {name} has no labels; name their folder with labels")
    values: dict[str, Any] = {key: given.get(key, shared.get(key)) for key in known}
    for key in ("images", "labels", "classes", "class_map"):
        values[key] = _beside(path, values[key])
    return _Part(**values)


def _beside(path: Path, value: str | None) -> str | None:
    """A path relative to the file's folder; for `NAME:ROOT`, the root is relative."""
    if value is None:
        return None
    name, colon, root = value.partition(":")
    return f"{name}:{path.parent / root}" if colon and is_spec(value) else str(path.parent / value)
