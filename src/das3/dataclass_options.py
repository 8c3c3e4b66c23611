"""Options as dataclasses: declared on a parser, read from plain values, listed with their explanations."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from das3.errors import RecipeError

__all__ = [
    "add_options",
    "describe_options",
    "from_namespace",
    "frozen",
    "option_rows",
    "options_from",
    "plain_message",
]

T = TypeVar("T")


def add_options(parser: ArgumentParser, kind: type, prefix: str = "", skip: Collection[str] = ()) -> None:
    """Give a parser one option per field of a dataclass, its help taken from the docstrings of the class's bases.

    A field `eval_images` becomes `--eval-images`; with the prefix "align", `lr` becomes `--align.lr`.
    """
    hints, helps = get_type_hints(kind), _field_docs(kind)
    dot = f"{prefix}." if prefix else ""
    for f in fields(kind):
        if f.name not in skip:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            option = f"--{dot}{f.name.replace('_', '-')}"
            text = helps[f.name].replace("%", "%%")  # argparse fills in what follows a single one
            parser.add_argument(option, type=hints[f.name], default=default, help=text)


def _field_docs(kind: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for entry in docstring_parser.parse(base.__doc__ or "").params:
            docs[entry.arg_name] = " ".join((entry.description or "").split())
    return docs


def options_from(kind: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a dataclass of options from plain values, checked as those of the command line are.

    Raises:
        RecipeError: if a name is unknown, or a value does not fit.
    """
    _refuse_unknown(values, [f.name for f in fields(kind)])  # type: ignore[arg-type]
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser, kind)
    try:
        return from_namespace(kind, parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise RecipeError(plain_message(error)) from error


def _refuse_unknown(values: Iterable[str], known: Collection[str]) -> None:
    for name in values:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            raise RecipeError(f"no option {name!r}; {hint}")


def option_rows(kind: type, skip: Collection[str] = ("options",)) -> list[tuple[str, str, str]]:
    """Name, default and explanation of each field of a dataclass of options."""
    docs, rows = _field_docs(kind), []
    for f in fields(kind):
        if f.name not in skip:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            rows.append((f.name, repr(default), docs[f.name]))
    return rows


def describe_options(kind: type, indent: str = "", skip: Collection[str] = ("options",)) -> str:
    """`option_rows` as text, wrapped."""
    lines = (f"{name} ({default}): {text}" for name, default, text in option_rows(kind, skip))
    wrapped = (textwrap.fill(x, 116, initial_indent=indent, subsequent_indent=f"{indent}    ") for x in lines)
    return "\n".join(wrapped)


def from_namespace(kind: type[T], parsed: Namespace) -> T:
    """An instance of a dataclass from the parsed options that `add_options` declared for it."""
    return kind(**{f.name: frozen(parsed[f.name]) for f in fields(kind) if f.name in parsed})  # type: ignore[arg-type]


def frozen(value: Any) -> Any:
    """A parsed value as dataclasses of options hold it: lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def plain_message(error: ArgumentError) -> str:
    """The parser's error in one line that the user can act on."""
    text = " ".join(str(error).split())
    if match := re.search(r'[Kk]ey "([\w.]+)": (.*)', text):
        name, detail = match.groups()
        if value := re.search(r"Given value: (.*)$|Got value: (.*)$", detail):
            detail = f"{value.group(1) or value.group(2)!s} is not a valid value"
        return f"{name.replace('_', '-')}: {detail}; see `das3 adapt --help`"
    return text
