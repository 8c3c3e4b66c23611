"""Keep what is the user's own out of what is published: paths of the machine."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from das3.errors import ModelError
from das3.training.inputs import INPUT_OPTIONS

__all__ = ["own_places", "recorded_folder", "refuse_places", "without_paths", "without_paths_in"]

_ABSOLUTE = re.compile(r"(?:~?[/\\]|[A-Za-z]:[/\\]).*[/\\]?.")
_NAMES = frozenset({"class_names", "id2label", "label2id"})
"""Entries that hold names of classes, which may look like anything."""


def without_paths(value: Any) -> Any:
    """A plain value with the last component in place of each absolute path in it; names of classes stay."""
    if isinstance(value, str):
        is_path = _ABSOLUTE.fullmatch(value) is not None
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value
    if isinstance(value, Mapping):
        return {key: one if key in _NAMES else without_paths(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    return value


def without_paths_in(file: Path) -> bytes:
    """Contents of a JSON file without absolute paths; as they are if there are none.

    Raises:
        ModelError: if it is no JSON.
    """
    data = file.read_bytes()
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON ({error}); write the model again") from None
    clean = without_paths(values)
    return data if clean == values else f"{json.dumps(clean, indent=2)}\n".encode()


def own_places(run: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Absolute paths of this machine, and of the one that ran, that a model of this run might hold."""
    found = {str(Path.home()), str(Path.cwd()), str(run.absolute()), str(run.resolve()), *recorded_folder(run)}
    found |= {str(value) for key, value in recipe.items() if key in INPUT_OPTIONS | {"out"} and isinstance(value, str)}
    return sorted(place.rstrip("/") + "/" for place in found if Path(place).is_absolute() and place.rstrip("/"))


def recorded_folder(run: Path) -> Iterator[str]:
    """The folder in which the run was started, if it is known."""
    try:
        yield str(json.loads((run / "inputs.json").read_text(encoding="utf-8"))["here"])
    except (OSError, ValueError, KeyError, TypeError):
        return


def refuse_places(folder: Path, places: Iterable[str]) -> None:
    """See that no file of a folder holds one of these paths, weights included.

    Raises:
        ModelError: naming the file.
    """
    needles = [text.encode() for place in places for text in (place, place.rstrip("/") + '"')]
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for needle in needles:
                if data.find(needle) >= 0:
                    raise ModelError(
                        f"{file.relative_to(folder)} holds a path of this machine ({needle.decode()[:-1]}), which is "
                        "not to be published; take it out of that file of RUN/model"
                    )
