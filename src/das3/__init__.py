"""Adapt a trained semantic segmentation model to new, unlabelled images, without its source data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from das3.errors import Das3Error, DataError, DivergedError, ModelError, RecipeError, TrainingError

if TYPE_CHECKING:
    from das3.api import adapt, evaluate, predict, train_source
    from das3.data.open import open_images, open_labelled
    from das3.evaluation.evaluate import Evaluation
    from das3.evaluation.predictions import Predictions
    from das3.models import load_segmenter, save_segmenter
    from das3.recipe import Recipe
    from das3.segmenter import Segmenter
    from das3.training.result import Result

__version__ = "0.1.0"

__all__ = [
    "Das3Error",
    "DataError",
    "DivergedError",
    "Evaluation",
    "ModelError",
    "Predictions",
    "Recipe",
    "RecipeError",
    "Result",
    "Segmenter",
    "TrainingError",
    "adapt",
    "evaluate",
    "load_segmenter",
    "open_images",
    "open_labelled",
    "predict",
    "save_segmenter",
    "train_source",
]

_HOMES = {
    "Evaluation": "das3.evaluation.evaluate",
    "Predictions": "das3.evaluation.predictions",
    "Recipe": "das3.recipe",
    "Result": "das3.training.result",
    "Segmenter": "das3.segmenter",
    "adapt": "das3.api",
    "evaluate": "das3.api",
    "load_segmenter": "das3.models",
    "open_images": "das3.data.open",
    "open_labelled": "das3.data.open",
    "predict": "das3.api",
    "save_segmenter": "das3.models",
    "train_source": "das3.api",
}


def __getattr__(name: str) -> Any:
    """Import what takes long to import when it is first asked for."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'das3' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is, imported yet or not."""
    return sorted({*globals(), *__all__})
