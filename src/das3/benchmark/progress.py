"""What a benchmark says while it runs: how many cells there are, which one runs, and how long the rest will take."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from das3.benchmark.cell import Cell
from das3.benchmark.rows import Row
from das3.report.numbers import duration

__all__ = ["GridProgress"]


class GridProgress:
    """Lines about the cells of a grid; cells of several threads may start and end at the same time.

    Args:
        cells: all of the grid, in the order in which they are numbered.
        jobs: how many run at the same time.
        say: called with a line.
        clock: seconds from any point in time.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        jobs: int,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.numbers = {cell.file: number for number, cell in enumerate(cells, start=1)}
        self.jobs, self.say, self.clock = jobs, say, clock
        self.begun = self.spoke = clock()
        self.open = {cell.file: cell for cell in cells if cell.rows() is None}
        self.running: dict[Path, float] = {}
        self.seconds: dict[str, list[float]] = {}  # of finished cells, by kind
        for cell in cells:
            if (rows := cell.rows()) is not None:
                self.seconds.setdefault(cell.kind, []).append(sum(row["seconds"] or 0.0 for row in rows))
        self.lock = threading.Lock()
        self._tell(self._overview(cells))

    def start(self, cell: Cell) -> None:
        """A cell starts; one that is finished already does not."""
        with self.lock:
            if cell.file in self.open:
                self.running[cell.file] = self.clock()
                again = ", goes on where it stopped" if (cell.run / "recipe.yaml").exists() else ""
                self._tell(f"{self._name(cell)} starts{again}")

    def end(self, cell: Cell, rows: Sequence[Row]) -> None:
        """A cell has ended.

        Args:
            cell: of the grid; one that was finished before is not spoken of.
            rows: its results; with an `error` if it failed.
        """
        with self.lock:
            if self.open.pop(cell.file, None) is None:
                return
            took = self.clock() - self.running.pop(cell.file)
            failed = next((row["error"] for row in rows if "error" in row), None)
            if failed is None:
                self.seconds.setdefault(cell.kind, []).append(took)
            found = ", ".join(f"{row['stage']} {row['miou']:.1f} %" for row in rows if row["miou"] is not None)
            result = f"mIoU {found}" if failed is None else f"failed: {failed}"
            self._tell(f"{self._name(cell)} ends after {duration(took)}; {result}")
            self._tell(f"  {duration(self.clock() - self.begun)} elapsed, {self._left()}")

    def wait(self, interval: float) -> None:
        """Say how far the running cells are, if nothing was said for `interval` seconds."""
        with self.lock:
            if self.clock() - self.spoke >= interval:
                for file, started in sorted(self.running.items(), key=lambda item: self.numbers[item[0]]):
                    where = _where(self.open[file])
                    self._tell(f"  {self._name(self.open[file])}: {where}{duration(self.clock() - started)} so far")

    def close(self) -> None:
        """All that could be run has ended."""
        skipped = f"; {_cells(len(self.open))} not run, as their source model failed" if self.open else ""
        self._tell(f"all done after {duration(self.clock() - self.begun)}{skipped}")

    def _overview(self, cells: Sequence[Cell]) -> str:
        if not cells:
            return "no cell to run"
        kinds = ", ".join(dict.fromkeys(cell.kind for cell in cells))
        seeds = len({cell.seed for cell in cells})
        there, todo = len(cells) - len(self.open), len(self.open)
        at_once = f", {self.jobs} at a time" if self.jobs > 1 else ""
        return (
            f"suite {cells[0].suite.name}: {_cells(len(cells))} ({kinds}; {seeds} seed{'s' * (seeds != 1)}), "
            f"{there} finished already, {todo} to run{at_once}"
        )

    def _name(self, cell: Cell) -> str:
        return f"cell {self.numbers[cell.file]} of {len(self.numbers)}: {cell.kind}, seed {cell.seed}"

    def _left(self) -> str:
        """Cells and time that are left."""
        if not self.open:
            return "none left"
        every = [seconds for found in self.seconds.values() for seconds in found]
        if not every:
            return f"{_cells(len(self.open))} left"
        now, total = self.clock(), 0.0
        for file, cell in self.open.items():
            expected = statistics.fmean(self.seconds.get(cell.kind, every))
            total += max(0.0, expected - (now - self.running[file] if file in self.running else 0.0))
        return f"{_cells(len(self.open))} left, about {duration(total / min(self.jobs, len(self.open)))}"

    def _tell(self, line: str) -> None:
        self.spoke = self.clock()
        self.say(line)


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _where(cell: Cell) -> str:
    """Stage and step that its log speaks of, if it has one."""
    try:
        with (cell.run / "metrics.jsonl").open("rb") as file:
            last = json.loads(file.readlines()[-1])
        return f"{last['stage']} step {last['step']} of {last['steps']}, "
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
