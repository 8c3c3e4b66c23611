"""The package: what PyPI would show, and that the wheel works where there is nothing else.

The slow tests install from the package index, with every Python that is found, and take gigabytes and minutes.
Interpreters that are not on the path are named in DAS3_PYTHONS, separated by colons.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def run(*command, **more):
    # Nothing of this environment or this folder may be seen by the installed das3.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_python(version):
    """An interpreter of that version, or skip."""
    for path in os.environ.get("DAS3_PYTHONS", "").split(":"):
        if path and run(path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip() == version:
            return path
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    found = subprocess.run(["uv", "python", "find", "--system", "--no-python-downloads", version], capture_output=True)
    if found.returncode:
        pytest.skip(f"no Python {version} here")
    return found.stdout.decode().strip()


def test_the_page_on_pypi_has_no_picture_or_link_that_leads_nowhere():
    text = (ROOT / "README.md").read_text()
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    assert "![" not in text
    assert "docs/never_worse.md" in text


def test_every_python_that_is_declared_is_one_that_the_wheel_is_tried_with():
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert tuple(named) == VERSIONS


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("dist")
    run("uv", "build", "--quiet", "--out-dir", folder, cwd=ROOT)
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_pass_the_index_s_check(dist):
    if shutil.which("twine") is None:
        pytest.skip("twine is not installed")
    assert run("twine", "check", "--strict", *dist.glob("das3-*")).count("PASSED") == 2


def try_out(python, home):
    """Commands answer, and the first steps work, with what is installed there."""
    assert "das3 COMMAND" in run(python.parent / "das3", "--help", cwd=home)
    printed = run(python, ROOT / "tests" / "first_steps.py", cwd=home)
    assert str(home) in printed.splitlines()[0], "das3 was imported from somewhere else"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_with_the_newest_of_what_it_needs(version, dist, tmp_path):
    run("uv", "venv", "--quiet", "--python", find_python(version), tmp_path / "env")
    python = tmp_path / "env/bin/python"
    run("uv", "pip", "install", "--quiet", "--python", python, next(dist.glob("*.whl")))
    try_out(python, tmp_path)


@pytest.mark.slow
def test_the_wheel_works_with_the_oldest_that_it_declares(dist, tmp_path):
    run("uv", "venv", "--quiet", "--python", find_python("3.11"), tmp_path / "env")
    python = tmp_path / "env/bin/python"
    install = ["uv", "pip", "install", "--quiet", "--python", python]
    run(*install, "--resolution", "lowest-direct", "-r", ROOT / "pyproject.toml")
    run(*install, "--no-deps", next(dist.glob("*.whl")))
    try_out(python, tmp_path)
