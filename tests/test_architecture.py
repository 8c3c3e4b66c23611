"""Rules that the code keeps: imports point down, adaptation sees no labels, the core needs no library of networks."""

import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import das3

ROOT = Path(das3.__file__).parent
SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "import_graph.py"))
LAYERS = """
    cli
    benchmark
    api hub testing
    export training
    report
    models evaluation
    recipe
    recipes
    registry
    baselines selection
    stages
    segmenter fingerprints
    data pseudo_labels
    ema input_transforms losses norms
    dataclass_options distributed files halves heap many_files softmax_sums text_files threads
    errors
"""
RANK = {room: rank for rank, layer in enumerate(LAYERS.split("\n")) for room in layer.split()}
GRAPH = SCRIPT["import_graph"](ROOT)


@pytest.mark.parametrize("room", GRAPH)
def test_a_room_imports_only_from_layers_below_its_own(room):
    assert {other: where for other, where in GRAPH[room].items() if RANK[other] <= RANK[room]} == {}


@cache
def imported_files(path):
    """Files of das3 that a file imports, the packages they are in included."""
    names = [module.split(".")[:n] for module, _ in SCRIPT["imports"](path) for n in range(1, module.count(".") + 2)]
    paths = [ROOT.joinpath(*parts) for parts in names]
    return {f for p in paths for f in (p / "__init__.py", p.with_suffix(".py")) if f.is_file()}


def dependencies(path):
    """Files of das3 that a file imports, directly or by way of others, relative to the package."""
    seen, todo = {path}, [path]
    while todo:
        new = imported_files(todo.pop()) - seen
        seen |= new
        todo += new
    return {str(found.relative_to(ROOT)) for found in seen}


ADAPTATION = [
    *sorted(ROOT.glob("stages/*.py")),
    *sorted(ROOT.glob("baselines/*.py")),
    *(ROOT / "training" / name for name in ("loop.py", "phases.py", "run_folder.py")),
]


def needs_labels(path):
    """Whether a file depends on one by which labels are read."""
    found = dependencies(path)
    files = {"data/labels.py", "data/open.py", "training/supervised.py"}
    return bool(found & files) or any(name.startswith("evaluation/") for name in found)


@pytest.mark.parametrize("path", ADAPTATION, ids=lambda path: str(path.relative_to(ROOT)))
def test_adaptation_never_imports_labels(path):
    assert not needs_labels(path)


def test_evaluation_imports_labels():
    """By way of another file, too; else the test above proves nothing."""
    assert needs_labels(ROOT / "evaluation" / "evaluate.py")
    assert "data/labels.py" in dependencies(ROOT / "api.py")


def test_core_needs_no_library_of_networks():
    """None of them is imported by what a plain network's adaptation uses."""
    heavy = ("torchvision", "timm", "transformers", "segmentation_models_pytorch", "matplotlib")
    code = f"import sys, das3.cli.main, das3.benchmark.demo, das3.api; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
