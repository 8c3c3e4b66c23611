"""Report of a benchmark's rows: tables, and plots if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from das3.benchmark.methods import ABLATION
from das3.benchmark.plots import matplotlib_is_there, write_plots
from das3.benchmark.tables import ablation_table, merged_table, results_table, write_tables
from das3.errors import DataError
from das3.files import write_atomically

__all__ = ["BEGIN", "END", "put_into", "report", "summary"]

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


def summary(rows: Sequence[dict[str, Any]], ablations: Sequence[dict[str, Any]]) -> str:
    """Markdown: the mean over suites per method, then a table per suite, then those of the ablations."""
    parts = [merged_table(rows).markdown()] if rows else []
    for part, table in ((rows, results_table), (ablations, lambda chosen: ablation_table(chosen, ABLATION))):
        for suite in dict.fromkeys(row["suite"] for row in part):
            title = suite if part is rows else f"{suite}: ablation"
            parts.append(f"### {title}\n\n{table([row for row in part if row['suite'] == suite]).markdown()}")
    return "\n".join(parts)


def put_into(page: Path, text: str) -> None:
    """Replace the text between the two marker lines of a page.

    Raises:
        DataError: if the marks are not there.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page} lacks the lines {BEGIN} and {END} between which the tables go")
    write_atomically(page, f"{before}{begin}\n\n{text}\n{end}{after}")
