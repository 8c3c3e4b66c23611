"""Which label file belongs to which image."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from das3.data.image_files import SUFFIXES, find_files
from das3.errors import DataError

__all__ = ["abbreviate", "match_labels"]


def abbreviate(values: Sequence[object], most: int = 8) -> str:
    """The first few of many, for a message."""
    shown = ", ".join(str(v) for v in values[:most])
    return shown + (f", … ({len(values)} in all)" if len(values) > most else "")


_IMAGE_ENDINGS = ("_leftImg8bit", "_rgb_anon", "_image", "_img", "_rgb", "_sat")
_LABEL_ENDINGS = (
    "labeltrainids",
    "labelids",
    "label",
    "labels",
    "mask",
    "masks",
)  # in this order where there are several


def match_labels(names: Sequence[str], root: Path) -> list[Path]:
    """The label file of each name."""
    files = {file.relative_to(root).with_suffix("").as_posix(): file for file in find_files(root)}
    ordered, exact = sorted(files), set(names)
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in names:
        keys = _keys(name)
        stems = [key for key in keys if key in files][:1] or _longer(keys, ordered, exact)
        if len(stems) == 1:
            found[name] = stems[0]
        else:
            missing.append(f"{name} (may be {abbreviate(stems, 3)})" if stems else name)
    if missing:
        raise DataError(f"{len(missing)} of {len(names)} images have no label in {root}: {abbreviate(missing, 3)}")
    for stem, count in Counter(found.values()).items():
        if count > 1:
            who = [name for name, s in found.items() if s == stem]
            raise DataError(f"label {files[stem]} fits {count} images ({abbreviate(who, 3)}); give each image its own")
    return [files[found[name]] for name in names]


def _keys(name: str) -> list[str]:
    """What a label may be called: the name, without an ending, then without the outer folders."""
    stems = [name]
    if Path(name).suffix.lower() in SUFFIXES:  # the name of one of two images a.jpg and a.png
        stems.append(name[: -len(Path(name).suffix)])
    stems += [name[: -len(end)] for end in _IMAGE_ENDINGS if name.endswith(end)]
    depth = name.count("/") + 1
    return [stem.split("/", outer)[-1] for outer in range(depth) for stem in stems]


def _longer(keys: Sequence[str], ordered: Sequence[str], taken: set[str]) -> list[str]:
    """Labels that begin with one of the keys and a separator; of several, the one with the first usual ending."""
    for key in keys:
        stems = []
        for stem in ordered[bisect_left(ordered, key) :]:
            if not stem.startswith(key):
                break
            if stem[len(key) :][:1] in ("_", "-", ".") and stem not in taken:
                stems.append(stem)
        for ending in _LABEL_ENDINGS if len(stems) > 1 else ():
            chosen = [stem for stem in stems if stem.lower().endswith(ending)]
            if len(chosen) == 1:
                return chosen
        if stems:
            return stems
    return []
