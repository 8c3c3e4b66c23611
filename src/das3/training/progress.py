"""Progress output: live on a terminal and in a notebook, otherwise a line every few seconds, nothing if quiet."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from das3.errors import printable
from das3.training.loop import Record

__all__ = ["Display", "NotebookBars"]

T = TypeVar("T")


class Display:
    """Progress of one run. Use as a context manager.

    Args:
        quiet: show nothing.
        interval: seconds between two lines if the output is not a terminal.
    """

    def __init__(self, *, quiet: bool = False, interval: float = 10.0) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.interval, self.spoke = interval, time.monotonic()
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal or self.console.is_jupyter,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.notebook = NotebookBars() if self.console.is_jupyter and not quiet else None

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print("\n".join(map(printable, text.split("\n"))), highlight=False, soft_wrap=True, markup=False)

    def track(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass the items through, counting."""
        try:
            for done, item in enumerate(items):
                self._show(what, done, total, "")
                yield item
        finally:
            self._finish(what)

    def step(self, stage: str, record: Record) -> None:
        """Show the progress of a stage's training."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in record.losses.items())
        self._show(stage, record.step, record.steps, f"{losses}  {record.images_per_second:.1f} images/s")
        if record.step == record.steps:
            self._finish(stage)

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        if self.notebook is not None:
            self.notebook.show(what, done, total, note)
        elif self.console.is_terminal:
            task = self.tasks.get(what)
            if task is None:
                task = self.tasks[what] = self.bars.add_task(what, total=total, note=note)
            self.bars.update(task, completed=done, total=total, note=note)
        elif time.monotonic() - self.spoke > self.interval:
            self.spoke = time.monotonic()
            self.say(f"{what} {done}/{total}  {note}".rstrip())

    def _finish(self, what: str) -> None:
        if self.notebook is not None:
            self.notebook.finish(what)
        task = self.tasks.pop(what, None)
        if task is not None:
            self.bars.remove_task(task)


class NotebookBars:
    """Bars in a notebook: HTML that is replaced in place, for which a kernel needs no widgets.

    Args:
        interval: least seconds between two updates of a bar, since each is a message to the browser.
    """

    def __init__(self, interval: float = 0.2) -> None:
        self.interval, self.spoke = interval, -math.inf
        self.handles: dict[str, Any] = {}

    def show(self, what: str, done: int, total: int, note: str) -> None:
        """Draw a bar, or move it."""
        from IPython.display import HTML, display

        if what in self.handles and done < total and time.monotonic() - self.spoke < self.interval:
            return
        self.spoke = time.monotonic()
        text = f"{what} {done}/{total}  {note}".rstrip()
        page = HTML(f'<progress value="{done}" max="{max(total, 1)}"></progress> <code>{html.escape(text)}</code>')
        if what in self.handles:
            self.handles[what].update(page)
        else:
            self.handles[what] = display(page, display_id=True)

    def finish(self, what: str) -> None:
        """Take a bar away."""
        from IPython.display import HTML

        handle = self.handles.pop(what, None)
        if handle is not None:
            handle.update(HTML(""))
