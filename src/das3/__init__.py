"""Adapt a trained semantic segmentation model to new, unlabelled images, without its source data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from das3.errors import Das3Error, DataError, ModelError, RecipeError, TrainingError

if TYPE_CHECKING:
    from das3.api import adapt
    from das3.models import load_segmenter, save_segmenter
    from das3.recipe import Recipe
    from das3.segmenter import Segmenter
    from das3.training.launch import Result

__version__ = "0.1.0"

__all__ = [
    "Das3Error",
    "DataError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Result",
    "Segmenter",
    "TrainingError",
    "adapt",
    "load_segmenter",
    "save_segmenter",
]

_HOMES = {
    "Recipe": "das3.recipe",
    "Result": "das3.api",
    "Segmenter": "das3.segmenter",
    "adapt": "das3.api",
    "load_segmenter": "das3.models",
    "save_segmenter": "das3.models",
}


def __getattr__(name: str) -> Any:
    """Import what takes long to import when it is first asked for."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'das3' has no attribute {name!r}")
