"""A cell of the grid that fails or is killed fails alone, and goes on where it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from das3.benchmark import cell as cell_module
from das3.benchmark import processes
from das3.cli import main
from small_benchmark import run_grid, run_here, weights, write_suite


def test_one_failure_leaves_the_others(grid, tmp_path, in_this_process, monkeypatch, capsys):
    suite, finished, rows = grid
    out = shutil.copytree(finished, tmp_path / "out")
    adapt = cell_module.adapt

    def broken(model, images, *, out, **options):
        if out.name == "minent":
            raise ValueError("out of\nluck")
        return adapt(model, images, out=out, **options)

    monkeypatch.setattr(cell_module, "adapt", broken)
    given = ["benchmark", "--suite", str(suite), "--out", str(out), "--seeds", "1"]
    assert main([*given, "--methods", "minent,das3,bn"]) == 2
    said = capsys.readouterr()
    assert "minent (seed 0)" in said.err
    assert said.out.startswith("suite tiny: 5 cells (source, oracle, minent, das3, bn; 1 seed), 4 finished already, 1")
    lines = [line.split(" after ")[0] for line in said.out.splitlines()[1:5]]
    assert lines[:2] == [f"cell 3 of 5: minent, seed 0 {what}" for what in ("starts", "ends")]
    assert "failed: ValueError: out of luck" in said.out.splitlines()[2]
    assert lines[2].endswith(" elapsed, none left")
    assert lines[3] == "all done"
    line = next(line for line in said.out.splitlines() if line.startswith("| tiny | minent"))
    assert [cell.strip() for cell in line.strip("|").split("|")][3:] == ["0/1", "–", "–", "–", "–"]
    found = {row["method"]: row for row in json.loads((out / "tiny.json").read_text())}
    assert found["minent"]["miou"] is None
    assert found["das3"] == rows[5]
    assert "Traceback" in (out / "0/minent.error.txt").read_text()
    for name in ("tiny-table.md", "tiny-table.tex", "tiny-bars.pdf", "tiny-classes.png", "tiny-curve.png"):
        assert (out / name).stat().st_size > 300, name
    monkeypatch.undo()
    monkeypatch.setattr(processes, "in_process", run_here)
    assert run_grid(suite, out, ["minent"])[-1]["miou"] > 0
    assert not (out / "0/minent.error.txt").exists()


def test_without_a_source_model_nothing_is_adapted(tmp_path, in_this_process, monkeypatch):
    suite = write_suite(tmp_path / "world")
    monkeypatch.setattr(cell_module, "train_supervised", lambda *args, **options: 1 / 0)
    rows = run_grid(suite, tmp_path / "out", ["bn"])
    assert [row["error"].split(":")[0] for row in rows] == ["ZeroDivisionError", *2 * ["its source model failed"]]


@pytest.fixture
def begun(grid, tmp_path):
    """A folder in which nothing but the source model is finished."""
    _, out, _ = grid
    for part in ("0/source", "data"):
        shutil.copytree(out / part, tmp_path / "out" / part)
    shutil.copy(out / "0/source.json", tmp_path / "out/0/source.json")
    return tmp_path / "out"


def assert_goes_on(grid, folder, monkeypatch):
    """What was interrupted ends with the weights and rows of what was not."""
    suite, out, rows = grid
    monkeypatch.setattr(processes, "in_process", run_here)
    found = run_grid(suite, folder, ["das3"])
    one, other = (weights(root / "0/das3") for root in (out, folder))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["miou"] for row in found[2:]] == [row["miou"] for row in rows[3:6]]


@pytest.mark.slow
def test_a_cell_that_is_killed_fails_alone_and_goes_on(grid, begun, monkeypatch):
    log, children = begun / "0/das3/metrics.jsonl", processes.multiprocessing.active_children

    def kill():
        wait_for(log.exists)
        (child,) = children()
        os.kill(child.pid, signal.SIGKILL)

    in_process = processes.in_process
    monkeypatch.setattr(
        processes, "in_process", lambda c, *more: (in_process if c.kind == "das3" else run_here)(c, *more)
    )
    killer = threading.Thread(target=kill)
    killer.start()
    rows = run_grid(grid[0], begun, ["das3"])
    killer.join()
    assert [row["miou"] for row in rows[2:]] == 3 * [None]
    assert "signal 9" in rows[-1]["error"]
    assert rows[1]["miou"] == grid[2][1]["miou"]
    assert_goes_on(grid, begun, monkeypatch)


@pytest.mark.slow
def test_a_benchmark_that_is_killed_ends_its_cells_and_goes_on(grid, begun, monkeypatch):
    suite = grid[0]
    given = ["benchmark", "--suite", str(suite), "--out", str(begun), "--seeds", "1", "--methods", "das3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "das3", *given], start_new_session=True, env=environment)
    log = begun / "0/das3/metrics.jsonl"
    wait_for(lambda: log.exists() or process.poll() is not None)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(process.pid))
    assert log.exists()
    assert json.loads((begun / "0/das3.json").read_text())["rows"] is None
    assert_goes_on(grid, begun, monkeypatch)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(group):
    """Whether a process of this session still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
