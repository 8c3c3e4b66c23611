"""The text of `das3 COMMAND --help`: first what people use first, the rest on request."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from das3.errors import RecipeError

__all__ = ["PATHS", "Parser"]

_COLUMN = 28
"""Where the explanations begin."""

PATHS = (
    *("model", "weights", "images", "labels", "out", "recipe", "classes", "class-map", "eval-images", "eval-labels"),
    *("data", "source-model", "suite", "methods", "rows", "page", "sheet", "ids", "checkpoint", "root", "file"),
    *("folder", "folders"),
)
"""Options and positional arguments that may be a file or a folder."""


class Parser(ArgumentParser):  # type: ignore[misc]
    """A parser that groups its options in --help, and leaves most of them to --help-all where there are many.

    Attributes:
        groups: title → options (without dashes) that --help shows under it; empty to show all in one list.
        more: title → options that --help-all shows besides. What no group names stands under "other options".
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(exit_on_error=False, formatter_class=argparse.HelpFormatter, **settings)
        self.groups: Mapping[str, tuple[str, ...]] = {}
        self.more: Mapping[str, tuple[str, ...]] = {}

    def arrange(self, groups: Mapping[str, tuple[str, ...]], more: Mapping[str, tuple[str, ...]]) -> None:
        """Set the groups, and declare `--help-all`; `--help-stage` too if there are options of stages."""
        self.groups, self.more = groups, more
        self.add_argument("--help-all", action=_HelpAll, help="show every option")
        if self._stages():
            self.add_argument("--help-stage", action=_HelpStage, metavar="NAME", help="show every option of one stage")

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The first page."""
        if not self.groups:
            return self._page({"options": self._listed()})
        return self._page({title: self._named(names) for title, names in self.groups.items()})

    def format_everything(self) -> str:
        """Every option of the command; those of the stages that the default recipe does not run by --help-stage."""
        groups = {title: self._named((*names, *self.more.get(title, ()))) for title, names in self.groups.items()}
        groups |= {title: self._named(names) for title, names in self.more.items() if title not in groups}
        shown = {id(action) for actions in groups.values() for action in actions}
        stages = self._stages()
        default = tuple(self.get_default("stages") or ()) if stages else ()
        rest = [a for a in self._listed() if id(a) not in shown and "." not in a.dest]
        groups["other options"] = rest
        groups |= {f"stage {name}": stages[name] for name in default if name in stages}
        others = ", ".join(name for name in stages if name not in default)
        note = f"\nother stages, by `{self.prog} --help-stage NAME`:\n{_wrapped(others, 2)}\n" if others else ""
        return self._page(groups) + note

    def format_stage(self, name: str) -> str:
        """Every option of one stage.

        Raises:
            RecipeError: if there is no such stage.
        """
        stages = self._stages()
        if name not in stages:
            raise RecipeError(f"no stage is called {name!r}; there are: {', '.join(stages)}")
        return "\n".join([f"stage {name}:", *map(_entry, stages[name]), ""])

    def _stages(self) -> dict[str, list[argparse.Action]]:
        """Stage → its options, all of the form --STAGE.OPTION."""
        stages: dict[str, list[argparse.Action]] = {}
        for action in self._actions:
            name, dot, _ = _option(action).partition(".")
            if dot:
                stages.setdefault(name, []).append(action)
        return stages

    def _listed(self) -> list[argparse.Action]:
        return [a for a in self._actions if a.help != argparse.SUPPRESS and _option(a) != "print_config"]

    def _named(self, names: Iterable[str]) -> list[argparse.Action]:
        by_name = {_option(action): action for action in self._actions}
        return [by_name[name] for name in names if name in by_name]

    def _page(self, groups: Mapping[str, list[argparse.Action]]) -> str:
        positional = " ".join(_metavar(a) for a in self._actions if not a.option_strings)
        lines = [
            f"usage: {self.prog} {positional}{' ' if positional else ''}[options]",
            "",
            _prose(self.description or ""),
        ]
        for title, actions in groups.items():
            if actions:
                lines += ["", f"{title}:", *map(_entry, actions)]
        return "\n".join([*lines, ""])


class _HelpAll(argparse.Action):
    """`--help-all`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "nargs": 0, "default": argparse.SUPPRESS, "dest": argparse.SUPPRESS})

    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        print(parser.format_everything(), end="")
        parser.exit()


class _HelpStage(argparse.Action):
    """`--help-stage NAME`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "default": argparse.SUPPRESS, "dest": argparse.SUPPRESS})

    def __call__(self, parser: Any, namespace: Any, values: Any, *_: Any, **__: Any) -> None:
        print(parser.format_stage(values), end="")
        parser.exit()


def _option(action: argparse.Action) -> str:
    """`--align.lr` as "align.lr", a positional argument by its name."""
    longest = max(action.option_strings, key=lambda o: (o.endswith("+") is False, len(o)), default=action.dest)
    return longest.removeprefix("--")


def _entry(action: argparse.Action) -> str:
    """Option, value and explanation, with the default where there is one worth knowing."""
    options = [o for o in action.option_strings if not o.endswith("+")]
    head = "  " + " ".join(filter(None, (", ".join(options), _metavar(action))))
    text = (action.help or "").replace("%%", "%").strip().removesuffix(".")
    if (default := _default(action)) is not None:
        text = f"{text} (default: {default})"
    body = _wrapped(text, _COLUMN)
    return f"{head}\n{body}" if len(head) > _COLUMN - 2 else head + body[len(head) :]


def _prose(text: str) -> str:
    """Paragraphs wrapped to the width of the terminal; commands stay as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if re.match("das3 |source ", p) else _wrapped(" ".join(p.split()), 0) for p in paragraphs)


def _wrapped(text: str, indent: int) -> str:
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.fill(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _metavar(action: argparse.Action) -> str:
    """How the value is written, e.g. N for a whole number and N,N for a pair of them."""
    if action.nargs == 0:
        return ""
    if not action.option_strings:
        names = "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()
        return f"[{names}]" if action.nargs == "?" else names
    if isinstance(action, _HelpStage) or _option(action) == "model":
        return "NAME" if isinstance(action, _HelpStage) else "MODEL"
    return _written(getattr(action, "_typehint", None)) or ("PATH" if _option(action) in PATHS else "TEXT")


def _written(hint: Any) -> str:
    """A type as its values are written; empty for text."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if kind is list or (kind is tuple and ... in inner):
        return "A,B,…"
    if kind is tuple:
        return ",".join(map(_written, inner))
    if kind is not None:
        return "|".join(dict.fromkeys(filter(None, map(_written, inner))))
    return {bool: "[true|false]", int: "N", float: "X"}.get(hint, "")


def _default(action: argparse.Action) -> str | None:
    value = action.default
    if value is None or value is False or value in ({}, argparse.SUPPRESS) or action.nargs == 0:
        return None
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
