"""Other libraries' networks, imported only when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from das3.errors import ModelError

__all__ = ["library"]


def library(name: str, extra: str) -> Any:
    """Import a library that das3 can do without.

    Raises:
        ModelError: naming das3's extra that installs it.
    """
    try:
        return importlib.import_module(name)
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision raises the latter beside a torch that it was not built for
        raise ModelError(f"{name} can't be imported ({error}); pip install 'das3[{extra}]'") from error
