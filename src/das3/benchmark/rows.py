"""Rows of a benchmark: one per method, stage and seed; see benchmarks/README.md for their keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from das3.errors import DataError

__all__ = ["ABLATION_FILES", "Row", "read_rows"]

Row = dict[str, Any]

ABLATION_FILES = "-ablation"
"""Ending of the stem of files with rows of ablations."""


def read_rows(paths: Iterable[Path]) -> tuple[list[Row], list[Row]]:
    """Rows of benchmarks and rows of ablations, from files, or from those JSON files of folders that hold rows.

    Raises:
        DataError: if a file that is named holds no rows, or none of a folder's does.
    """
    found: tuple[list[Row], list[Row]] = ([], [])
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        read = {file: rows for file in files if (rows := _rows_in(file)) is not None}
        if not read:
            raise DataError(f"{path} holds no rows of a benchmark; name files such as OUT/SUITE.json, or their folder")
        for file, rows in read.items():
            found[file.stem.endswith(ABLATION_FILES)].extend(rows)
    return found


def _rows_in(file: Path) -> list[Row] | None:
    """The file's rows, None if it holds something else."""
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {file} ({' '.join(str(error).split())})") from error
    needed = {"suite", "method", "stage", "seed", "miou"}
    fits = isinstance(rows, list) and all(isinstance(row, dict) and needed <= row.keys() for row in rows)
    return rows if fits else None
