"""Labels of images, for source training and evaluation alone. Adaptation never imports a label into a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from das3.data.images import SUFFIXES, Images, open_images
from das3.errors import DataError

__all__ = ["IGNORE", "ClassTable", "Labelled", "load_class_map", "load_classes", "open_labelled"]

IGNORE = 255


@dataclass(frozen=True)
class ClassTable:
    """What the values in label files mean.

    Attributes:
        names: names of the classes 0 … C − 1.
        ids: value in the files → class; values that are missing here are unknown. None: the values are the classes.
        colors: RGB colour of each class, for labels that are colour images; also used to draw.
        ignore: values that do not count, besides 255.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignore: frozenset[int] = frozenset({IGNORE})

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE:
            raise DataError(f"a class table needs 1 to {IGNORE} classes, got {len(self.names)}")
        if self.colors is not None and len(self.colors) != len(self.names):
            raise DataError(f"the class table names {len(self.names)} classes but {len(self.colors)} colours")

    def mapped(self, class_map: Mapping[int, int], names: Sequence[str] | None = None) -> ClassTable:
        """The table after merging classes: class c counts as `class_map[c]`, classes without an entry are ignored."""
        count = max(class_map.values()) + 1
        ids = self.ids or {c: c for c in range(len(self.names))}
        joined = {value: class_map[c] for value, c in ids.items() if c in class_map}
        ignore = self.ignore | {value for value, c in ids.items() if c not in class_map}
        return ClassTable(tuple(names or (f"class {c}" for c in range(count))), joined, None, ignore)

    def lookup(self, top: int = 65536) -> NDArray[np.int16]:
        """Array from file value to class, 255 for ignored and −1 for unknown values."""
        table = np.full(top, -1, np.int16)
        for value, c in (self.ids or {c: c for c in range(len(self.names))}).items():
            if 0 <= value < top:
                table[value] = c
        table[[value for value in self.ignore if 0 <= value < top]] = IGNORE
        return table


def load_classes(path: str | Path) -> ClassTable:
    """Read a class table from JSON or YAML.

    The file holds `classes`, a list of names or of mappings {name, id or ids, color}, and optionally `ignore_index`, an
    id or a list of them.

    Raises:
        DataError: if the file is missing or holds something else.
    """
    data = _load(path)
    entries = data.get("classes") if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no list `classes`; write one name per class, or name, id and color")
    names, ids, colors = [], {}, []
    for c, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {"name": entry}
        names.append(str(entry.get("name", f"class {c}")))
        own = entry.get("ids", entry.get("id", c))
        ids.update({int(value): c for value in (own if isinstance(own, list) else [own])})
        if "color" in entry:
            colors.append(tuple(int(v) for v in entry["color"]))
    ignore = data.get("ignore_index", []) if isinstance(data, dict) else []
    ignored = frozenset(ignore if isinstance(ignore, list) else [ignore]) | {IGNORE} - ids.keys()
    return ClassTable(tuple(names), ids, tuple(colors) if colors else None, ignored)


def load_class_map(spec: str) -> dict[int, int]:
    """Read `FILE.json[:key]`: a mapping from the labels' classes to the model's.

    Raises:
        DataError: if there is no such mapping.
    """
    path, _, key = spec.partition(":")
    data = _load(path)
    for part in key.split(".") if key else ():
        if not isinstance(data, dict) or part not in data:
            raise DataError(f"{path} has no entry {key!r} (from --class-map {spec})")
        data = data[part]
    if isinstance(data, dict) and "map" in data:
        data = data["map"]
    try:
        return {int(k): int(v) for k, v in data.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{spec} is not a mapping of class ids to class ids") from error


def _load(path: str | Path) -> Any:
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise DataError(f"can't read {path} ({error.strerror})") from error
    try:
        return json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())}") from error


class Labelled:
    """Images with labels.

    Args:
        images: the images.
        paths: label file of each.
        table: what the values mean.

    Attributes:
        images: as given.
        num_classes, class_names: from the table.
    """

    def __init__(self, images: Images, paths: Sequence[Path], table: ClassTable) -> None:
        self.images, self.paths, self.table = images, list(paths), table
        self.num_classes, self.class_names = len(table.names), table.names

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> NDArray[np.uint8]:
        """H×W×3 uint8 RGB."""
        return self.images[i]

    def label(self, i: int) -> NDArray[np.uint8]:
        """H×W uint8 class ids, 255 where ignored.

        Raises:
            DataError: if the file can't be read or has values that are in no class.
        """
        return read_label(self.paths[i], self.table)

    def check(self, sample: int | None = None) -> None:
        """Read `sample` labels (all if None), evenly spread, and compare their sizes with the images'.

        Raises:
            DataError: naming the first file that does not fit.
        """
        count = len(self) if sample is None else min(sample, len(self))
        sizes = self.images.sizes()
        for i in np.linspace(0, len(self) - 1, count).astype(int).tolist():
            shape = self.label(i).shape
            if shape != tuple(sizes[i]):
                raise DataError(
                    f"label {self.paths[i]} is {shape[1]}×{shape[0]} but its image is {sizes[i][1]}×{sizes[i][0]} "
                    "(width×height); give labels of the images' size"
                )


def read_label(path: Path, table: ClassTable) -> NDArray[np.uint8]:
    """Decode one label file: an id map (8, 16 or 32 bit), a palette PNG (its indices), a 0/255 binary mask, or colours.

    Returns:
        H×W uint8 class ids, 255 where ignored.

    Raises:
        DataError: if it can't be read or has values outside the class table.
    """
    try:
        with Image.open(path) as image:
            # Converting a palette image would turn ids into colours.
            values = np.asarray(image if image.mode not in ("RGBA", "LA", "1") else image.convert(_OPAQUE[image.mode]))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"can't read label {path} ({' '.join(str(error).split())})") from error
    if values.ndim == 3:
        return _from_colors(values[..., :3], path, table)
    if values.dtype.kind not in "ui" or (values.size and (values.min() < 0 or values.max() > 65535)):
        raise DataError(f"label {path} holds values that are no class ids ({values.dtype}, {values.min()} to {values.max()})")
    lookup = table.lookup()
    if len(table.names) == 2 and table.ids is None and set(np.unique(values)) <= {0, 255}:
        lookup[255] = 1  # a mask as image editors draw it
    classes = lookup[values]
    if (classes < 0).any():
        unknown = np.unique(values[classes < 0]).tolist()
        raise DataError(
            f"label {path} has ids that are in no class: {_some(unknown)}; there are {len(table.names)} classes "
            f"({_some(list(table.names))}): give a table with --classes, or a --class-map"
        )
    return classes.astype(np.uint8)


_OPAQUE = {"RGBA": "RGB", "LA": "L", "1": "L"}


def _from_colors(values: NDArray[np.uint8], path: Path, table: ClassTable) -> NDArray[np.uint8]:
    if (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all() and table.colors is None:
        grey = Image.fromarray(np.ascontiguousarray(values[..., 0]))
        return _grey(np.asarray(grey), path, table)
    if table.colors is None:
        raise DataError(f"label {path} is a colour image; name the classes' colours with --classes (name, color)")
    packed = values.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    classes = np.full(packed.shape, -1, np.int16)
    for c, (red, green, blue) in enumerate(table.colors):
        classes[packed == red * 65536 + green * 256 + blue] = c
    # Black and white are what colour labels leave unlabelled, unless a class has that colour.
    classes[(classes < 0) & np.isin(packed, (0, 0xFFFFFF))] = IGNORE
    if (classes < 0).any():
        odd = [f"#{v:06x}" for v in np.unique(packed[classes < 0]).tolist()]
        raise DataError(f"label {path} has colours that are in no class: {_some(odd)}; complete --classes")
    return classes.astype(np.uint8)


def _grey(values: NDArray[np.uint8], path: Path, table: ClassTable) -> NDArray[np.uint8]:
    classes = table.lookup()[values]
    if (classes < 0).any():
        raise DataError(f"label {path} has ids that are in no class: {_some(np.unique(values[classes < 0]).tolist())}")
    return classes.astype(np.uint8)


def _some(values: Sequence[Any], most: int = 8) -> str:
    shown = ", ".join(str(v) for v in values[:most])
    return shown + (f", … ({len(values)} in all)" if len(values) > most else "")


def open_labelled(
    images: Any,
    labels: str | Path | None,
    classes: ClassTable | str | Path | None = None,
    *,
    class_map: str | Mapping[int, int] | None = None,
    num_classes: int | None = None,
) -> Labelled:
    """Images and their labels, matched by name in a parallel folder tree.

    Args:
        images: see `open_images`.
        labels: folder of label files. The label of `a/b.jpg` is `a/b.*`, or the one file that begins with `a/b` and a
            separator (`b_labelIds.png`, `b-mask.png`).
        classes: table, or its file; when None, a `classes.json` or `classes.yaml` beside or above the labels is used,
            else the values are the classes 0 … `num_classes` − 1.
        class_map: mapping, or `FILE.json[:key]`, from those classes to the model's.
        num_classes: of the model; only used where there is no table, and to name the classes after a map.

    Raises:
        DataError: if labels are missing or the table can't be used.
    """
    pictures = open_images(images)
    if labels is None or not Path(labels).is_dir():
        raise DataError(f"no folder of labels at {labels}")
    table = classes if isinstance(classes, ClassTable) else _find_table(Path(labels), classes, num_classes)
    if class_map is not None:
        table = table.mapped(load_class_map(class_map) if isinstance(class_map, str) else class_map)
    return Labelled(pictures, _match(pictures.names, Path(labels)), table)


def _find_table(labels: Path, classes: str | Path | None, num_classes: int | None) -> ClassTable:
    if classes is not None:
        return load_classes(classes)
    for folder in (labels, labels.parent, labels.parent.parent):
        for name in ("classes.json", "classes.yaml", "classes.yml"):
            if (folder / name).is_file():
                return load_classes(folder / name)
    if num_classes is None:
        raise DataError(f"nothing says what the values in {labels} mean; give a table with --classes, or --num-classes")
    return ClassTable(tuple(f"class {c}" for c in range(num_classes)))


def _match(names: Sequence[str], root: Path) -> list[Path]:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    by_stem: dict[str, Path] = {}
    by_folder: dict[str, list[str]] = {}
    for file in files:
        stem = file.relative_to(root).with_suffix("").as_posix()
        by_stem[stem] = file
        by_folder.setdefault(str(Path(stem).parent), []).append(stem)
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        stem = name if name in by_stem else Path(name).with_suffix("").as_posix()
        longer = [stem] if stem in by_stem else [
            s for s in by_folder.get(str(Path(name).parent), []) if s.startswith((f"{name}_", f"{name}-", f"{name}."))
        ]
        if len(longer) == 1:
            found.append(by_stem[longer[0]])
        else:
            missing.append(f"{name} ({len(longer)} files fit)" if longer else name)
    if missing:
        raise DataError(f"{len(missing)} of {len(names)} images have no label in {root}: {_some(missing, 3)}")
    return found
