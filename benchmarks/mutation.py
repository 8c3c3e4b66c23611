"""Do the tests notice when the code is broken? Mutants of the method's modules, each run against its tests.

    pip install cosmic-ray
    python benchmarks/mutation.py --mutants 200          # about half an hour on one core; resumable
    python benchmarks/mutation.py --survivors            # what was not noticed

Mutants are cosmic-ray's. Places are drawn at random among all that can be changed, and one variant of the operator
for each; what only changes annotations or docstrings is left out. A process that has imported torch is forked for every
mutant, which is put in the module's place when it is imported. Results are rows of mutation.json: module, line,
operator, the changed line, and outcome (killed, timeout or survived); `reason`, written by hand, says why one survived.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.abc
import importlib.util
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).with_name("mutation.json")
LIMIT = 120  # seconds of one mutant's tests
DEFAULTS = "tests/test_defaults.py"
STAGES = [DEFAULTS, "tests/stages/test_stages.py"]


def options_of(*names: str) -> list[str]:
    """Tests that every option of these stages, or of the loop, changes the outcome."""
    chosen = " or ".join(f"stage_changes_the_outcome and {name}." for name in names)
    return ["tests/test_options_matter.py", "-k", f"test_stages or test_defaults or test_propagate or {chosen}"]


TESTS = {
    "das3.losses": ["tests/test_losses.py", "tests/baselines/test_baseline_losses.py"],
    "das3.softmax_sums": ["tests/test_losses.py", "tests/baselines/test_baseline_losses.py"],
    "das3.pseudo_labels": ["tests/test_pseudo_labels.py"],
    "das3.data.mixing": ["tests/data/test_mixing.py"],
    "das3.norms": ["tests/test_norms.py", "tests/test_norms_pooled.py"],
    "das3.ema": ["tests/test_ema.py", "tests/baselines/test_baselines.py"],
    "das3.training.loop": [
        "tests/training/test_loop.py",
        "tests/test_options_matter.py::test_an_option_of_the_loop_changes_the_outcome",
    ],
    "das3.stages.base": ["tests/training/test_loop.py", "tests/baselines/test_baselines.py", *STAGES],
    "das3.stages.align": [*STAGES, *options_of("align")],
    "das3.stages.selftrain": [*STAGES, *options_of("selftrain")],
    "das3.stages.propagate": ["tests/stages/test_propagate.py", *STAGES, *options_of("propagate")],
    "das3.stages.priors": STAGES,
    "das3.stages.thresholds": ["tests/baselines/test_baseline_labels.py", *STAGES],
    "das3.stages.choose_transform": ["tests/stages/test_choose_transform.py"],
    "das3.stages.options": [DEFAULTS, "tests/stages/test_stages.py", "tests/training/test_loop.py"],
}


def source_of(module: str) -> Path:
    return ROOT / "src" / Path(*module.split(".")).with_suffix(".py")


def meaning(code: str) -> str | None:
    """The code without annotations and docstrings, which do nothing; None if it is no code at all."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(None))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree)


def places_of(module: str) -> list[tuple[str, int, list[str]]]:
    """(module, place, the operator's variants) for everything that can be changed."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(source_of(module).read_text())))
    names = [name for name in operator_names() if "Variable" not in name]  # those two want to be told which
    found = []
    for _, group in itertools.groupby(names, lambda name: "_".join(name.split("_")[:2])):
        variants = list(group)
        count = sum(len(list(get_operator(variants[0])().mutation_positions(node))) for node in nodes)
        found += [(module, place, variants) for place in range(count)]
    return found


def mutants(count: int, rng: random.Random) -> Iterator[dict[str, str]]:
    """So many mutants, drawn from all places of all modules."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    places = [place for module in TESTS for place in places_of(module)]
    rng.shuffle(places)
    print(f"{len(places)} places can be changed")
    seen: set[str] = set()
    for module, place, variants in places:
        code, operator = source_of(module).read_text(), rng.choice(variants)
        changed = mutate_code(code, get_operator(operator)(), place)
        if changed and changed not in seen and meaning(changed) not in (meaning(code), None):
            seen.add(changed)
            yield {"module": module, "operator": operator, "code": changed, **_where(code, changed)}
        if len(seen) == count:
            return


def _where(code: str, changed: str) -> dict[str, str]:
    pairs = zip(code.splitlines(), changed.splitlines(), strict=False)
    number, now = next(((i, b) for i, (a, b) in enumerate(pairs, 1) if a != b), (0, ""))
    lines = list(difflib.unified_diff(code.splitlines(), changed.splitlines(), lineterm="", n=0))[3:]
    return {"line": number, "change": " ".join(line.strip() for line in lines)[:300] or now}


class Mutant(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module other code."""

    def __init__(self, module: str, code: str) -> None:
        self.module, self.code = module, code

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.module else None

    def get_filename(self, name):
        return str(source_of(name))

    def get_data(self, path):
        return self.code.encode()

    def path_stats(self, path):
        raise OSError  # no cached bytecode


def outcome(mutant: dict[str, str]) -> str:
    """killed, timeout or survived."""
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        import pytest

        sys.meta_path.insert(0, Mutant(mutant["module"], mutant["code"]))
        tests = [str(ROOT / test) if test.startswith("tests/") else test for test in TESTS[mutant["module"]]]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *tests]) != 0))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "killed" if status else "survived"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="show those of mutation.json")
    given = parser.parse_args()
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    if not given.survivors:
        rng = random.Random(given.seed)
        sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
        import hypothesis  # noqa: F401  (imported once for all mutants)
        import jsonargparse  # noqa: F401
        import lightning_fabric  # noqa: F401
        import torch

        torch.set_num_threads(1)
        for mutant in mutants(given.mutants, rng):
            key = {name: mutant[name] for name in ("module", "line", "operator", "change")}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append({**key, "outcome": outcome(mutant)})
            OUT.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{rows[-1]['outcome']:<9} {key['module']}:{key['line']} {key['operator']}", flush=True)
    survived = [row for row in rows if row["outcome"] == "survived"]
    for row in survived if given.survivors else ():
        print(f"{row['module']}:{row['line']}  {row['operator']}\n    {row['change']}\n    {row.get('reason', '')}")
    noticed = len(rows) - len(survived)
    print(f"{noticed} of {len(rows)} mutants noticed ({100 * noticed / max(1, len(rows)):.0f} %)")


if __name__ == "__main__":
    main()
