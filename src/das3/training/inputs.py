"""What a run was given (model, images, labels to measure on), so that a resumed run is told if it has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from das3.data.images import Images
from das3.errors import DataError, TrainingError
from das3.files import write_atomically
from das3.fingerprints import bytes_per_file, file_digests, image_digests, weights_hash
from das3.segmenter import Segmenter

__all__ = ["INPUT_OPTIONS", "FileSet", "Inputs", "check_inputs"]

INPUT_OPTIONS = frozenset(
    {"model", "weights", "images", "labels", "eval_images", "eval_labels", "classes", "class_map"}
)
"""Options that say where inputs lie. Their contents are compared, not their text: a folder may have moved."""

_NAMED = 3  # of changed images that are named


@dataclass(frozen=True)
class FileSet:
    """Files, one per image.

    Attributes:
        names: of the images.
        paths: the files.
    """

    names: Sequence[str]
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Inputs:
    """What a run is given.

    Attributes:
        segmenter: the model before the run.
        sets: images, and files that belong to images, by what they are.
        more: anything else, by what it is, as JSON knows it.
    """

    segmenter: Segmenter
    sets: Mapping[str, Images | FileSet]
    more: Mapping[str, Any] = field(default_factory=dict)

    def record(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Fingerprints of all of it, for inputs.json; files are looked at as closely as in the record `before`."""
        close = {what: bytes_per_file(len(files)) for what, files in self.sets.items()}
        if before:
            close |= {what: most for what, most in before["bytes_per_file"].items() if what in close}
        segmenter = self.segmenter
        record = {
            "bytes_per_file": close,
            "here": str(Path.cwd()),
            "model": {
                "weights": weights_hash(segmenter.model),
                "preprocessing": asdict(segmenter.preprocess),
                "class names": list(segmenter.class_names),
            },
            "sets": {what: dict(_digests(files, close[what])) for what, files in self.sets.items()},
            "more": self.more,
        }
        return dict(json.loads(json.dumps(record)))  # as it will be read


def _digests(files: Images | FileSet, most: int) -> Mapping[str, str]:
    if isinstance(files, FileSet):
        return file_digests(files.names, files.paths, most)
    return image_digests(files, most)


def check_inputs(file: Path, inputs: Inputs) -> None:
    """Compare what a run is given with the record of what it began with; make the record if there is none.

    Raises:
        DataError: if anything has changed, naming what.
        TrainingError: if the record can't be read.
    """
    before = _read(file)
    now = inputs.record(before)
    if before is not None:
        changes = list(_changes(before, now))
        if changes:
            raise DataError(
                f"{file.parent} began with other inputs: {'; '.join(changes)}; put back what it began with, or choose "
                "another --out"
            )
    if before != now:
        write_atomically(file, json.dumps(now, ensure_ascii=False))


def _read(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
        if all(isinstance(found[key], dict) for key in ("bytes_per_file", "model", "sets", "more")) and all(
            isinstance(digests, dict) for digests in found["sets"].values()
        ):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise TrainingError(f"{file} is damaged; remove it, and --resume goes on without comparing the inputs")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One phrase for each thing that differs."""
    for what in sorted(before["model"].keys() | now["model"].keys()):
        if before["model"].get(what) != now["model"].get(what):
            yield f"the model has other {what}"
    for what in {**before["sets"], **now["sets"]}:
        old, new = before["sets"].get(what), now["sets"].get(what)
        if old is None or new is None:
            yield f"there {'are' if old is None else 'were'} {what}, and there {'were' if old is None else 'are'} none"
        else:
            yield from _set_changes(what, old, new)
    for what in sorted(before["more"].keys() | now["more"].keys()):
        if before["more"].get(what) != now["more"].get(what):
            yield f"{what} differs"


def _set_changes(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    kinds = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and old[name] != new[name]],
    }
    found = [f"{len(names)} {kind} ({_named(names)})" for kind, names in kinds.items() if names]
    if found:
        yield f"{what}: {', '.join(found)}"
    elif list(old) != list(new):
        yield f"{what} are in another order"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
