"""The docs site: its tutorial runs, its generated pages are up to date, it builds without a network."""

import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from das3 import errors
from das3.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = runpy.run_path(str(DOCS / "site.py"))
QUICK = {
    "train-source": ["--steps=2", "--device=cpu"],
    "adapt": ["--batch-size=2", "--crop=32,32", *(f"--{s}.steps=1" for s in ("align", "selftrain", "propagate"))],
}
"""Options behind those of the tutorial, which win: the test asks whether the commands work, not how well."""


def blocks(page):
    """(language, code) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def run_tutorial(quick):
    """The blocks of the tutorial, one after the other, in the present folder."""
    names = {}
    for language, code in blocks(DOCS / "tutorial.md"):
        if language == "python":
            code = re.sub(r'(Streets\("\w+"), \d+', r"\1, 4, size=(32, 64)", code) if quick else code
            code = code.replace("quiet=True", "quiet=True, align={'steps': 1}") if quick else code
            exec(compile(code, "tutorial.md", "exec"), names)
            continue
        assert language == "sh"
        for line in code.splitlines():
            _, command, *arguments = shlex.split(line)
            assert main([command, *arguments, *(QUICK.get(command, []) if quick else [])]) == 0, line


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_tutorial(quick=True)
    printed = capsys.readouterr().out
    assert "(32, 64) ('road', " in printed
    assert "Evaluation(mIoU " in printed
    assert len(list(Path("labels/overlays").glob("*.png"))) == 4


@pytest.mark.slow
def test_the_tutorial_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_tutorial(quick=False)
    sunny, before, after = (float(x) for x in re.findall(r"^mIoU +([\d.]+)", capsys.readouterr().out, re.M))
    assert sunny > before + 15
    assert after > before + 2


def test_pages_of_errors_are_those_of_the_docstrings():
    pages = SITE["error_pages"]()
    assert {path.name for path in (DOCS / "errors").iterdir()} == set(pages)
    for name, page in pages.items():
        assert (DOCS / "errors" / name).read_text(encoding="utf-8") == page, "run: python docs/site.py"


def test_every_message_names_a_page(capsys):
    assert main(["adapt", "--colour"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    page = re.search(r" \((docs/errors/\w+\.md)\)$", line)[1]
    assert (ROOT / page).is_file()
    assert errors.without_page(line) == line.removesuffix(f" ({page})")
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, errors.Das3Error):
            assert (ROOT / kind.page()).is_file()


def test_every_page_is_in_the_menu():
    found = []

    def walk(entry):
        for value in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            walk(value)
        if isinstance(entry, str):
            found.append(entry)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if not path.name.startswith("00")}
    assert sorted(found) == sorted({p for p in pages if not re.match(r"decisions/0", p)} | {"reference/options.md"})


def test_equations_become_mathml_and_links_out_of_the_docs_text():
    pytest.importorskip("latex2mathml")
    page = type("Page", (), {"file": type("File", (), {"src_uri": "howto/a.md"})})
    text = SITE["on_page_markdown"]("$x_1$ `$y$` [code](../../src/das3/api.py) [my data](../my.md)", page)
    assert "<msub>" in text
    assert text.endswith("`$y$` code [my data](../my.md)")


@pytest.mark.slow
def test_the_site_builds_and_needs_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8"))
        assert loaded == [], page
    method = (tmp_path / "method.html").read_text("utf-8")
    assert "<math" in method
    assert "def focal_entropy_loss" in re.sub("<[^>]+>", "", method)
