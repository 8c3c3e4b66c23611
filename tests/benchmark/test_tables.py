"""Tables of rows: numbers against NumPy, formats against their parsers."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from das3.benchmark.tables import ablation_table, class_table, merged_table, results_table, write_tables
from das3.errors import DataError


def row(method: str, seed: int, miou: float | None, gap: float | None = None, **more: object) -> dict:
    stage = more.pop("stage", method)
    classes = {"road": miou, "pole_&_sign": None if miou is None else miou / 2}
    return {
        **{"suite": "camvid_dusk", "method": method, "stage": stage, "seed": seed, "miou": miou, "gap_closed": gap},
        **{"per_class_iou": classes, "seconds": 10.0 * (seed + 1), "peak_mib": 500 + seed, "commit": "abc"},
        **more,
    }


SCORES = {
    "oracle": (50.0, 52.0, 51.0),
    "source": (20.0, 22.0, 21.0),
    "bn": (30.0, 31.0, 35.0),
    "das3": (40.0, 44.0, 45.0),
}
ROWS = [
    row(method, seed, scores[seed], (scores[seed] - SCORES["source"][seed]) / 30)
    for method, scores in SCORES.items()
    for seed in range(3)
]


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines()]


def test_mean_and_sample_deviation_over_seeds() -> None:
    found = {line["method"]: line for line in json.loads(results_table(ROWS).json())}
    for method, scores in SCORES.items():
        assert found[method]["miou"]["mean"] == pytest.approx(np.mean(scores))
        assert found[method]["miou"]["std"] == pytest.approx(np.std(scores, ddof=1))
        assert found[method]["seeds"] == [0, 1, 2]
        assert found[method]["commits"] == ["abc"]
    assert found["bn"]["seconds"] == {"mean": 20.0, "std": 10.0, "count": 3}


def test_markdown_for_reading() -> None:
    assert cells(results_table(ROWS).markdown())[2:] == [
        ["camvid_dusk", "source", "source", "3", "21.0 ± 1.0", "0 ± 0", "20 ± 10", "501 ± 1"],
        ["camvid_dusk", "bn", "bn", "3", "32.0 ± 2.6", "37 ± 9", "20 ± 10", "501 ± 1"],
        ["camvid_dusk", "das3", "das3", "3", "**43.0 ± 2.6**", "**73 ± 7**", "20 ± 10", "501 ± 1"],
        ["camvid_dusk", "oracle", "oracle", "3", "51.0 ± 1.0", "100 ± 0", "20 ± 10", "501 ± 1"],
    ]
    widths = {line.count("|") for line in results_table(ROWS).markdown().splitlines()}
    assert widths == {9}


def test_the_best_of_each_suite_is_bold_and_bounds_are_not_compared() -> None:
    rows = [*ROWS, row("bn", 0, 10.0, suite="other"), row("das3", 0, 5.0, suite="other")]
    bold = [line[:2] for line in cells(results_table(rows).markdown()) if "**" in line[4]]
    assert bold == [["camvid_dusk", "das3"], ["other", "bn"]]


def test_what_is_missing_leaves_the_mean() -> None:
    rows = [
        row("bn", 0, 30.0),
        row("bn", 1, None),
        row("bn", 2, float("nan")),
        {"suite": "s", "method": "m", "stage": "x", "seed": 0},
    ]
    first, second = cells(results_table(rows).markdown())[2:]
    assert first[3:6] == ["3", "**30.0**", "–"]
    assert second[4:] == ["–"] * 4
    found = json.loads(results_table(rows).json())
    assert found[0]["miou"] == {"mean": 30.0, "std": None, "count": 1}
    assert found[1]["miou"] is None


def test_csv_can_be_read_back() -> None:
    lines = list(csv.DictReader(io.StringIO(results_table(ROWS).csv())))
    assert [line["method"] for line in lines] == ["source", "bn", "das3", "oracle"]
    assert float(lines[1]["miou"]) == pytest.approx(32.0)
    assert float(lines[1]["miou std"]) == pytest.approx(np.std(SCORES["bn"], ddof=1))
    single = next(csv.DictReader(io.StringIO(results_table([row("bn", 0, 30.0)]).csv())))
    assert single["miou"] == "30.0"
    assert single["miou std"] == ""


def test_latex_has_as_many_cells_as_columns_and_escapes_names() -> None:
    text = class_table(ROWS).latex()
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5
    assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns[1])} == {7}
    assert r"pole\_\&\_sign" in lines[0]
    assert r"camvid\_dusk" in lines[1]
    assert r"\textbf{43.0 $\pm$ 2.6}" in text
    assert results_table(ROWS).latex().count(r"mIoU \%") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path: Path) -> None:
    body = class_table(ROWS).latex()
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + body + "\\end{document}"
    )
    subprocess.run(["pdflatex", "-interaction=batchmode", "a.tex"], cwd=tmp_path, check=True)


def test_classes_have_a_table_of_their_own() -> None:
    lines = cells(class_table(ROWS).markdown())
    assert lines[0][4:] == ["road %", "pole_&_sign %", "mIoU %"]
    assert lines[3][4:] == ["32.0 ± 2.6", "16.0 ± 1.3", "32.0 ± 2.6"]
    other = row("bn", 0, 1.0, suite="idd", per_class_iou={"sky": 1.0})
    with pytest.raises(DataError, match="camvid_dusk, idd have different classes"):
        class_table([*ROWS, other])


def test_a_class_absent_with_one_seed_is_averaged_over_the_others() -> None:
    rows = [row("bn", 0, 30.0), row("bn", 1, 40.0) | {"per_class_iou": {"road": None, "pole_&_sign": 8.0}}]
    found = json.loads(class_table(rows).json())[0]
    assert found["road"] == {"mean": 30.0, "std": None, "count": 1}
    assert found["pole_&_sign"]["mean"] == 11.5


def test_a_seed_that_occurs_twice_is_refused() -> None:
    with pytest.raises(DataError, match="seed 1 of camvid_dusk, bn, bn"):
        results_table([*ROWS, row("bn", 1, 3.0)])


def test_all_tables_are_written(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        row("bn", 0, 1.0, suite="idd", per_class_iou={"sky": 1.0}),
        row("bn", 0, 1.0, suite="x", per_class_iou=None),
    ]
    written = write_tables(rows, tmp_path / "deep")
    stems = ("table", "table-camvid_dusk-classes", "table-idd-classes")
    assert sorted(written) == sorted(
        tmp_path / "deep" / f"{s}.{e}" for s in stems for e in ("md", "tex", "csv", "json")
    )
    assert (tmp_path / "deep/table.md").read_text() == results_table(rows).markdown()
    assert json.loads((tmp_path / "deep/table-idd-classes.json").read_text())[0]["sky"]["mean"] == 1.0


def test_failed_runs_are_counted_and_have_no_numbers() -> None:
    failed = row("bn", 3, None) | {"seconds": None, "peak_mib": None, "error": "out of memory"}
    line = cells(results_table([*ROWS, failed]).markdown())[3]
    assert line[3:] == ["3/4", "32.0 ± 2.6", "37 ± 9", "20 ± 10", "501 ± 1"]


def test_gpu_memory_has_a_column_where_a_gpu_was_used() -> None:
    rows = [row("bn", seed, 30.0, peak_gpu_mib=100 * seed) for seed in (1, 2)]
    assert cells(results_table(rows).markdown())[0][-1] == "peak GPU MiB"
    assert cells(results_table(rows).markdown())[2][-1] == "150 ± 71"
    assert "GPU" not in results_table(ROWS).markdown()


def test_ablations_are_compared_with_das3_on_the_same_seed() -> None:
    scores = {"das3": ((30.0, 40.0), (34.0, 44.0)), "mix=0": ((30.0, 38.0), (34.0, 44.0)), "align": ((30.0,), (34.0,))}
    stages = ("align", "propagate")
    rows = [
        row(method, seed, miou, (miou - 20) / 30, stage=stage)
        for method, seeds in scores.items()
        for seed, found in enumerate(seeds)
        for stage, miou in zip(stages, found, strict=False)
    ]
    table = ablation_table([row("source", 0, 20.0), *rows], {"stages": ["align"], "propagate": ["mix=0"]})
    lines = cells(table.markdown())
    assert lines[0] == [
        *("suite", "part", "variant", "seeds", "mIoU % after align", "mIoU % after propagate", "mIoU %"),
        *("change, points", "gap closed %"),
    ]
    found = {line[2]: line for line in lines[2:]}
    assert found["das3"][4:8] == ["32.0 ± 2.8", "42.0 ± 2.8", "**42.0 ± 2.8**", "0.0 ± 0.0"]
    assert found["mix=0"][1:8] == ["propagate", "mix=0", "2", "32.0 ± 2.8", "41.0 ± 4.2", "41.0 ± 4.2", "-1.0 ± 1.4"]
    assert found["align"][4:8] == ["32.0 ± 2.8", "–", "32.0 ± 2.8", "-10.0 ± 0.0"]
    assert found["source"][4:8] == ["–", "–", "20.0", "-20.0"]
    assert {"part", "variant", "change", "align"} <= set(json.loads(table.json())[0])


def test_several_suites_in_one_table_by_the_mean_of_the_gap_closed() -> None:
    gaps = {("a", "bn"): (0.2, 0.4), ("a", "das3"): (0.5, 0.7), ("b", "bn"): (0.6, 0.6), ("b", "das3"): (0.7, 0.5)}
    rows = [row(m, seed, 1.0, gap, suite=s) for (s, m), found in gaps.items() for seed, gap in enumerate(found)]
    rows += [row("das3", 0, 9.0, 0.9, suite="a", stage="earlier")]  # moved before the last stage below
    rows.insert(0, rows.pop())
    rows += [row("tent", seed, 1.0, 0.9, suite="a") for seed in range(2)]
    table = cells(merged_table(rows).markdown())
    assert table[0] == ["method", "seeds", "a, gap closed %", "b, gap closed %", "mean, gap closed %"]
    assert table[2:] == [
        ["das3", "2", "60 ± 14", "**60 ± 14**", "**60 ± 0**"],
        ["bn", "2", "30 ± 14", "**60 ± 0**", "45 ± 7"],
        ["tent", "2", "**90 ± 0**", "–", "–"],
    ]
