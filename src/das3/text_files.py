"""Read text, JSON and YAML that came from anywhere: recipes, suites, class tables, lists of images.

Whatever is in them, reading ends soon, runs nothing and says what is wrong in one line.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from das3.errors import DataError

__all__ = ["describe_special", "read_json", "read_text", "read_yaml", "refuse_odd_values"]

LARGEST_TEXT = 64 * 2**20
"""Bytes of the largest text file that is read: a list of a million images."""

LARGEST_YAML = 2**20
"""Bytes of the largest YAML file; parsing takes some seconds for each MiB."""

_MOST_NODES = 100_000
"""Values that a YAML file may hold once its aliases are followed: some lines can stand for billions."""

_MARKS = ((b"\xff\xfe\0\0", None), (b"\0\0\xfe\xff", None), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def describe_special(path: str | Path) -> str | None:
    """What a path is that can't be read as a file, such as a named pipe, which would wait forever; None for files.

    Raises:
        OSError: if there is nothing there.
    """
    mode = os.stat(path).st_mode
    kinds: dict[str, Callable[[int], bool]] = {
        "a folder": stat.S_ISDIR,
        "a named pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": lambda m: stat.S_ISCHR(m) or stat.S_ISBLK(m),
    }
    return next((kind for kind, is_one in kinds.items() if is_one(mode)), None)


def read_text(path: str | Path, *, largest: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark, as some editors write it.

    Raises:
        DataError: if it is missing, no file, too large, or in another encoding.
    """
    path = Path(path)
    try:
        if special := describe_special(path):
            raise DataError(f"can't read {path}: it is {special}, not a file")
        size = path.stat().st_size
        if size > largest:
            raise DataError(f"can't read {path}: {size} bytes are more than such a file has ({largest})")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"can't read {path} ({getattr(error, 'strerror', None) or error})") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding or "ascii")
    except UnicodeDecodeError as error:
        where = data[: error.start].count(b"\n") + 1
        raise DataError(f"can't read {path}: it is not in UTF-8 (line {where}); save it in UTF-8") from None
    if "\0" in text:
        raise DataError(f"can't read {path}: it is no text, or not in UTF-8; save it in UTF-8")
    return text


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: if it can't be read, or names a key twice.
    """
    text = read_text(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: {twice!r} is there twice; keep one of them")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise DataError(f"{path} is not JSON that can be read: too many brackets in each other") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({' '.join(str(error).split())})") from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, without its tags for Python objects.

    Raises:
        DataError: if it can't be read, names a key twice, or aliases in it lead in a circle or stand for too much.
    """
    text = read_text(path, largest=LARGEST_YAML)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice(node, path)
        if _count(node, {}, path) > _MOST_NODES:
            raise DataError(f"{path}: its aliases (*name) stand for more than {_MOST_NODES} values; write fewer")
        return loader.construct_document(node)
    except RecursionError:
        raise DataError(f"{path} is not valid YAML: too many brackets or levels in each other") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # Also of values: a date such as 2001-99-99, `!!int x`.
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_twice(root: yaml.Node, path: str | Path) -> None:
    """Raise if a mapping has two equal keys: YAML's own reader takes the last one silently."""
    for node in _walk(root):
        if not isinstance(node, yaml.MappingNode):
            continue
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise DataError(f"{path}, line {line}: {key.value!r} is there twice; keep one of them")
            seen.add(key.value)


def _walk(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once, however many aliases lead to it."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            todo.extend(_children(node))


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _count(node: yaml.Node, known: dict[int, int], path: str | Path) -> int:
    """How many values a node stands for, with all that its aliases do; 0 in `known` is a node that is being counted."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise DataError(f"{path}, line {node.start_mark.line + 1}: an alias (*name) leads in a circle; take it out")
        return known[id(node)]
    known[id(node)] = 0
    total = 1 + sum(_count(child, known, path) for child in _children(node))
    known[id(node)] = total
    return total


def refuse_odd_values(values: object, where: object, name: str = "") -> None:
    """Raise DataError at the first value that no option can have: NaN, infinity, and what is not plain (dates, sets).

    Args:
        values: mappings and lists of plain values, of limited depth.
        where: they come from.
        name: of the option that they are the value of.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            if not isinstance(key, str):
                raise DataError(f"{where}: {str(key)[:50]!r} is no name of an option; write name: value")
            refuse_odd_values(value, where, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_odd_values(value, where, name)
    elif isinstance(values, float) and not math.isfinite(values):
        raise DataError(f"{where}: {name} is {values}, which is no number that can be worked with; give a finite one")
    elif not isinstance(values, str | int | float | None):
        raise DataError(
            f"{where}: {name} is a {type(values).__name__} in YAML, {str(values)[:50]!r}; put text in quotes"
        )
