"""One cell of the grid: a source model, an oracle or a method with one seed, in a run folder of its own.

FOLDER/KIND/             the run         FOLDER/KIND.json     what it was made with, and its rows once it is finished
FOLDER/KIND.error.txt    why it failed
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from das3.api import adapt
from das3.benchmark.advent import AdventRecipe, train_advent
from das3.benchmark.rows import Row
from das3.benchmark.suites import Suite
from das3.data.images import Images
from das3.data.labels import Labelled
from das3.evaluation.evaluate import evaluate
from das3.evaluation.metrics import percent
from das3.files import write_atomically
from das3.models import load_segmenter, save_segmenter
from das3.models.trust import names_code
from das3.recipe import Recipe, RunOptions
from das3.segmenter import Segmenter
from das3.training.loop import make_fabric
from das3.training.run_folder import NON_RESULT_OPTIONS, begin_after, weights_after
from das3.training.supervised import SourceRecipe, train_supervised

__all__ = [
    "Cell",
    "measure_given_model",
    "run_adaptation",
    "run_advent",
    "run_cell",
    "shared_phases",
    "train_oracle",
    "train_source_model",
]


@dataclass(frozen=True)
class Cell:
    """A run of the grid.

    Attributes:
        suite: the shift.
        kind: "source", "oracle", "advent" or the name of a method.
        seed: of everything.
        folder: of all cells of this seed.
        recipe: a `Recipe`, an `AdventRecipe`, or the `SourceRecipe` of a supervised training; None where the source
            model was given.
        made_with: everything that the result depends on, as plain values.
        run_recipe: runs or continues the recipe: (cell, quiet) → contents of summary.json.
        stages: names of its rows.
        measure_every: steps between two points of the method's curve, 0 for none.
    """

    suite: Suite
    kind: str
    seed: int
    folder: Path
    recipe: RunOptions | None
    made_with: Mapping[str, Any]
    run_recipe: Callable[[Cell, bool], dict[str, Any]]
    stages: tuple[str, ...]
    measure_every: int = 0

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / self.kind

    @property
    def file(self) -> Path:
        """File with its settings and rows."""
        return self.folder / f"{self.kind}.json"

    @property
    def error(self) -> Path:
        """The traceback of the last failure."""
        return self.folder / f"{self.kind}.error.txt"

    def rows(self) -> list[Row] | None:
        """Its rows, if it is finished."""
        found: list[Row] | None = _read(self.file).get("rows")
        return found

    def mismatch(self) -> str | None:
        """Settings that differ from those it was started with; a curve that is not requested does not count."""
        saved = _read(self.file)
        if not saved:
            return None
        before = dict(saved.get("made_with", {}))
        if not self.measure_every:
            before.pop("measure_every", None)
        return next((f"{key}={old!r}, not {new!r}" for key, old, new in _differences(before, self.made_with)), None)


def plain(recipe: RunOptions) -> dict[str, Any]:
    """A recipe's options that change the result, as JSON returns them; the model's path does not count."""
    values = {key: value for key, value in recipe.to_dict().items() if key not in NON_RESULT_OPTIONS | {"model"}}
    return dict(json.loads(json.dumps(values)))


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if isinstance(found, dict) else {"made_with": {"das3": "an older version"}}


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What is not equal. An option that another das3 has not yet, or no more, is as one that is off (0, false)."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            if (key in before and key in now) or before.get(key) or now.get(key):
                yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path, before, now


def _equal(one: Any, other: Any) -> bool:
    return next(_differences(one, other), None) is None


def run_cell(cell: Cell, *, quiet: bool = True) -> list[Row]:
    """Run or continue a cell; a finished one is only read.

    Returns:
        A row per stage: suite, method, stage, seed, miou and per_class_iou in percent, gap_closed (None here), seconds,
        peak_mib, peak_gpu_mib, commit, and curve if there is one: pairs of step and miou.
    """
    if (finished := cell.rows()) is not None:
        return finished
    commit = _commit()
    _write(cell, None)
    summary = cell.run_recipe(cell, quiet)
    rows = [
        {
            **{"suite": cell.suite.name, "method": cell.kind, "stage": stage["name"], "seed": cell.seed},
            **{"miou": stage["miou"], "gap_closed": None, "seconds": stage["seconds"]},
            **{"peak_mib": _peak_mib(), "peak_gpu_mib": _peak_gpu_mib(), "commit": commit},
            "per_class_iou": stage["per_class_iou"],
        }
        for stage in summary["stages"][-len(cell.stages) :]
    ]
    if cell.measure_every:
        _add_curves(rows, cell.run / "metrics.jsonl")
    _write(cell, rows)
    cell.error.unlink(missing_ok=True)
    return rows


def _write(cell: Cell, rows: list[Row] | None) -> None:
    text = json.dumps({"made_with": cell.made_with, "rows": rows}, indent=1)
    write_atomically(cell.file, text)


def run_adaptation(cell: Cell, quiet: bool) -> dict[str, Any]:
    """Adapt the source model by the cell's `Recipe`."""
    assert isinstance(cell.recipe, Recipe)
    # Every stage is measured as the method leaves it, and nobody reads the reports of a whole grid.
    recipe = replace(cell.recipe, guard="off", report=False)
    if not (cell.run / "recipe.yaml").exists():
        _begin(cell, recipe)
    result = adapt(
        load_segmenter(cell.folder / "source", trust=_trusted(cell.suite)),
        _target_images(cell.suite),
        out=cell.run,
        recipe=recipe,
        evaluation=cell.suite.test(),
        resume=True,
        quiet=quiet,
        measure_every=cell.measure_every,
    )
    return result.metrics


def _target_images(suite: Suite) -> Images:
    """Everything of the target that a method has access to."""
    target = suite.target()
    return target.images if isinstance(target, Labelled) else target


def run_advent(cell: Cell, quiet: bool) -> dict[str, Any]:
    """Adapt the source model with access to the source data, by the cell's `AdventRecipe`."""
    assert isinstance(cell.recipe, AdventRecipe)
    assert cell.suite.source is not None  # the plan has no such cell without
    if not (cell.run / "recipe.yaml").exists():
        _begin(cell, cell.recipe)
    result = train_advent(
        load_segmenter(cell.folder / "source", trust=_trusted(cell.suite)),
        _target_images(cell.suite),
        cell.suite.source(),
        replace(cell.recipe, out=str(cell.run)),
        evaluation=cell.suite.test(),
        resume=True,
        quiet=quiet,
        measure_every=cell.measure_every,
    )
    return result.metrics


def _begin(cell: Cell, recipe: RunOptions) -> None:
    """Start from the source model, or after the stages that a finished cell shares with this one."""
    source = cell.folder / "source.json"
    rows, donor = [_read(source)["rows"][-1] | {"seconds": 0.0}], None
    for file in sorted(cell.folder.glob("*.json")):
        saved = _read(file)
        if file in (source, cell.file) or not saved.get("rows"):
            continue
        curve = {} if cell.measure_every else {"measure_every": 0}  # one that nobody asks for does no harm
        count = shared_phases({**saved["made_with"], **curve}, cell.made_with)
        run = file.with_suffix("")
        if count >= len(rows) and (run / weights_after(count - 1, saved["rows"][count - 1]["stage"])).exists():
            rows, donor = [rows[0], *saved["rows"][:count]], run
    kept = ("miou", "per_class_iou", "seconds")
    begin_after(cell.run, recipe, [{"name": row["stage"], **{key: row[key] for key in kept}} for row in rows], donor)


def shared_phases(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """Number of first phases that two cells share, by their settings."""
    (one_rest, one_phases), (other_rest, other_phases) = _phases(one), _phases(other)
    if not _equal(one_rest, other_rest):
        return 0
    pairs = zip(one_phases, other_phases, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if not _equal(a, b)), min(len(one_phases), len(other_phases)))


def _phases(made_with: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Everything but the stages, and each stage's name and options as often as it is run."""
    recipe = dict(made_with.get("recipe") or {})
    stages = recipe.pop("stages", [])
    options = {stage: recipe.pop(stage.replace("-", "_"), {}) for stage in dict.fromkeys(stages)}
    named = {stage: {"stage": stage, "options": given} for stage, given in options.items()}
    phases = [named[stage] for stage in stages for _ in range(options[stage].get("rounds", 1))]
    return {**made_with, "recipe": recipe}, phases


def train_source_model(cell: Cell, quiet: bool) -> dict[str, Any]:
    """Train the source model from random weights, by the cell's `SourceRecipe`."""
    torch.manual_seed(cell.seed)
    assert cell.suite.source is not None  # the plan has no such cell without
    return _train(cell, _network(cell.suite, cell.suite.test()), cell.suite.source(), quiet)


def train_oracle(cell: Cell, quiet: bool) -> dict[str, Any]:
    """Fine-tune the source model on the target's labels, by the cell's `SourceRecipe`."""
    labelled = cell.suite.target()
    assert isinstance(labelled, Labelled)  # the plan has no oracle without labels
    return _train(cell, load_segmenter(cell.folder / "source", trust=_trusted(cell.suite)), labelled, quiet)


def _train(cell: Cell, segmenter: Segmenter, labelled: Labelled, quiet: bool) -> dict[str, Any]:
    assert isinstance(cell.recipe, SourceRecipe)
    return train_supervised(
        segmenter,
        labelled,
        replace(cell.recipe, out=str(cell.run)),
        evaluation=cell.suite.test(),
        resume=(cell.run / "recipe.yaml").exists(),
        quiet=quiet,
        name=cell.kind,
    ).metrics


def _network(suite: Suite, test: Labelled, model: str | None = None, weights: str | None = None) -> Segmenter:
    return load_segmenter(
        model or suite.network,
        weights=weights,
        num_classes=test.num_classes,
        class_names=list(test.class_names),
        size=suite.size,
        model_args=None if model else dict(suite.model_args),
        trust=suite.trust,
    )


def _trusted(suite: Suite) -> bool:
    """Whether the folder of the suite's source model may name code: the suite's own, which has been trusted before."""
    return suite.trust or names_code(suite.network)


def measure_given_model(cell: Cell, quiet: bool) -> dict[str, Any]:
    """Measure the given source model, and put it where the other cells expect it."""
    given, test = str(cell.suite.source_model), cell.suite.test()
    only_weights = given.endswith((".pt", ".pth", ".safetensors"))
    segmenter = _network(cell.suite, test, *((None, given) if only_weights else (given, None)))
    segmenter.to(make_fabric().device)
    measured = percent(evaluate(segmenter, test))
    save_segmenter(segmenter.to("cpu"), cell.run / "model")
    return {"stages": [{"name": "source", "seconds": 0.0, **measured}]}


def _add_curves(rows: Sequence[Row], log: Path) -> None:
    """The points that were measured on the way; the stage's own mIoU, that of its averaged weights, ends each curve."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for number, row in enumerate(rows):
        mine = [line for line in lines if line["phase"] == number]
        points = [[line["step"], line["miou"]] for line in mine if "miou" in line]
        row["curve"] = [*points, [mine[-1]["steps"] if mine else 0, row["miou"]]]


def _peak_mib() -> int:
    """Largest memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had when it started this process, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024)
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def _peak_gpu_mib() -> int | None:
    """Largest memory that tensors took on the GPU; None where none was used."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return round(peak / 2**20) if peak else None


def _commit() -> str | None:
    """Commit of the code, -dirty if it has changes; None where it is not in a repository of its own."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie in somebody else's repository
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
