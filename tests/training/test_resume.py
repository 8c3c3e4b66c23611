"""Runs that are killed, and go on, end with the weights of a run that never stopped."""

import json
import os
import random
import shutil
import signal
import time

import chaos
import pytest
import torch

import worlds
from das3.api import adapt
from das3.cli import main
from das3.errors import RecipeError, TrainingError
from das3.models import load_segmenter
from das3.training.checkpoints import load_checkpoint, save_checkpoint
from das3.training.supervised import SourceRecipe, train_source

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that uses a GPU can't be forked"),
]

STEPS = 12
OPTIONS = {
    "checkpoint_every": 3,
    "log_every": 2,
    "device": "cpu",
    "stages": ["mean-teacher", "align", "cbst", "propagate"],
    "mean_teacher": {"steps": STEPS},
    "align": {"steps": STEPS},
    "cbst": {"steps": STEPS, "color": 0.3, "rounds": 2},
    "propagate": {"steps": STEPS, "blur": 0.5},
}
BARE = {"guard": "off", "report": False}
"""Without what takes longer than a few steps of a stage; for runs whose weights alone are looked at."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    source = worlds.write_world(root / "source", "source")
    worlds.write_world(root / "target", "target")
    train_source(
        SourceRecipe(
            images=str(source / "images"),
            labels=str(source / "labels"),
            out=str(root / "trained"),
            steps=20,
            device="cpu",
            model_args={"width": 8},
        ),
        quiet=True,
    )
    return root


@pytest.fixture(scope="module")
def whole(world):
    """The run that never stopped."""
    return adapt(world / "trained", world / "target" / "images", out=world / "whole", quiet=True, **OPTIONS)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def assert_same_run(out, whole):
    """After every stage, and in the end, which may be the incoming model again."""
    assert_equal(load_segmenter(out).model.state_dict(), whole.model.state_dict())
    names = sorted(path.name for path in (out / "checkpoints").glob("[0-9]*.pt"))
    assert names == sorted(path.name for path in (whole.folder / "checkpoints").glob("[0-9]*.pt"))
    assert len(names) >= 5
    for name in names:
        assert_equal(*(load_checkpoint(folder / "checkpoints" / name)["segmenter"] for folder in (out, whole.folder)))


def test_two_runs_of_one_seed_are_bit_equal_and_of_another_differ(world, tmp_path):
    """Worker processes see the same samples."""

    def run(name, seed, **more):
        options = {**OPTIONS, **BARE, "stages": ["mean-teacher", "propagate"], "seed": seed, **more}
        options |= {"mean_teacher": {"steps": 4}, "propagate": {"steps": 4, "blur": 0.5}}
        result = adapt(world / "trained", world / "target" / "images", out=tmp_path / name, quiet=True, **options)
        return result.model.state_dict()

    one = run("one", 0)
    assert_equal(run("again", 0, workers=2), one)
    assert any(not torch.equal(a, one[name]) for name, a in run("other", 1).items())


def command(world, out, *extra):
    recipe = out.parent / "recipe.yaml"
    recipe.write_text(json.dumps(OPTIONS))
    model, images = world / "trained", world / "target" / "images"
    return [
        *("adapt", "--recipe", str(recipe), "--model", str(model), "--images", str(images), "--out", str(out)),
        *extra,
    ]


class Run:
    """A command in a process of its own, forked from this one, where all that it imports is loaded already."""

    def __init__(self, arguments, log):
        self.log, self.status = log, None
        # Heeds Ctrl-C, which a shell's background jobs and all that they start are told to ignore.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.number = chaos.start(arguments, log, None, {})
        finally:
            signal.signal(signal.SIGINT, before)

    def has_ended(self):
        if self.status is None and (found := os.waitpid(self.number, os.WNOHANG))[0]:
            self.status = os.waitstatus_to_exitcode(found[1])
        return self.status is not None

    def wait_for(self, condition, seconds=400):
        end = time.monotonic() + seconds
        while not condition():
            assert not self.has_ended(), self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.002)

    def stop(self, how):
        """Send a signal; what the process ends with, and what it said."""
        os.kill(self.number, how)
        end = time.monotonic() + 200
        while not self.has_ended():
            assert time.monotonic() < end
            time.sleep(0.002)
        return self.status, self.log.read_text()


def lines_of(out):
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    "kills",
    [
        [(2, signal.SIGKILL), (3, signal.SIGINT)],
        pytest.param([(phase, signal.SIGKILL) for phase in range(5)], marks=pytest.mark.slow),
    ],
)
def test_killed_in_a_stage_and_resumed(world, whole, tmp_path, kills):
    """One run, killed in some phases after a random number of reports, resumed each time."""
    rng, out = random.Random(time.time()), tmp_path / "run"
    extra = []
    for phase, how in kills:
        process = Run(command(world, out, *extra), tmp_path / f"{phase}.txt")
        reports = rng.randint(1, STEPS // 2 - 1)

        def reached(phase=phase, reports=reports):
            entries = [json.loads(line) for line in lines_of(out) if line.endswith("}")]
            return sum(e["phase"] == phase for e in entries) >= reports

        process.wait_for(reached)
        time.sleep(rng.random() * 0.05)
        status, error = process.stop(how)
        if how == signal.SIGINT:
            assert status == 130, error
            assert "--resume" in error
            assert "Traceback" not in error
        else:
            assert status == -signal.SIGKILL
        extra = ["--resume"]
    assert main(command(world, out, "--resume", "--quiet")) == 0
    assert_same_run(out, whole)
    steps = [(e["phase"], e["step"]) for e in map(json.loads, lines_of(out))]
    assert steps == sorted(set(steps))
    names = [row["name"] for row in json.loads((out / "summary.json").read_text())["stages"]]
    assert names == ["source", "mean-teacher", "align", "cbst", "cbst-2", "propagate"]


def test_a_stage_hands_on_interpolated_weights(world, tmp_path):
    """What is handed on lies halfway between what entered the stage and what it would be with a source_weight of 0."""
    found = {}
    for source_weight in (0.0, 0.5):
        selftrain = {"steps": 3, "source_weight": source_weight, "color_transforms": False, "upscale": False}
        options = {"stages": ["selftrain"], "device": "cpu", "selftrain": selftrain, **BARE}
        result = adapt(
            world / "trained", world / "target" / "images", out=tmp_path / str(source_weight), quiet=True, **options
        )
        found[source_weight] = dict(result.model.named_parameters())
    entered = dict(load_segmenter(world / "trained").model.named_parameters())
    for name, value in found[0.5].items():
        torch.testing.assert_close(value, (entered[name] + found[0.0][name]) / 2)
    assert any(not torch.equal(found[0.0][name], found[0.5][name]) for name in entered)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_a_checkpoint_is_written_waits_until_it_is_whole(tmp_path, monkeypatch, how):
    """torch.save would turn it into a RuntimeError about a file that can't be written."""
    path, before = tmp_path / "last.pt", signal.signal(how, signal.default_int_handler)

    class Interrupting:
        def __init__(self, file):
            self.file, self.told = file, False

        def write(self, data):
            if not self.told:  # a second one would end at once
                self.told = True
                signal.raise_signal(how)
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    save = torch.save
    monkeypatch.setattr("torch.save", lambda state, file: save(state, Interrupting(file)))
    try:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {"step": 3, "weights": torch.ones(1000)})
        assert signal.getsignal(how) is signal.default_int_handler
    finally:
        signal.signal(how, before)
    assert load_checkpoint(path)["step"] == 3


@pytest.mark.slow
def test_killed_while_labelling(world, whole, tmp_path):
    out = tmp_path / "run"
    process = Run(command(world, out), tmp_path / "log.txt")
    labels = out / "work" / "2-cbst" / "labels"
    process.wait_for(lambda: labels.is_dir() and any(labels.iterdir()))
    process.stop(signal.SIGKILL)
    assert main(command(world, out, "--resume", "--quiet")) == 0
    assert_same_run(out, whole)


def test_resuming_a_finished_run_changes_nothing(world, whole, tmp_path):
    out = shutil.copytree(whole.folder, tmp_path / "run")
    arguments = (world / "trained", world / "target" / "images")
    before = (out / "model" / "model.safetensors").read_bytes()
    again = adapt(*arguments, out=out, quiet=True, resume=True, **OPTIONS)
    assert (out / "model" / "model.safetensors").read_bytes() == before
    assert_equal(again.model.state_dict(), whole.model.state_dict())
    assert again.pseudo_labels is not None
    assert set(again.pseudo_labels[0]) >= {"labels"}


def test_a_run_folder_is_never_overwritten(world, tmp_path):
    arguments = (world / "trained", world / "target" / "images")
    options = {"stages": ["bn"], "quiet": True, "device": "cpu", **BARE}
    adapt(*arguments, out=tmp_path / "run", **options)
    with pytest.raises(RecipeError, match="--resume"):
        adapt(*arguments, out=tmp_path / "run", **options)
    with pytest.raises(RecipeError, match="seed=0, not 1"):
        adapt(*arguments, out=tmp_path / "run", resume=True, seed=1, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(RecipeError, match="not empty"):
        adapt(*arguments, out=tmp_path / "other", **options)


def test_a_damaged_checkpoint_is_named(world, tmp_path):
    arguments = (world / "trained", world / "target" / "images")
    options = {"stages": ["bn"], "quiet": True, "device": "cpu", **BARE}
    adapt(*arguments, out=tmp_path / "run", **options)
    (tmp_path / "run" / "checkpoints" / "last.pt").write_bytes(b"noise")
    with pytest.raises(TrainingError, match=r"last\.pt"):
        adapt(*arguments, out=tmp_path / "run", resume=True, **options)
