"""Checkpoints that survive kill -9: written to a temporary file, synced, renamed; read without running pickled code."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from das3.errors import TrainingError
from das3.files import writing_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings and containers of them, atomically.

    Raises:
        TrainingError: if it can't be written; the previous checkpoint stays intact.
    """
    try:
        with _interrupts_postponed(), writing_atomically(path) as file:
            torch.save(state, file)
    except OSError as error:
        raise TrainingError(
            f"can't write {path} ({error.strerror}); free some space, then continue with --resume"
        ) from error


@contextmanager
def _interrupts_postponed() -> Iterator[None]:
    """Ctrl-C within it takes effect afterwards: inside torch.save it would come out as a RuntimeError."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    caught: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    for kind in kinds:
        signal.signal(kind, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
    if caught:
        signal.raise_signal(caught[0])


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        TrainingError: if the file is not such a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is not a checkpoint of das3; delete the run folder and start again") from error
    return dict(state)
