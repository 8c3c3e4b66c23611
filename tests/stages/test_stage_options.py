"""Ranges of the stages' options: values just outside are refused, those at the bounds taken."""

import dataclasses
import math

import pytest

from das3.errors import RecipeError
from das3.registry import stage_types
from das3.stages.options import LoopOptions, StageOptions, bounds_of


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def just_outside(bounds, default):
    """Values next to each bound, on its wrong side."""
    step = 1 if isinstance(default, int) else 1e-6
    if "choices" in bounds:
        yield "none of them"
    if "low" in bounds:
        yield bounds["low"] - step
    if "high" in bounds:
        yield bounds["high"] + step
    yield from (bounds[name] for name in ("above", "below") if name in bounds)
    if is_number(default):
        yield from (math.nan, math.inf, -math.inf)


def at_the_bounds(bounds):
    return [*bounds.get("choices", ()), *(bounds[name] for name in ("low", "high") if name in bounds)]


OPTIONS = [
    pytest.param(kind, field, id=f"{name}.{field.name}")
    for name, kind in [("loop", LoopOptions), *((name, stage.Options) for name, stage in stage_types().items())]
    for field in dataclasses.fields(kind)
    if not isinstance(field.default, bool) and field.name != "scale"
]


@pytest.mark.parametrize(("kind", "field"), OPTIONS)
def test_options_declare_a_range_and_values_just_outside_are_refused(kind, field):
    bounds = bounds_of(kind, field.name)
    assert bounds.keys() & {"low", "high", "above", "below", "choices"}
    for value in just_outside(bounds, field.default):
        with pytest.raises(RecipeError, match=f"^{field.name}="):
            kind(**{field.name: value})
    for value in [*at_the_bounds(bounds), field.default]:
        assert getattr(kind(**{field.name: value}), field.name) == value


@pytest.mark.parametrize(("kind", "field"), OPTIONS)
def test_an_option_that_is_declared_anew_keeps_its_old_name(kind, field):
    """Else a recipe of format 1 could not be read."""
    declared = {bounds_of(base, field.name).get("old") for base in kind.__mro__ if dataclasses.is_dataclass(base)}
    assert len(declared - {None}) <= 1
    assert bounds_of(kind, field.name).get("old") in (declared - {None} or {None})


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.0, 0.5), (1.0, math.inf), (math.nan, 1.0), (1.0,), (1.0, 1.0, 1.0)])
def test_scale_is_two_zooms_the_smaller_first(scale):
    with pytest.raises(RecipeError, match=r"^scale="):
        StageOptions(scale=scale)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1e-9}, {"lr": math.inf}, {"steps": -1}, {"blur": 1.0000001}])
def test_a_value_at_an_open_bound_or_just_beyond_a_closed_one_is_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        StageOptions(**wrong)
