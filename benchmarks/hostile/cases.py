"""What a case is, and where it is set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

KINDS = ("images", "labels", "recipes", "weights", "folders", "numbers")

CANARY = "owned"
"""Strangers' code would make this file in the case's folder, which is the working directory."""

Expect = Literal["told", "works", "either"]


@dataclass
class Place:
    """A case's own folder, which is the working directory, and what is sound: a model, images, labels.

    Attributes:
        folder: empty at first.
        base: what all cases share, only to be read: model/, images/, labels/, hf/ (a Hugging Face folder).
    """

    folder: Path
    base: Path

    def predict(self, *, model: Any = None, images: Any = None, more: Sequence[Any] = ()) -> list[str]:
        return _arguments("predict", model or self.base / "model", images or self.base / "images", more, out="out")

    def adapt(self, *, model: Any = None, images: Any = None, more: Sequence[Any] = ()) -> list[str]:
        quick = ("--stages=selftrain", "--selftrain.steps=1", "--batch-size=2", "--guard=off", "--report=false")
        plain = ("--selftrain.color-transforms=false", "--selftrain.upscale=false")
        given = [*quick, *plain, *more]
        return _arguments("adapt", model or self.base / "model", images or self.base / "images", given, out="run")

    def evaluate(self, *, labels: Any = None, images: Any = None, model: Any = None, more: Sequence[Any] = ()) -> list:
        given = ["--labels", labels or self.base / "labels", *more]
        return _arguments("evaluate", model or self.base / "model", images or self.base / "images", given, out=None)

    def images(self, count: int = 1) -> Path:
        """A folder of sound images, to put others into."""
        return pictures(self.folder / "images", count)


def _arguments(command: str, model: Any, images: Any, more: Sequence[Any], out: str | None) -> list[str]:
    given = [command, "--model", model, "--images", images, "--device=cpu", "--quiet"]
    return [str(a) for a in [*given, *(["--out", out] if out else []), *more]]


def pictures(folder: Path, count: int, size: tuple[int, int] = (32, 40)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(i, size)).save(folder / f"sound{i}.png")
    return folder


def pixels(seed: int = 0, size: tuple[int, int] = (32, 40)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@dataclass(frozen=True)
class Case:
    """One hostile or odd thing.

    Attributes:
        kind: one of `KINDS`.
        name: unique within the kind.
        make: sets it up and returns the command's arguments.
        expect: "told" must end with one line and a status that is not 0, "works" must be done, "either" one of them.
        words: must stand in that line; the name of the file or the option.
        unprivileged: run as nobody, since root may read everything.
        check: called after a case that works, with its folder; raises AssertionError if the result is wrong.
        quick: also in the default test suite.
    """

    kind: str
    name: str
    make: Callable[[Place], Sequence[str]]
    expect: Expect = "told"
    words: tuple[str, ...] = ()
    unprivileged: bool = False
    check: Callable[[Path], None] | None = field(default=None, compare=False)
    quick: bool = False


def all_cases() -> list[Case]:
    """Every case, in a fixed order."""
    from hostile import folders, images, labels, odd_numbers, recipes, weights

    found = [case for part in (images, labels, recipes, weights, folders, odd_numbers) for case in part.cases()]
    names = [(case.kind, case.name) for case in found]
    assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1]
    return found
