"""Where losses, mIoU and pictures of a run go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from das3.errors import RecipeError
from das3.training.event_file import EventFile

__all__ = ["Logger", "open_loggers"]


class Logger(Protocol):
    """A place that keeps numbers and pictures by name and step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep numbers of one step."""
        ...

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Keep a picture H×W×3."""
        ...

    def close(self) -> None:
        """Write what is still to be written."""
        ...


class WeightsAndBiases:
    """A run of the `wandb` client, whose own settings say where to (WANDB_PROJECT, WANDB_MODE=offline …)."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self.wandb = _client("wandb")
        self.run = self.wandb.init(name=folder.name, dir=str(folder), config=dict(recipe), resume="allow")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`; stages count their steps anew, so the step is a value and not wandb's own."""
        self.run.log({**values, "step": step})

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """See `Logger`."""
        self.run.log({name: self.wandb.Image(pixels), "step": step})

    def close(self) -> None:
        """See `Logger`."""
        self.run.finish()


class MLflow:
    """A run of the `mlflow` client, whose own settings say where to (MLFLOW_TRACKING_URI …)."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self.mlflow = _client("mlflow")
        self.mlflow.start_run(run_name=folder.name)
        # MLflow takes up to 6000 characters per value, and names without brackets.
        self.mlflow.log_params({name: str(value)[:500] for name, value in recipe.items()})

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        self.mlflow.log_metrics({name: float(value) for name, value in values.items()}, step=step)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """See `Logger`."""
        self.mlflow.log_image(pixels, artifact_file=f"{name}-{step}.png")

    def close(self) -> None:
        """See `Logger`."""
        self.mlflow.end_run()


def open_loggers(folder: Path, logger: str | None, recipe: Mapping[str, Any]) -> list[Logger]:
    """TensorBoard, and the one that was asked for.

    Args:
        folder: of the run.
        logger: "wandb", "mlflow" or None.
        recipe: options of the run.

    Raises:
        RecipeError: if the client is not installed.
    """
    more: dict[str, Any] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    asked = [more[logger](folder, recipe)] if logger else []
    return [EventFile(folder / "tensorboard"), *asked]


def _client(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(f"--logger {name} needs its client ({error}); pip install {name}") from error
