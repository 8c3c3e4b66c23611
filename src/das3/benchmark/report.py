"""What is written about a benchmark's rows: tables always, plots where matplotlib is installed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from das3.files import write_atomically

from das3.benchmark.methods import ABLATION
from das3.benchmark.plots import matplotlib_is_there, write_plots
from das3.benchmark.tables import ablation_table, merged_table, results_table, write_tables
from das3.errors import DataError

__all__ = ["ABLATION_FILES", "BEGIN", "END", "put_into", "read_rows", "report", "summary"]

ABLATION_FILES = "-ablation"
"""Ending of the stem of files with rows of ablations."""

BEGIN, END = "<!-- tables: made by `das3 tables` -->", "<!-- end of tables -->"


def report(rows: Sequence[dict[str, Any]], folder: Path, name: str, *, ablation: bool = False) -> str:
    """Write NAME-table.md, .tex, .csv and .json, tables of the classes, and plots as PDF and PNG.

    Returns:
        The table, in Markdown.
    """
    table = ablation_table(rows, ABLATION) if ablation else results_table(rows)
    write_tables(rows, folder, f"{name}-table", table)
    if matplotlib_is_there():
        write_plots(rows, folder, name)
    return table.markdown()


def read_rows(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of benchmarks and rows of ablations, from files, or from those JSON files of folders that hold rows.

    Raises:
        DataError: if a file that is named holds no rows, or none of a folder's does.
    """
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        read = {file: rows for file in files if (rows := _rows_in(file)) is not None}
        if not read:
            raise DataError(f"{path} holds no rows of a benchmark; name files such as OUT/SUITE.json, or their folder")
        for file, rows in read.items():
            found[file.stem.endswith(ABLATION_FILES)].extend(rows)
    return found


def _rows_in(file: Path) -> list[dict[str, Any]] | None:
    """The file's rows, None if it holds something else."""
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {file} ({' '.join(str(error).split())})") from error
    needed = {"suite", "method", "stage", "seed", "miou"}
    fits = isinstance(rows, list) and all(isinstance(row, dict) and needed <= row.keys() for row in rows)
    return rows if fits else None


def summary(rows: Sequence[dict[str, Any]], ablations: Sequence[dict[str, Any]]) -> str:
    """Markdown: the mean over suites per method, then a table per suite, then those of the ablations."""
    parts = [merged_table(rows).markdown()] if rows else []
    for part, table in ((rows, results_table), (ablations, lambda chosen: ablation_table(chosen, ABLATION))):
        for suite in dict.fromkeys(row["suite"] for row in part):
            title = suite if part is rows else f"{suite}: ablation"
            parts.append(f"### {title}\n\n{table([row for row in part if row['suite'] == suite]).markdown()}")
    return "\n".join(parts)


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        DataError: if the marks are not there.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page} lacks the lines {BEGIN} and {END} between which the tables go")
    write_atomically(page, f"{before}{begin}\n\n{text}\n{end}{after}".encode())
