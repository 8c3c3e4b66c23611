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

from das3.benchmark.suites import SUITES, Suite
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.data.open import open_images, open_labelled
from das3.data.published import is_spec
from das3.errors import DataError, RecipeError
from das3.models.trust import refuse_code
from das3.text_files import read_yaml, refuse_odd_values

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
        given = read_yaml(path)
        refuse_odd_values(given, path)
    except DataError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(given, dict):
        raise RecipeError(f"{path} must hold a mapping with source, target and test")
    known = {f.name for f in fields(Suite)} - {"trust"} | set(_LABELS)
    if unknown := sorted(map(str, given.keys() - known)):
        raise RecipeError(f"{path}: unknown {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    _check_kinds(given, path)
    for key in ("network", "source_model"):
        refuse_code(given.get(key), f"{path} ({key})", trust=trust, instead="--trust")
    given = {key: value for key, value in given.items() if value is not None}
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


_KINDS: Mapping[str, tuple[str, Any]] = {
    "name": ("a text without slashes", lambda v: isinstance(v, str) and v.strip(".") != "" and "/" not in v),
    "network": ("a text", lambda v: isinstance(v, str)),
    "source_model": ("a text", lambda v: isinstance(v, str)),
    "model_args": ("a mapping", lambda v: isinstance(v, dict)),
    "size": ("a whole number above 0, or two", lambda v: all(map(_is_count, v if _is_pair(v) else [v]))),
    "steps": ("a whole number above 0", lambda v: _is_count(v)),
    "num_classes": ("a whole number above 0", lambda v: _is_count(v)),
    "images": ("a text", lambda v: isinstance(v, str)),
    "labels": ("a text", lambda v: isinstance(v, str)),
    "classes": ("a text", lambda v: isinstance(v, str)),
    "class_map": ("a text", lambda v: isinstance(v, str)),
    **dict.fromkeys(("source_options", "oracle_options", "options"), ("a mapping", lambda v: isinstance(v, dict))),
}
"""What the entries of a suite, and of its parts, have to be."""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _check_kinds(given: Mapping[str, Any], where: object) -> None:
    for key, value in given.items():
        what, fits = _KINDS.get(key, ("", lambda v: True))
        if value is not None and not fits(value):
            raise RecipeError(f"{where}: {key} is {str(value)[:60]!r}, but must be {what}")


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
    _check_kinds(given, f"{path}: {name}")
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
