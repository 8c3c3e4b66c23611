"""No two seeds, phases, steps, samples or processes draw the same random numbers."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import das3
import worlds
from das3.data.samples import Augmentation, Samples
from das3.errors import RecipeError
from das3.recipe import Recipe
from das3.training.loop import step_seed

SEEDS = (0, 1, 2, 3, 10, 2**31, 2**32 - 1)
PHASES = range(4)


def streams(seed, context, monkeypatch):
    """What each use of randomness in a phase begins from: name → 63 bits."""
    found = {"stage": replace(context, seed=seed).random_seed()}
    for step, process in product(range(6), range(4)):
        found["step", step, process] = step_seed(seed, step, process)
    real = np.random.default_rng

    def noted(name):
        def make(entropy):
            rng = real(entropy)
            state = rng.bit_generator.seed_seq.generate_state(1, np.uint64)[0]
            found[name, int(state >> 1)] = int(state >> 1)
            return rng

        return make

    for salt, n in product((0, 1), range(0, 12, 3)):
        samples = Samples([np.zeros((2, 2, 3), np.uint8)] * 3, Augmentation((2, 2)), seed=seed, rare=Rare())
        with monkeypatch.context() as patch:
            patch.setattr("numpy.random.default_rng", noted(("sample", salt, n)))
            samples.draw(n, salt)
            if salt == 0:
                samples.rng(n)
    return found


class Rare:
    def draw(self, order, rng):
        return None  # so that both ways of drawing an image are gone through


def test_all_streams_differ(tmp_path, monkeypatch):
    context = worlds.stage_context(worlds.pointwise_network(), tmp_path)
    seen = {}
    for seed in product(SEEDS, PHASES):
        for name, value in streams(seed, context, monkeypatch).items():
            assert seen.setdefault(value, (seed, name)) == (seed, name), f"{seed} {name} and {seen[value]}"
    assert len(seen) > len(SEEDS) * len(PHASES) * 30


def test_one_process_has_the_streams_of_process_0():
    assert step_seed((5, 1), 7) == step_seed((5, 1), 7, 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_share_streams_are_refused(seed):
    with pytest.raises(RecipeError, match="seed"):
        Recipe(seed=seed)


def test_no_seed_is_a_sum():
    """(seed 0, phase 1) and (seed 1, phase 0) have the same."""
    for path in Path(das3.__file__).parent.rglob("*.py"):
        assert not re.search(r"sum\([^)]*seed|seed\w* \+ |\+ \w*\.?seed\b", path.read_text()), path
