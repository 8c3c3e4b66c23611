"""Rules that the code keeps: imports point down, adaptation sees no labels, the core needs no library of networks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import das3

ROOT = Path(das3.__file__).parent
# From the top down; a module may import what stands further down (or beside it in the same line).
LAYERS = [
    ["cli", "__main__"],
    ["demo"],
    ["benchmark", "report"],
    ["cells", "suite_file"],
    ["suites"],
    ["advent"],
    ["source"],
    ["dry_run"],
    ["api"],
    ["runs"],
    ["progress"],
    ["methods"],
    ["recipe"],
    ["stages", "baselines", "thresholds"],
    ["engine", "bench"],
    ["evaluate", "plots"],
    ["tables"],
    ["predict"],
    ["views"],
    ["rasters"],
    ["models"],
    ["segmenter"],
    ["data_check"],
    ["pictures"],
    ["data"],
    ["label_store", "checkpoints"],
    ["losses", "pseudo_labels", "looks", "mixing", "rare_classes", "norms", "moments", "metrics"],
    ["averages", "entropy", "origin"],
    ["errors"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# A stage's interface names the loop's options and the loop names the interface; neither can be said without the other.
ALLOWED = {("engine", "stages"), ("bench", "stages")}


def imports(path):
    """Modules of das3 that a file imports, those for type checking alone left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in hidden and (node.module or "").startswith("das3."):
            yield node.module.split(".")[1]


FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "recipes":
        return
    for other in imports(path):
        assert other == own or (own, other) in ALLOWED or RANK[other] >= RANK[own], f"{own} imports {other}"


@pytest.mark.parametrize(
    "name", ["bench", "engine", "label_store", "stages", "baselines", "losses", "pseudo_labels", "runs"]
)
def test_adaptation_never_imports_labels(name):
    paths = [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else sorted((ROOT / name).glob("*.py"))
    for path in paths:
        text = path.read_text()
        assert "data.labels" not in text, path
        assert "open_labelled" not in text, path
        assert "das3.training.supervised" not in text, path


def test_core_needs_no_library_of_networks():
    """None of them is imported by what a plain network's adaptation uses."""
    heavy = ("torchvision", "timm", "transformers", "segmentation_models_pytorch", "matplotlib")
    code = f"import sys, das3.cli.main, das3.benchmark.demo, das3.api; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
