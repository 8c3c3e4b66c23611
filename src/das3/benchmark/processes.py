"""Cells in processes of their own: at once, beside other work, and in the order in which they need each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import torch

from das3.benchmark.cell import Cell, run_cell, shared_phases
from das3.benchmark.progress import GridProgress
from das3.benchmark.rows import Row
from das3.errors import Das3Error
from das3.files import write_atomically

__all__ = ["attempt", "beside", "in_process", "reason", "rows_of", "run_all"]

_SILENCE = 30.0  # seconds after which the running cells are spoken of


@contextmanager
def beside(cell: Cell) -> Iterator[None]:
    """Run a cell in a process of one thread beside the work in the block, which has a thread less; both end here.

    A small network does not keep two cores busy, but two networks do.
    """
    alive: set[BaseProcess] = set()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(in_process, cell, 1, alive)
        try:
            torch.set_num_threads(max(1, threads - 1))
            yield
            running.result()
        except BaseException:
            for process in tuple(alive):
                process.terminate()
            raise
        finally:
            torch.set_num_threads(threads)


def run_all(cells: Sequence[Cell], jobs: int, progress: GridProgress) -> None:
    """Run cells, `jobs` at once: a seed's source model first, and of cells with the same first stages one first."""
    parents = {cell.file: _parent(cell, cells[:place]) for place, cell in enumerate(cells)}
    threads = max(1, torch.get_num_threads() // jobs)
    alive: set[BaseProcess] = set()
    running: dict[Future[None], Cell] = {}

    with ThreadPoolExecutor(jobs) as pool:

        def work(cell: Cell) -> None:
            progress.start(cell)
            in_process(cell, threads, alive)

        def start(after: Cell | None) -> None:
            for cell in cells:
                if parents[cell.file] is after:
                    running[pool.submit(work, cell)] = cell

        try:
            start(None)
            while running:
                for future in wait(running, _SILENCE, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    future.result()
                    progress.end(cell, rows_of(cell))
                    if cell.rows() is not None or cell.kind != "source":
                        start(cell)
                progress.wait(_SILENCE)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(alive):
                process.terminate()
            raise


def _parent(cell: Cell, before: Sequence[Cell]) -> Cell | None:
    """The cell that must be finished before this one starts."""
    if cell.kind == "source":
        return None
    mine = [other for other in before if other.seed == cell.seed]
    methods = [other for other in mine if other.kind not in ("source", "oracle")]
    shared = [shared_phases(other.made_with, cell.made_with) for other in methods]
    if cell.kind == "oracle" or not any(shared):
        return mine[0]
    return methods[shared.index(max(shared))]


def in_process(cell: Cell, threads: int, alive: set[BaseProcess]) -> None:
    """Run a cell in a process of its own, whose peak memory is the cell's; its file holds the result."""
    if cell.rows() is not None:
        return
    cell.error.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(cell, threads))
    process.start()
    alive.add(process)
    process.join()
    alive.discard(process)
    if process.exitcode and not cell.error.exists():
        code = process.exitcode
        why = f"the process was ended by signal {-code}, 9 if memory ran out" if code < 0 else f"exit status {code}"
        write_atomically(cell.error, f"{why}\n")


def _child(cell: Cell, threads: int) -> None:
    """Main function of the process; it ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    attempt(cell)


def attempt(cell: Cell) -> None:
    """Run a cell; an error is written to its file."""
    try:
        run_cell(cell)
    except Exception as error:
        last = str(error) if isinstance(error, Das3Error) else f"{type(error).__name__}: {error}"
        write_atomically(cell.error, f"{traceback.format_exc()}\n{' '.join(last.split())}\n")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def rows_of(cell: Cell) -> list[Row]:
    """Rows of a cell; without mIoU if it failed."""
    rows = cell.rows()
    if rows is not None:
        return rows
    known = {"suite": cell.suite.name, "method": cell.kind, "seed": cell.seed, "error": reason(cell)}
    missing = dict.fromkeys(("miou", "gap_closed", "seconds", "peak_mib", "peak_gpu_mib", "commit", "per_class_iou"))
    return [{**known, "stage": stage, **missing} for stage in cell.stages]


def reason(cell: Cell) -> str:
    """The last line of its error."""
    return cell.error.read_text().strip().splitlines()[-1] if cell.error.exists() else "its source model failed"
