"""The notebook of the examples, run by a kernel as Jupyter would, but briefly."""

import re
from pathlib import Path

import pytest

import das3

NOTEBOOK = Path(__file__).parents[1] / "examples" / "adapt.ipynb"
FEWER = (
    (r'(Streets\("\w+"), \d+', r"\1, 4, size=(32, 64)"),
    ("steps=250", "steps=2, batch_size=2"),
    (r"dusk\.images\)", "dusk.images, batch_size=2, **{s: {'steps': 1} for s in ('align', 'selftrain', 'propagate')})"),
)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_bars_tables_and_the_report(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    monkeypatch.setenv("PYTHONPATH", str(Path(das3.__file__).parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    for cell in notebook.cells:
        for long, short in FEWER:
            cell.source = re.sub(long, short, cell.source) if cell.cell_type == "code" else cell.source
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pages = [[o.get("data", {}).get("text/html", "") for o in c.get("outputs", [])] for c in notebook.cells]
    adapting = next(p for c, p in zip(notebook.cells, pages, strict=True) if "das3.adapt(" in c.source)
    assert "<td>propagate</td>" in adapting[-1]
    assert not any("<progress" in page for page in adapting), "bars are taken away when they are done"
    assert "<iframe" in next(p for c, p in zip(notebook.cells, pages, strict=True) if "report()" in c.source)[-1]
    assert not any("SmallSegmenter(" in str(c.get("outputs", [])) for c in notebook.cells)
