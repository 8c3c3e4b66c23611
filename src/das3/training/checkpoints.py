"""Checkpoints that survive kill -9: written to a temporary file, synced, renamed; read without running pickled code."""

from __future__ import annotations

import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from das3.errors import TrainingError
from das3.files import os_error, why_not_written, writing_atomically

__all__ = ["BackgroundWriter", "load_checkpoint", "save_checkpoint", "snapshot_of", "unfit"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings and containers of them, atomically.

    Raises:
        TrainingError: if it can't be written; the previous checkpoint stays intact.
    """
    try:
        with _interrupts_postponed(), writing_atomically(path) as file:
            torch.save(state, file)
    except OSError as error:
        raise TrainingError(f"{why_not_written(path, error)}, then go on with --resume") from error


@contextmanager
def _interrupts_postponed() -> Iterator[None]:
    """Ctrl-C within it takes effect afterwards: inside torch.save it would come out as a RuntimeError."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    caught: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        if len(caught) > 1:  # twice means at once
            raise KeyboardInterrupt

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield
    except Exception:
        if len(caught) > 1:  # raised below, and out of torch.save it came as another error
            raise KeyboardInterrupt from None
        raise
    finally:
        for kind, handler in before.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
    if caught:
        signal.raise_signal(caught[0])


class BackgroundWriter:
    """Writes one thing after another in a thread, so that training need not wait for a disk.

    As a context manager it waits, whatever ends the block, until all is written. What could not be written is raised
    by the next call, at the latest at the end of the block, unless that ends with another error.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Have something written, as soon as what is being written is."""
        self.wait()

        def work() -> None:
            try:
                write()
            except BaseException as error:  # it is the main thread's to tell
                self._error = error

        self._thread = threading.Thread(target=work, name="das3-checkpoints", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written; raises what prevented it."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what prevented something from being written, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()


def snapshot_of(state: Any) -> Any:
    """A copy on the CPU of tensors in any containers, which training on does not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: snapshot_of(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(snapshot_of, state))
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        TrainingError: if the file is missing, damaged, or no such checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not compare the sums that it writes
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make their readers trip in any way there is
        cause = os_error(error)
        raise unfit(path, f"it can't be read: {cause.strerror}" if cause else "it is damaged") from error
    if not isinstance(state, dict):
        raise unfit(path, "it is not a checkpoint of das3")
    return state


def unfit(path: Path, why: str) -> TrainingError:
    """The error for a checkpoint that a run can't go on from."""
    last = path.with_name("last.pt")
    return TrainingError(
        f"{path} can't be used ({why}); remove {last}, and --resume begins the run anew, or choose another --out"
    )
