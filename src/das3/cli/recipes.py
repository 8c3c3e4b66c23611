"""`das3 recipes`: the settings that come with das3."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.errors import RecipeError
from das3.files import write_atomically
from das3.recipe import recipe_names, recipe_path

__all__ = ["HELP", "add", "run"]

HELP = """
das3 recipes
das3 recipes show gta5-cityscapes
das3 recipes copy gta5-cityscapes mine.yaml
das3 adapt --recipe mine.yaml …
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("action", nargs="?", choices=("list", "show", "copy"), default="list", help="what to do")
    parser.add_argument("name", nargs="?", type=str, help="recipe to show or copy")
    parser.add_argument("file", nargs="?", type=str, help="file to copy it to; NAME.yaml in this folder if not given")


def run(given: Namespace) -> None:
    """Print or write."""
    if given.action == "list":
        names = recipe_names()
        width = max(map(len, names))
        for name in names:
            print(f"{name:<{width}}  {_title(_text(name))}")
        return
    if given.name is None:
        raise RecipeError(f"`das3 recipes {given.action}` needs a name; there are: {', '.join(recipe_names())}")
    text = _text(given.name)
    if given.action == "show":
        print(text, end="")
        return
    target = Path(given.file or f"{given.name}.yaml")
    if target.exists():
        raise RecipeError(f"{target} exists already; name another file")
    write_atomically(target, text)
    print(target)


def _text(name: str) -> str:
    """Text of a recipe that comes with das3."""
    if name not in recipe_names():
        raise RecipeError(f"das3 has no recipe {name}; there are: {', '.join(recipe_names())}")
    return recipe_path(name).read_text(encoding="utf-8")


def _title(text: str) -> str:
    """The first line, which is a comment of one whole sentence."""
    return text.split("\n", 1)[0].removeprefix("#").strip()
