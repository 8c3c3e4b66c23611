"""Every number, switch and choice among the options of every stage and of the loop changes what comes out."""

import dataclasses

import pytest
import torch

from das3.recipe import Recipe
from das3.registry import find_stage, stage_types
from das3.stages.options import LoopOptions, bounds_of
from das3.testing import LOOP, run_small
from das3.training.phases import phases_of

# Values to change to, where half of the default, or the next number, would change nothing in so small a run.
OTHER = {
    "steps": 3,
    "pairwise_weight": 100.0,
    "places": 8,
    "threshold": 0.4,
    "rare_temperature": 0.05,
    "easy_share": 0.75,
    "head_lr_factor": 3.0,
    "scale": (0.5, 0.5),
    "negative_threshold": 0.3,
    "ema_decay": 0.9,
    "clip": 1e-3,
    "target_weight": 0.25,
    "weight_decay": 0.5,
    "warmup": 0.9,
}
# They choose among transforms, which matters where the model is more confident under one: tests of their own.
HAVE_TESTS_OF_THEIR_OWN = {"color_transforms", "upscale"}
LEFT_OUT = HAVE_TESTS_OF_THEIR_OWN | {"rounds"}


def other_value(kind, name, value):
    bounds = bounds_of(kind, name)
    if name == "bn_mode":  # a stage on its own takes "auto" for "batch"
        return "frozen" if value == "auto" else None
    if "choices" in bounds:
        return next((choice for choice in bounds["choices"] if choice != value), None)
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value + 1 <= bounds.get("high", value + 1) else value - 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return None


def cases():
    for name, stage in stage_types().items():
        options = stage.Options()
        for field in dataclasses.fields(options):
            other = other_value(stage.Options, field.name, getattr(options, field.name))
            of_training = field.name in {"lr", "head_lr_factor", "scale", "color", "blur", "steps", "bn_mode"}
            if other is None or field.name in LEFT_OUT or (not options.steps and of_training):
                continue
            yield pytest.param(name, field.name, other, id=f"{name}.{field.name}")


def outcome(stage, folder, loop=LOOP, **options):
    """Losses of every step and the weights, in one flat tensor."""
    run = run_small(stage, folder, loop=loop, **options)
    losses = [value for record in run.records for value in record.losses.values()]
    return torch.cat([torch.tensor(losses), *(v.flatten().float() for v in run.segmenter.state_dict().values())])


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    made = {}

    def get(name, **options):
        key = (name, *options.items())
        if key not in made:
            made[key] = outcome(find_stage(name), tmp_path_factory.mktemp(name), **options)
        return made[key]

    return get


def is_frozen(stage):
    """Whether the stage leaves the classifier alone, whose rate is of no account then."""
    from das3.testing import small_segmenter

    segmenter = small_segmenter()
    trained = {id(p) for p in stage(stage.Options()).trainable(segmenter)}
    return not any(id(p) in trained for p in segmenter.classifier_parameters())


def beside(name, option):
    """Other options of the run: what takes long is off, and what the option needs to matter is on."""
    kind = find_stage(name).Options
    known = {field.name for field in dataclasses.fields(kind)}
    base = {"steps": 2} if kind().steps else {}
    base |= {switch: False for switch in ("color_transforms", "upscale") if switch in known}
    if option == "class_balance" and "prior" in known:
        base["prior"] = "model"
    if option in {"class_balance", "spatial_prior_weight"} and "top_fraction" in known:
        base["top_fraction"] = 1.0
    return base


@pytest.mark.parametrize(("name", "option", "other"), cases())
def test_an_option_of_a_stage_changes_the_outcome(name, option, other, usual, tmp_path):
    stage, base = find_stage(name), beside(name, option)
    before, after = usual(name, **base), outcome(stage, tmp_path, **{**base, option: other})
    changed = before.shape != after.shape or not torch.equal(before, after)
    assert changed != (option == "head_lr_factor" and is_frozen(stage))


@pytest.mark.parametrize("name", [n for n, stage in stage_types().items() if hasattr(stage.Options(), "rounds")])
def test_rounds_are_phases(name):
    stage = find_stage(name)
    for rounds in (1, 3):
        recipe = Recipe(stages=(name,), options={name: stage.Options(rounds=rounds)})
        assert len(phases_of(recipe)) == rounds


# How a step is computed, and watched; what the first four do has tests of its own.
WATCHING = {
    *("checkpoint_activations", "shard_weights", "compile", "channels_last"),
    *("workers", "log_every", "checkpoint_every"),
}


@pytest.mark.parametrize("option", [f.name for f in dataclasses.fields(LoopOptions) if f.name not in WATCHING])
def test_an_option_of_the_loop_changes_the_outcome(option, usual, tmp_path):
    other = other_value(LoopOptions, option, getattr(LOOP, option))
    if option == "ema_decay":
        other = 0.0
    after = outcome(find_stage("minent"), tmp_path, loop=dataclasses.replace(LOOP, **{option: other}))
    before = usual("minent")
    assert before.shape != after.shape or not torch.equal(before, after)


@pytest.mark.parametrize(("option", "other"), [("log_every", 2), ("checkpoint_every", 1)])
def test_how_a_run_is_watched_changes_no_weight(option, other, tmp_path):
    weights = [
        run_small(find_stage("align"), tmp_path / str(i), loop=loop).segmenter.state_dict()
        for i, loop in enumerate((LOOP, dataclasses.replace(LOOP, **{option: other})))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
