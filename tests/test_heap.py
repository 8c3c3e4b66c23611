"""Memory that is freed on a CPU is there for the next batch, unless the user has said otherwise."""

import os
import subprocess
import sys

import pytest

from das3.training import loop

GLIBC = sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
MEGABYTES, ROUNDS = 60, 5
CODE = f"""
import resource, sys
import numpy as np
from das3.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    return (np.ones({MEGABYTES} * 2**18, np.float32) * 2).sum()
work(), work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def asked_for_again(how, **environment):
    """Share of the memory of later rounds that was asked of the system."""
    usual = {key: value for key, value in os.environ.items() if not key.startswith(("GLIBC", "MALLOC"))}
    usual["NUMPY_MADVISE_HUGEPAGE"] = "0"  # it would come in larger pages
    command = [sys.executable, "-c", CODE, how]
    said = subprocess.run(command, env=usual | environment, capture_output=True, text=True, check=True)
    return int(said.stdout) * os.sysconf("SC_PAGE_SIZE") / (2 * MEGABYTES * 2**20 * ROUNDS)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_what_is_freed_is_kept():
    assert asked_for_again("usual") > 0.4
    assert asked_for_again("kept") < 0.05


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name):
    value = "glibc.malloc.mmap_threshold=1000000" if name == "GLIBC_TUNABLES" else "1000000"
    assert asked_for_again("kept", **{name: value}) > 0.4


def test_a_run_on_a_cpu_keeps_it(monkeypatch):
    called = []
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: called.append(True))
    loop.make_fabric("cpu")
    assert called
