"""Defaults and ranges of all options: a change of one is a decision, and is made here as well, on purpose."""

import dataclasses
import json
from pathlib import Path

from das3.recipe import Recipe
from das3.registry import stage_types
from das3.stages.options import LoopOptions, StageOptions, bounds_of

FILE = Path(__file__).with_name("defaults.json")


def plain(value):
    return json.loads(json.dumps(value))


def ranges(kind):
    return {f.name: plain(dict(bounds_of(kind, f.name))) for f in dataclasses.fields(kind)}


def defaults():
    """Option → default, and the ranges, by stage; the recipe's own under "recipe"."""
    recipe = Recipe()
    own = {f.name: plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    kinds = {"loop": LoopOptions, "stage": StageOptions}
    kinds |= {name: stage.Options for name, stage in stage_types().items()}
    stages = {name: plain(dataclasses.asdict(kind())) for name, kind in kinds.items()}
    bounds = {name: ranges(kind) for name, kind in kinds.items()}
    return {"recipe": own, "stages": stages, "ranges": bounds}


def test_defaults_and_ranges_are_those_that_were_decided():
    assert defaults() == json.loads(FILE.read_text())


if __name__ == "__main__":  # after a decision: python tests/test_defaults.py
    FILE.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
