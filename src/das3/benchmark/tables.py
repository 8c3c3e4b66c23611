"""Tables of benchmark rows: mean ± standard deviation over seeds, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das3.benchmark.rows import Row
from das3.errors import DataError
from das3.files import write_atomically

__all__ = [
    "BOUNDS",
    "Column",
    "Stat",
    "Table",
    "ablation_table",
    "class_table",
    "last_stages",
    "latex_table",
    "markdown_table",
    "merged_table",
    "results_table",
    "write_tables",
]


_NAMES = ("suite", "method", "stage")
BOUNDS = {"source": 0, "advent": 2, "oracle": 3}
"""Rows that are no competitors, as they do nothing or see what methods must not, and their position; methods have 1."""

_MARKED = {("method", "advent"): "advent (sees source data)"}


@dataclass(frozen=True)
class Stat:
    """A value over seeds.

    Attributes:
        mean: over the seeds that have one.
        std: sample standard deviation (n − 1); None with one seed.
        count: n, how many seeds have a value.
    """

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        name: its head in tables that are read.
        key: its name in CSV and JSON.
        value: takes it out of a row; None or NaN where the row has none.
        decimals: digits after the point.
        scale: multiplies it in tables that are read; CSV and JSON keep the rows' unit.
        best: whether the suite's largest value, bounds left out, is set in bold.
    """

    name: str
    key: str
    value: Callable[[Row], float | None]
    decimals: int = 1
    scale: float = 1.0
    best: bool = False


@dataclass(frozen=True)
class _Line:
    names: tuple[str, ...]
    method: str
    suite: str
    seeds: tuple[int, ...]
    failed: int
    commits: tuple[str, ...]
    stats: tuple[Stat | None, ...]


class Table:
    """Rows grouped by suite, method and stage.

    Args:
        rows: mappings with at least seed, method and the names that they are grouped by; those of failed runs have an
            error and no numbers.
        columns: what is shown of them.
        names: what they are grouped by.

    Raises:
        DataError: if a suite, method, stage and seed occur twice.
    """

    def __init__(self, rows: Iterable[Row], columns: Sequence[Column], names: Sequence[str] = _NAMES) -> None:
        self.columns, self.names = tuple(columns), tuple(names)
        groups: dict[tuple[str, ...], dict[int, Row]] = {}
        for row in rows:
            group = tuple(str(row[name]) for name in self.names)
            if groups.setdefault(group, {}).setdefault(row["seed"], row) is not row:
                raise DataError(f"two rows of seed {row['seed']} of {', '.join(group)}; take one of them out")
        lines = [self._line(group, found) for group, found in groups.items()]
        suites = list(dict.fromkeys(line.suite for line in lines))
        self.lines = sorted(lines, key=lambda line: (suites.index(line.suite), BOUNDS.get(line.method, 1)))

    def _line(self, names: tuple[str, ...], rows: Mapping[int, Row]) -> _Line:
        commits = tuple(dict.fromkeys(row["commit"] for row in rows.values() if row.get("commit")))
        stats = tuple(_stat(column.value(row) for row in rows.values()) for column in self.columns)
        first = next(iter(rows.values()))
        failed = sum("error" in row for row in rows.values())
        return _Line(names, str(first["method"]), str(first.get("suite", "")), tuple(rows), failed, commits, stats)

    def _best(self, line: _Line, column: int) -> bool:
        mine = line.stats[column]
        if not self.columns[column].best or mine is None or line.method in BOUNDS:
            return False
        baselines = [o.stats[column] for o in self.lines if o.suite == line.suite and o.method not in BOUNDS]
        return mine.mean == max(stat.mean for stat in baselines if stat is not None)

    def _texts(self, plus_minus: str, none: str, bold: str) -> list[list[str]]:
        """Cells of all lines as they are read."""
        lines = []
        for line in self.lines:
            seeds = len(line.seeds)
            names = (_MARKED.get(pair, pair[1]) for pair in zip(self.names, line.names, strict=True))
            cells = [*names, f"{seeds - line.failed}/{seeds}" if line.failed else str(seeds)]
            for place, (column, stat) in enumerate(zip(self.columns, line.stats, strict=True)):
                cell = none if stat is None else _number(stat, column, plus_minus)
                cells.append(bold.format(cell) if self._best(line, place) else cell)
            lines.append(cells)
        return lines

    @property
    def _heads(self) -> list[str]:
        return [*self.names, "seeds", *(column.name for column in self.columns)]

    def markdown(self) -> str:
        """A GitHub table; numbers are flush right, the best in bold."""
        return markdown_table(self._heads, self._texts(" ± ", "–", "**{}**"), names=len(self.names))

    def latex(self) -> str:
        """A `tabular` for the package booktabs; a rule between suites, the best in bold."""
        texts = self._texts(r" $\pm$ ", "--", r"\textbf{{{}}}")
        rules = [place for place in range(1, len(texts)) if self.lines[place].suite != self.lines[place - 1].suite]
        return latex_table(self._heads, texts, names=len(self.names), rules=rules)

    def csv(self) -> str:
        """One line per group, a column for the mean and one for the standard deviation; empty where there is none."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*self.names, "seeds", *(k for c in self.columns for k in (c.key, f"{c.key} std"))])
        for line in self.lines:
            numbers = [n for stat in line.stats for n in ((stat.mean, stat.std) if stat else (None, None))]
            writer.writerow([*line.names, len(line.seeds), *numbers])
        return buffer.getvalue()

    def json(self) -> str:
        """A list of objects: suite, method, stage, seeds, commits, and {"mean", "std", "count"} or null per column."""
        objects = [
            dict(zip(self.names, line.names, strict=True))
            | {"seeds": line.seeds, "commits": line.commits}
            | {c.key: vars(stat) if stat else None for c, stat in zip(self.columns, line.stats, strict=True)}
            for line in self.lines
        ]
        return json.dumps(objects, indent=1, allow_nan=False) + "\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A GitHub table; the first columns, as many as `names`, are flush left, the others right."""
    rule = ["---"] * names + ["--:"] * (len(heads) - names)
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in (heads, rule, *rows)
    )


def latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1, rules: Sequence[int] = ()) -> str:
    """A `tabular` for the package booktabs; heads and the first columns are escaped, the others are LaTeX already.

    Args:
        heads: of the columns.
        rows: a text per column.
        names: how many columns are names, flush left.
        rules: rows that a rule stands before.
    """
    out = [rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(heads) - names)}}}", r"\toprule"]
    out += [" & ".join(map(_escaped, heads)) + r" \\", r"\midrule"]
    for place, cells in enumerate(rows):
        if place in rules:
            out.append(r"\midrule")
        out.append(" & ".join([*map(_escaped, cells[:names]), *cells[names:]]) + r" \\")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", ""])


def _stat(values: Iterable[float | None]) -> Stat | None:
    found = [value for value in values if value is not None and not math.isnan(value)]
    if not found:
        return None
    return Stat(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def _number(stat: Stat, column: Column, plus_minus: str) -> str:
    parts = [stat.mean] if stat.std is None else [stat.mean, stat.std]
    rounded = (round(column.scale * part, column.decimals) + 0.0 for part in parts)  # + 0.0 makes −0 a 0
    return plus_minus.join(f"{part:.{column.decimals}f}" for part in rounded)


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def results_table(rows: Iterable[Row]) -> Table:
    """mIoU (rows: percent), share of the gap closed (rows: 0 … 1), seconds and peak memory.

    Args:
        rows: as benchmarks write them: suite, method, stage, seed, miou, gap_closed, seconds, peak_mib, peak_gpu_mib,
            commit; what is missing, None or NaN leaves the mean.
    """
    rows = list(rows)
    columns = [
        _MIOU,
        _GAP,
        Column("seconds", "seconds", lambda row: row.get("seconds"), decimals=0),
        Column("peak MiB", "peak_mib", lambda row: row.get("peak_mib"), decimals=0),
    ]
    if any(row.get("peak_gpu_mib") for row in rows):
        columns.append(Column("peak GPU MiB", "peak_gpu_mib", lambda row: row.get("peak_gpu_mib"), decimals=0))
    return Table(rows, columns)


_MIOU = Column("mIoU %", "miou", lambda row: row.get("miou"), best=True)
_GAP = Column("gap closed %", "gap_closed", lambda row: row.get("gap_closed"), decimals=0, scale=100, best=True)


def last_stages(rows: Iterable[Row]) -> list[Row]:
    """What each method ends with: of every suite, method and seed the last row."""
    return list({(row["suite"], row["method"], row["seed"]): row for row in rows}.values())


def ablation_table(rows: Iterable[Row], parts: Mapping[str, Sequence[str]]) -> Table:
    """A line per variant of das3: mIoU after each stage, at the end, how much that is more than das3's, gap closed.

    Args:
        rows: see `results_table`; the method that all others are variants of is called das3.
        parts: names of the variants by the part of das3 that they change.
    """
    rows = list(rows)
    part_of = {name: part for part, names in parts.items() for name in names}
    stages = [s for s in dict.fromkeys(str(row["stage"]) for row in rows) if s not in BOUNDS]
    after: dict[tuple[Any, ...], float | None] = {}
    for row in rows:
        after[row["suite"], row["method"], row["seed"], row["stage"]] = row.get("miou")
    lines = []
    last = {(row["suite"], row["method"], row["seed"]): row for row in last_stages(rows)}
    for (suite, method, seed), row in last.items():
        full = last.get((suite, "das3", seed), {}).get("miou")
        mine = row.get("miou")
        change = mine - full if mine is not None and full is not None else None
        reached = {stage: after.get((suite, method, seed, stage)) for stage in stages}
        lines.append({**row, "variant": method, "part": part_of.get(method, ""), "change": change, "after": reached})

    def at(stage: str) -> Callable[[Row], float | None]:
        return lambda line: line["after"][stage]

    columns = [Column(f"mIoU % after {stage}", stage, at(stage)) for stage in stages]
    columns += [_MIOU, Column("change, points", "change", lambda line: line["change"]), _GAP]
    return Table(lines, columns, ("suite", "part", "variant"))


def merged_table(rows: Iterable[Row]) -> Table:
    """A line per method over several suites: gap closed on each, and the mean of it, the largest first.

    A method that is missing on a suite, or a seed of it, has no mean there. The mean is taken for each seed first.
    """
    last = last_stages(rows)
    suites = list(dict.fromkeys(str(row["suite"]) for row in last))
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in last:
        line = lines.setdefault((row["method"], row["seed"]), {"method": row["method"], "seed": row["seed"]})
        line[f"on {row['suite']}"] = row.get("gap_closed")
    for line in lines.values():
        gaps = [gap for suite in suites if (gap := line.get(f"on {suite}")) is not None]
        line["mean"] = statistics.fmean(gaps) if len(gaps) == len(suites) else None

    def mean(line: Row) -> float:
        found = [other["mean"] for other in lines.values() if other["method"] == line["method"]]
        known = [value for value in found if value is not None]
        return -statistics.fmean(known) if known else math.inf

    def on(name: str) -> Callable[[Row], float | None]:
        return lambda line: line.get(name)

    columns = [Column(f"{suite}, gap closed %", suite, on(f"on {suite}"), 0, 100, best=True) for suite in suites]
    columns.append(Column("mean, gap closed %", "mean", on("mean"), 0, 100, best=True))
    return Table(sorted(lines.values(), key=mean), columns, ("method",))


def class_table(rows: Iterable[Row]) -> Table:
    """IoU of each class (rows: `per_class_iou`, percent by name) and their mean, of one suite.

    Raises:
        DataError: if the rows have different classes.
    """
    rows = list(rows)
    kinds = {tuple(row["per_class_iou"]): row for row in rows if row.get("per_class_iou")}
    if len(kinds) > 1:
        suites = ", ".join(dict.fromkeys(str(row["suite"]) for row in kinds.values()))
        raise DataError(f"the rows of {suites} have different classes; make a table of each suite")
    names = next(iter(kinds), ())

    def of(name: str) -> Callable[[Row], float | None]:
        return lambda row: (row.get("per_class_iou") or {}).get(name)

    columns = [Column(f"{name} %", name, of(name), best=True) for name in names]
    return Table(rows, [*columns, _MIOU])


def write_tables(
    rows: Iterable[Row], folder: str | Path, name: str = "table", table: Table | None = None
) -> list[Path]:
    """Write NAME.md, .tex, .csv and .json of `table`, or else of the results, and NAME-SUITE-classes.* for every suite
    with IoU per class.

    Returns:
        The files.
    """
    rows = list(rows)
    tables = {name: table or results_table(rows)}
    for suite in dict.fromkeys(str(row["suite"]) for row in rows):
        chosen = [row for row in rows if str(row["suite"]) == suite]
        if any(row.get("per_class_iou") for row in chosen):
            tables[f"{name}-{suite}-classes"] = class_table(chosen)
    written = []
    for stem, table in tables.items():
        texts = {"md": table.markdown(), "tex": table.latex(), "csv": table.csv(), "json": table.json()}
        for suffix, text in texts.items():
            written.append(Path(folder) / f"{stem}.{suffix}")
            write_atomically(written[-1], text)
    return written
