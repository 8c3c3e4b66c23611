"""What holds for all tests."""

import os

# Threads that wait for each other cost more than tensors this small, and their sums differ from run to run. Processes
# that tests start have one thread, too.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

import small_benchmark
from reference import B, C, H, W

torch.set_num_threads(1)  # where a plugin imported it before

# How long an example takes says more about the machine than about the code.
settings.register_profile("das3", deadline=None)
settings.load_profile("das3")

LONGEST = ("test_processes.py", "test_faults.py", "test_resume.py", "test_grid.py", "test_options_matter.py")
"""Files that take longest: begun first, so that no process is left with one of them alone at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """No test looks at the folder that it is started from, in which there may be runs and images."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


@pytest.fixture
def seeded():
    """Torch draws the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def logits(rng):
    """B×C×H×W float32."""
    return torch.from_numpy(rng.normal(0, 3, (B, C, H, W))).float()


@pytest.fixture
def valid(rng):
    """B×H×W, some of the pixels."""
    return torch.from_numpy(rng.random((B, H, W)) < 0.7)


@pytest.fixture
def in_this_process(monkeypatch):
    """Cells of the grid have no processes of their own."""
    monkeypatch.setattr(small_benchmark.processes, "in_process", small_benchmark.run_here)


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """A finished grid, only to be read: its suite, its folder, its rows."""
    root = tmp_path_factory.mktemp("grid")
    suite = small_benchmark.write_suite(root / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_benchmark.processes, "in_process", small_benchmark.run_here)
        rows = small_benchmark.run_grid(suite, root / "out", measure_every=2)
    return suite, root / "out", rows
