"""What a user does first with an installed das3, away from the repository; run by tests/test_install.py."""

import os
import sys
import tempfile
from pathlib import Path

import das3
from das3.cli import main
from das3.data.streets import Streets

QUICK = ["--device=cpu", "--batch-size=2"]
STEPS = [f"--{stage}.steps=2" for stage in ("align", "selftrain", "propagate")]


def run(*arguments):
    assert main(list(arguments)) == 0, arguments


os.chdir(tempfile.mkdtemp())
print("Python", sys.version.split()[0], "das3", Path(das3.__file__).parent)
Streets("source", 4, size=(48, 96)).write("source")
Streets("target", 4, seed=1, size=(48, 96)).write("target")
run("train-source", "--images=source/images", "--labels=source/labels", "--out=trained", "--steps=2", *QUICK)
run("adapt", "--model=trained", "--images=target/images", "--out=run", *STEPS, *QUICK)
run("evaluate", "--model=run", "--images=target/images", "--labels=target/labels", "--device=cpu")
run("predict", "--model=run", "--images=target/images", "--out=labels", "--overlays", "--device=cpu")
assert Path("run/report.html").is_file()
assert das3.predict("run", "target/images", device="cpu")[0].shape == (48, 96)
