"""What the values in label files mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ImageColor

from das3.errors import DataError
from das3.losses import IGNORE_INDEX
from das3.text_files import read_json, read_yaml

__all__ = ["ClassTable", "Color", "load_class_map", "load_classes"]


Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """What the values in label files mean.

    Attributes:
        names: names of the classes 0 … C − 1.
        ids: value in the files → class, or 255. None: the values are the classes, or 0/255 masks of two classes.
        colors: RGB colour of each class, to draw it.
        ignore: values that do not count.
        color_ids: colour in the files → class, or 255, for labels that are RGB images; `colors` when None. Black is
            ignored unless a class has it.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int] | None = None
    colors: tuple[Color, ...] | None = None
    ignore: frozenset[int] = frozenset({IGNORE_INDEX})
    color_ids: Mapping[Color, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE_INDEX:
            raise DataError(f"a class table needs 1 to {IGNORE_INDEX} classes, got {len(self.names)}")
        if self.colors is not None and len(self.colors) != len(self.names):
            raise DataError(f"the class table names {len(self.names)} classes but {len(self.colors)} colours")
        if self.colors is not None and self.color_ids is None:
            if len(set(self.colors)) < len(self.colors):
                color, _ = Counter(self.colors).most_common(1)[0]
                raise DataError(f"the class table gives two classes the colour {color}; give each its own")
            object.__setattr__(self, "color_ids", {color: c for c, color in enumerate(self.colors)})
        for value, c in [*(self.ids or {}).items(), *(self.color_ids or {}).items()]:
            if c != IGNORE_INDEX and not 0 <= c < len(self.names):
                raise DataError(f"the class table puts {value} into class {c}, but there are {len(self.names)} classes")

    @cached_property
    def known_ids(self) -> dict[int, int]:
        """Every id that may occur → its class or 255."""
        ignored = dict.fromkeys(self.ignore, IGNORE_INDEX)
        return {**ignored, **self.ids} if self.ids is not None else {**dict(enumerate_ids(self.names)), **ignored}

    @cached_property
    def known_colors(self) -> dict[int, int]:
        """Every colour that may occur, as 0xRRGGBB → its class or 255."""
        return {0: IGNORE_INDEX, **{_packed(color): c for color, c in (self.color_ids or {}).items()}}

    def mapped(self, class_map: Mapping[int, int], names: Sequence[str] | None = None, count: int = 0) -> ClassTable:
        """The table after merging classes: class c counts as `class_map[c]`; without an entry it is ignored.

        Args:
            class_map: class → new class; 255 or a negative number ignores it as well.
            names: of the new classes; when None, the names of what is in them, joined with +.
            count: the least number of new classes; those without members are named "class 7".
        """
        new = {c: m if 0 <= m < IGNORE_INDEX else IGNORE_INDEX for c, m in class_map.items()}
        used = [m for m in new.values() if m != IGNORE_INDEX]
        size = max([count, len(names or ()), *(m + 1 for m in used)])
        members: list[list[int]] = [[c for c in range(len(self.names)) if new.get(c) == m] for m in range(size)]
        joined = ["+".join(self.names[c] for c in group) or f"class {m}" for m, group in enumerate(members)]
        ids = self.ids if self.ids is not None else dict(enumerate_ids(self.names))
        return ClassTable(
            names=tuple(names or joined),
            ids={value: new.get(c, IGNORE_INDEX) for value, c in ids.items()},
            colors=tuple(self.colors[g[0]] for g in members) if self.colors and all(members) else None,
            ignore=self.ignore,
            color_ids={v: new.get(c, IGNORE_INDEX) for v, c in self.color_ids.items()} if self.color_ids else None,
        )


def enumerate_ids(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Each class as its own id."""
    return ((c, c) for c in range(len(names)))


def _packed(color: Color) -> int:
    return (color[0] << 16) + (color[1] << 8) + color[2]


def load_classes(path: str | Path) -> ClassTable:
    """Read a class table from JSON or YAML.

    The file holds `classes`, a list of names or of mappings {name, id or ids, color or colors}, and optionally
    `ignore_index`, an id or a list of them, and `ignore_colors`. Colours are [r, g, b] or "#rrggbb"; the first of a
    class is the one it is drawn with.

    Raises:
        DataError: if the file is missing or holds something else.
    """
    data = _load(path)
    data = data if isinstance(data, dict) else {"classes": data}
    entries = data.get("classes")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no list `classes`; write one name per class, or name, id and color")
    entries = [entry if isinstance(entry, dict) else {"name": entry} for entry in entries]
    try:
        return _table(data, entries)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a class table ({error}); a class has a name, id or ids, color or colors"
        ) from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _table(data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> ClassTable:
    names = tuple(_name(entry.get("name", f"class {c}")) for c, entry in enumerate(entries))
    if len(set(names)) < len(names):
        raise DataError(f"two classes are called {Counter(names).most_common(1)[0][0]!r}; give each its own name")
    color_ids = {color: c for c, entry in enumerate(entries) for color in _colors_of(entry)}
    if color_ids and not all(map(_colors_of, entries)):
        raise DataError("some classes have a colour and some have none; give each its own")
    colors = tuple(_colors_of(entry)[0] for entry in entries) if color_ids else None
    if len(color_ids) < sum(len(_colors_of(entry)) for entry in entries):
        raise DataError("two classes have the same colour; give each its own")
    color_ids.update(dict.fromkeys(map(_color, data.get("ignore_colors", ())), IGNORE_INDEX))
    ignore = data.get("ignore_index")
    ids = None
    # Said at all, 255 is not the foreground of a mask.
    if ignore is not None or any("id" in entry or "ids" in entry for entry in entries):
        pairs = [(_id(v), c) for c, e in enumerate(entries) for v in _listed(e.get("ids", e.get("id", c)))]
        ids = dict(pairs)
        if len(ids) < len(pairs):
            twice = Counter(value for value, _ in pairs).most_common(1)[0][0]
            raise DataError(f"the id {twice} belongs to two classes; give each its own")
    ignored = frozenset(map(_id, _listed(IGNORE_INDEX if ignore is None else ignore)))
    return ClassTable(names, ids, colors, ignored, color_ids or None)


def _name(value: Any) -> str:
    """A class's name; YAML turns yes, no and dates into something else."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
        raise ValueError(f"{value!r} is no name of a class; put it in quotes")
    return str(value)


def _id(value: Any) -> int:
    """A whole number that can stand in a label file."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**32:
        raise ValueError(f"{value!r} is no id of a class; give a whole number")
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _colors_of(entry: Mapping[str, Any]) -> list[Color]:
    return [_color(c) for c in ([entry["color"]] if "color" in entry else entry.get("colors", []))]


def _color(value: Any) -> Color:
    red, green, blue = ImageColor.getrgb(value)[:3] if isinstance(value, str) else map(int, value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"{value} is not a colour")
    return red, green, blue


def load_class_map(spec: str) -> dict[int, int]:
    """Read `FILE.json[:key]`: a mapping from the labels' classes to the model's.

    Raises:
        DataError: if there is no such mapping.
    """
    path, key = spec, ""
    if not Path(spec).is_file() and ":" in spec:
        path, _, key = spec.rpartition(":")
    data = _load(path)
    for part in key.split(".") if key else ():
        if not isinstance(data, dict) or part not in data:
            raise DataError(f"{path} has no entry {key!r} (from --class-map {spec})")
        data = data[part]
    if isinstance(data, dict) and "map" in data:
        data = data["map"]
    if not isinstance(data, dict):
        raise DataError(f"{spec} is not a mapping of class ids to class ids")
    if not data:
        raise DataError(f"{spec} is an empty mapping; give class ids and what they become")
    try:
        return {int(c): _mapped(new) for c, new in data.items()}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{spec} is not a mapping of class ids to class ids ({error}); ids are 0 to 254, and 255, -1 or null for "
            "what does not count"
        ) from None


def _mapped(value: Any) -> int:
    """What a class becomes; 255, −1 and null ignore it."""
    if value is None or (type(value) is int and value in (-1, IGNORE_INDEX)):
        return IGNORE_INDEX
    if type(value) is not int or not 0 <= value < IGNORE_INDEX:
        raise ValueError(f"{value!r} is no class")
    return value


def _load(path: str | Path) -> Any:
    return read_json(path) if str(path).endswith(".json") else read_yaml(path)
