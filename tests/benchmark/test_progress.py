"""What a benchmark says while it runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from das3.benchmark.progress import GridProgress


class FakeCell(SimpleNamespace):
    """A cell that is run nowhere."""

    def __init__(self, root: Path, kind: str, seed: int, seconds: float | None = None) -> None:
        run = root / str(seed) / kind
        found = None if seconds is None else [{"stage": kind, "miou": 50.0, "seconds": seconds}]
        suite = SimpleNamespace(name="tiny")
        super().__init__(kind=kind, seed=seed, run=run, file=run.with_suffix(".json"), suite=suite, rows=lambda: found)


@pytest.fixture
def told(tmp_path):
    """A progress of five cells, one of them finished, with the lines it said and a clock that is set by hand."""
    now, lines = [0.0], []
    cells = [FakeCell(tmp_path, "source", 0, 100.0), *(FakeCell(tmp_path, "bn", seed) for seed in range(2))]
    cells += [FakeCell(tmp_path, "das3", seed) for seed in range(2)]
    return GridProgress(cells, 2, lines.append, clock=lambda: now[0]), cells, lines, now


ROW = {"stage": "bn", "miou": 51.24}


def test_time_left_is_that_of_cells_of_the_same_kind_over_the_jobs(told):
    progress, cells, lines, now = told
    assert lines == ["suite tiny: 5 cells (source, bn, das3; 2 seeds), 1 finished already, 4 to run, 2 at a time"]
    progress.start(cells[0])
    progress.end(cells[0], [ROW])
    assert len(lines) == 1  # it was finished before
    progress.start(cells[1])
    progress.start(cells[3])
    now[0] = 20.0
    progress.end(cells[1], [ROW])
    # bn took 20 s; das3 is expected to take the mean of bn's 20 s and source's 100 s, and has had 20 s of it
    assert lines[-4:] == [
        "cell 2 of 5: bn, seed 0 starts",
        "cell 4 of 5: das3, seed 0 starts",
        "cell 2 of 5: bn, seed 0 ends after 20 s; mIoU bn 51.2 %",
        "  20 s elapsed, 3 cells left, about 60 s",  # (20 + 40 + 60) / 2
    ]
    now[0] = 320.0
    progress.end(cells[3], [ROW | {"miou": None, "error": "out of luck"}])
    assert lines[-2:] == [
        "cell 4 of 5: das3, seed 0 ends after 5.3 min; failed: out of luck",
        "  5.3 min elapsed, 2 cells left, about 40 s",  # what failed says nothing of the time
    ]


def test_a_silent_cell_says_how_far_it_is(told):
    progress, cells, lines, now = told
    progress.start(cells[4])
    now[0] = 29.0
    progress.wait(30.0)
    assert len(lines) == 2
    now[0] = 31.0
    progress.wait(30.0)
    assert lines[2] == "  cell 5 of 5: das3, seed 1: 31 s so far"
    cells[4].run.mkdir(parents=True)
    log = cells[4].run / "metrics.jsonl"
    log.write_text(json.dumps({"stage": "align", "step": 30, "steps": 90}) + "\n")
    now[0] = 62.0
    progress.wait(30.0)
    assert lines[3] == "  cell 5 of 5: das3, seed 1: align step 30 of 90, 62 s so far"
    log.write_text('{"stage": "al')  # is being written
    now[0] = 93.0
    progress.wait(30.0)
    assert lines[4] == "  cell 5 of 5: das3, seed 1: 93 s so far"


def test_what_was_not_run_is_counted(told):
    progress, _, lines, _ = told
    progress.close()
    assert lines[-1] == "all done after 0 s; 4 cells not run, as their source model failed"
