"""Hostile and odd input through the real command: some of `benchmarks/hostile` here, all of it marked slow."""

import gc

import pytest
from hostile.cases import KINDS, all_cases
from hostile.run import run_cases

CASES = all_cases()


@pytest.fixture(autouse=True)
def frozen():
    """Forked children would copy nearly all memory when they collect garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def not_well(cases):
    outcomes = list(run_cases(cases, warm=False))
    assert len(outcomes) == len(cases)
    return [f"{o.case.kind}/{o.case.name}: {o.verdict}: {o.text[-500:]}" for o in outcomes if o.verdict != "well"]


def test_some_of_the_worst_of_each_kind():
    some = [case for case in CASES if case.quick][::5]
    assert {case.kind for case in some} == set(KINDS)
    assert not_well(some) == []


@pytest.mark.slow
def test_all_of_the_worst():
    assert not_well([case for case in CASES if case.quick]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_each_kind(kind):
    cases = [case for case in CASES if case.kind == kind]
    assert len(cases) >= 50
    assert not_well(cases) == []
