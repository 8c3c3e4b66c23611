"""What a file may not make das3 do: run somebody's code, or reach the network.

A model folder, a hub repository and a recipe come from anywhere. Code is run when the user names it, as
`package.module:function` in the place of the model, or says --trust (`trust=True` in Python). das3's own networks and
those of torchvision and smp are known code and need neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from das3.errors import ModelError

__all__ = ["names_code", "refuse_code", "refuse_remote"]

KNOWN = ("torchvision", "smp", "das3")

# How timm and transformers are told to fetch a part of a network, or code for it, from elsewhere.
_REMOTE = re.compile(r"(?i)(tu-)?(hf[-_]hub:|local[-_]dir:|[a-z]+://)")


def names_code(spec: object) -> bool:
    """Whether a model's name is `package.module:function` of code that das3 does not know."""
    return isinstance(spec, str) and re.fullmatch(r"[\w.]+:\w+", spec) is not None and spec.split(":")[0] not in KNOWN


def refuse_code(spec: object, where: str, *, trust: bool, instead: str = "") -> None:
    """Stop before code that a file names is run.

    Args:
        spec: what the file gives as the model.
        where: the file.
        trust: the user said that the code may run.
        instead: options that name the model on the command line in place of the file; `--model SPEC` when empty.

    Raises:
        ModelError: if it names code and `trust` is not given.
    """
    if names_code(spec) and not trust:
        named = f"name it with {instead}, or " if (instead := instead or f"--model {spec}") != "--trust" else ""
        raise ModelError(
            f"{where}: its model is code, {spec}, which das3 does not run because a file says so; if the code is "
            f"yours, {named}say --trust (trust=True in Python)"
        )


def refuse_remote(values: object, where: object, key: str = "") -> None:
    """Stop if a model's config has a part fetched from elsewhere.

    Args:
        values: of the config, with whatever they hold.
        where: the config's file.
        key: under which `values` stand.

    Raises:
        ModelError: naming the entry.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            refuse_remote(value, where, str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_remote(value, where, key)
    elif isinstance(values, str) and (_REMOTE.match(values) or ("attn_implementation" in key and "/" in values)):
        raise ModelError(
            f"{where}: {key} is {values!r}, to be fetched from elsewhere, which das3 does not do because a file says "
            "so; take that entry out, or build the network in Python and give it to das3.adapt"
        )
