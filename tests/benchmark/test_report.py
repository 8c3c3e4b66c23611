"""Tables of several suites, and those of the committed results."""

import json
from pathlib import Path

import pytest

from das3.benchmark.report import BEGIN, END, put_into, summary
from das3.benchmark.rows import read_rows
from das3.benchmark.suites import SUITES
from das3.cli import main
from das3.errors import DataError

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def test_the_committed_tables_are_those_of_the_committed_rows():
    results = README.parent / "results"
    _, marked, rest = README.read_text().partition(BEGIN)
    if not any((results / f"{suite}.json").exists() for suite in SUITES):
        pytest.skip("no results are committed yet")
    assert marked
    assert rest.partition(END)[0].strip() == summary(*read_rows([results])).strip()


def test_tables_of_several_suites_go_into_a_page(grid, tmp_path, capsys):
    _, _, rows = grid
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    for name, gain in (("a", 0.0), ("b", 0.1)):
        changed = [{**row, "suite": name, "gap_closed": row["gap_closed"] + gain} for row in rows]
        (results / f"{name}.json").write_text(json.dumps(changed))
    (results / "a-ablation.json").write_text(json.dumps([{**row, "suite": "a"} for row in rows]))
    page.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\nAfter.\n")
    given = ["tables", "--rows", str(results), "--page", str(page)]
    assert main([*given, "--out", str(tmp_path / "tables")]) == 0
    text = page.read_text()
    assert main(given) == 0
    assert page.read_text() == text
    assert text.startswith(
        f"Before.\n\n{BEGIN}\n\n| method | seeds | a, gap closed % | b, gap closed % | mean, gap closed % |\n"
    )
    assert text.endswith(f"|\n\n{END}\nAfter.\n")
    assert "old" not in text
    assert "### a: ablation\n\n| suite | part | variant | seeds | mIoU % after bn | mIoU % after align |" in text
    assert {"results-table.tex", "results-bars.pdf", "ablation-table.csv"} <= {
        p.name for p in (tmp_path / "tables").iterdir()
    }
    capsys.readouterr()
    other = results / "c.json"
    other.write_text('{"stages": []}')
    assert main(given) == 0
    capsys.readouterr()
    assert main(["tables", "--rows", str(other)]) == 2
    assert "c.json" in capsys.readouterr().err
    page.write_text("nothing")
    with pytest.raises(DataError, match="lacks the lines"):
        put_into(page, "")
