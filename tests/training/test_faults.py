"""Damaged run folders, changed inputs, full disks, two runs at once: one clear line, or the same result."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import chaos
import numpy as np
import pytest
import torch
from PIL import Image

import worlds
from das3 import files
from das3.cli import main
from das3.data.label_store import LabelStore, find_labels
from das3.errors import Terminated, TrainingError
from das3.models import load_segmenter, save_segmenter
from das3.stages.options import LoopOptions
from das3.training import launch, run_folder
from das3.training.batches import Batches
from das3.training.checkpoints import save_checkpoint
from das3.training.lock import locked_folder
from das3.training.loop import make_fabric

SIZE = (12, 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    worlds.write_world(root / "target", "target", count=4, size=SIZE)
    torch.manual_seed(0)
    save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 4}), root / "model")
    return root


def command(world, out, *more):
    return [
        *("adapt", "--model", str(world / "model"), "--images", str(world / "target" / "images"), "--out", str(out)),
        *("--stages", "align,selftrain", "--align.steps", "3", "--selftrain.steps", "6", "--batch-size", "2"),
        *("--device", "cpu", "--checkpoint-every", "2", "--log-every", "2", "--report", "false", "--guard", "off"),
        *("--align.bn-mode", "batch", "--selftrain.bn-mode", "batch", "--align.color-transforms", "false"),
        *("--selftrain.color-transforms", "false", "--selftrain.upscale", "false", "--quiet", *more),
    ]


@pytest.fixture(scope="module")
def whole(world):
    """Weights of the run that never stopped."""
    assert main(command(world, world / "whole")) == 0
    return (world / "whole" / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def stopped(world):
    """A run that stopped in its second stage, after a checkpoint; not to be changed."""
    add = run_folder.Log.add

    def stopping(self, phase, stage, record, seconds, measured):
        add(self, phase, stage, record, seconds, measured)
        if (phase, record.step) == (1, 4):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.Log, "add", stopping)
        assert main(command(world, world / "stopped")) == 130
    return world / "stopped"


@pytest.fixture
def out(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


def told(capsys):
    """The one line of an error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("das3: error: ")
    return lines[0]


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def is_clean(out):
    return not [p for p in out.rglob("*") if p.name.endswith(".part") or p.name.startswith(".model.")]


HOW = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size * 2 // 3)]),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)),
    "flipped": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()),
    "missing": lambda path: path.unlink(),
}


def _flipped(data):
    """One bit in the middle is another one."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


LABELS = "work/1-selftrain/labels/00000-0.zip"
FILES = [
    *("recipe.yaml", "inputs.json", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/0-align.pt"),
    LABELS,
]
SAME = {"metrics.jsonl", LABELS}
"""Files that a resumed run needs nothing of, or makes anew."""
NOT_NEEDED = {
    ("inputs.json", "missing"),
    ("checkpoints/1-selftrain-step2.pt", "missing"),
    ("checkpoints/last.pt", "missing"),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run(world, whole, out, capsys, name, how):
    """Made anew with the same result where it can be, else named in one line."""
    assert (out / name).is_file()
    HOW[how](out / name)
    status = main(command(world, out, "--resume"))
    if how == "flipped" and name in ("recipe.yaml", "inputs.json"):  # what it said may be another option, or a comment
        assert status in (0, 2)
        return
    if status == 0:
        assert (name in SAME and (how != "folder" or name == LABELS)) or (name, how) in NOT_NEEDED
        assert weights(out) == whole
        return
    line = told(capsys)
    assert name.rpartition("/")[2] in line or name == "recipe.yaml"
    assert name not in SAME or (how == "folder" and name != LABELS)


@pytest.mark.parametrize("name", ["checkpoints", "work", "model", "tensorboard"])
def test_a_file_in_the_place_of_a_folder(world, out, capsys, name):
    shutil.rmtree(out / name, ignore_errors=True)
    (out / name).write_text("mine")
    assert main(command(world, out, "--resume")) == 2
    assert f"{out / name} is a file" in told(capsys)


@pytest.mark.parametrize("cut", range(0, 1300, 130))
def test_labels_cut_anywhere_count_as_not_made(stopped, tmp_path, cut):
    pack = (stopped / LABELS).read_bytes()
    names = find_labels((stopped / LABELS).parent).names
    (tmp_path / "00000-0.zip").write_bytes(pack)
    assert all(LabelStore(tmp_path, names).has(i) for i in range(len(names)))
    (tmp_path / "00000-0.zip").write_bytes(pack[: min(cut, len(pack) - 1)])
    assert not any(LabelStore(tmp_path, names).has(i) for i in range(len(names)))


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_killed_before_the_recipe_was_whole(world, whole, tmp_path, resume):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".1234.recipe.yaml.part").write_bytes(b"form")
    (out / ".lock").touch()
    assert main(command(world, out, *resume)) == 0
    assert weights(out) == whole
    assert is_clean(out)


def test_leftovers_of_a_killed_run_are_removed(world, whole, out):
    (out / "checkpoints" / ".77.last.pt.part").write_bytes(b"half")
    (out / "work" / "0.npz.77.part").write_bytes(b"half")
    (out / ".model.old.xyz").mkdir()
    (out / ".model.abc").mkdir()
    (out / ".model.abc" / "model.safetensors").write_bytes(b"half")
    assert main(command(world, out, "--resume")) == 0
    assert weights(out) == whole
    assert is_clean(out)


def copied(world, tmp_path, out, *more):
    """The command with copies of the model and the images, which a test may change; without other options."""
    shutil.copytree(world / "target" / "images", tmp_path / "images")
    shutil.copytree(world / "model", tmp_path / "model")
    return [
        *("adapt", "--model", f"{tmp_path}/model/", "--images", f"{tmp_path}/x/../images/", "--out", str(out)),
        *("--resume", "--quiet", *more),
    ]


def _edit(path):
    """One pixel, and the file is as large and as old as before."""
    image, stat = np.array(Image.open(path)), path.stat()
    image[3, 4] = 255 - image[3, 4]
    Image.fromarray(image).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = {
    "1 added (new)": lambda images: shutil.copy(images / "0.png", images / "new.png"),
    "1 removed (2)": lambda images: (images / "2.png").unlink(),
    "1 changed (1)": lambda images: _edit(images / "1.png"),
    "2 changed (0, 3)": lambda images: (
        (images / "0.png").rename(images / "x"),
        (images / "3.png").rename(images / "0.png"),
        (images / "x").rename(images / "3.png"),
    ),
    "1 added (9), 1 removed (0)": lambda images: (images / "0.png").rename(images / "9.png"),
}


@pytest.mark.parametrize("words", CHANGES)
def test_images_that_changed_are_told_before_work(world, out, tmp_path, capsys, monkeypatch, words):
    arguments = copied(world, tmp_path, out)
    (tmp_path / "x").mkdir()
    CHANGES[words](tmp_path / "images")
    monkeypatch.setattr(launch, "run_phases", lambda *a, **k: pytest.fail("work began"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(arguments) == 2
    line = told(capsys)
    assert f"images: {words}" in line
    assert "--out" in line
    assert before == {path: path.read_bytes() for path in before}


def test_a_moved_folder_is_no_change(world, whole, out, tmp_path):
    (tmp_path / "x").mkdir()
    assert main(copied(world, tmp_path, out)) == 0
    assert weights(out) == whole


@pytest.mark.parametrize("width", [4, 8])
def test_another_model_is_told_before_work(world, out, tmp_path, capsys, monkeypatch, width):
    monkeypatch.setattr(launch, "run_phases", lambda *a, **k: pytest.fail("work began"))
    torch.manual_seed(1)
    other = load_segmenter("das3:small", num_classes=3, model_args={"width": width})
    save_segmenter(other, tmp_path / "other")
    assert main(["adapt", "--out", str(out), "--resume", "--quiet", "--model", str(tmp_path / "other")]) == 2
    assert "the model has other weights" in told(capsys)


def test_labels_that_changed_are_told(world, tmp_path, capsys, monkeypatch):
    labels = shutil.copytree(world / "target" / "labels", tmp_path / "labels")
    images = str(world / "target" / "images")
    more = ["--eval-images", images, "--eval-labels", str(labels), "--stages", "bn"]
    assert main(command(world, tmp_path / "run", *more)) == 0
    Image.fromarray(np.ones(SIZE, np.uint8)).save(labels / "2.png")
    assert main(["adapt", "--out", str(tmp_path / "run"), "--resume", "--quiet"]) == 2
    assert "evaluation labels: 1 changed (2)" in told(capsys)


def test_resume_alone(world, whole, out, tmp_path, monkeypatch):
    """The options are those of the run, relative paths those of where it began."""
    recipe, inputs = out / "recipe.yaml", json.loads((out / "inputs.json").read_text())
    recipe.write_text(recipe.read_text().replace(f"{world}/", ""))
    (out / "inputs.json").write_text(json.dumps({**inputs, "here": str(world)}))
    monkeypatch.chdir(tmp_path)
    assert main(["adapt", "--out", "run", "--resume"]) == 0
    assert weights(out) == whole


def test_resume_alone_in_python(world, whole, out):
    from das3 import adapt

    adapt(out=out, resume=True, quiet=True)
    assert weights(out) == whole


def test_resume_of_nothing(tmp_path, capsys):
    assert main(["adapt", "--out", str(tmp_path / "no"), "--resume"]) == 2
    assert "holds no run" in told(capsys)


def test_options_that_differ_are_named(world, out, capsys):
    assert main(["adapt", "--out", str(out), "--resume", "--align.lr", "0.5", "--seed=3"]) == 2
    line = told(capsys)
    assert "align.lr=5e-05, not 0.5; seed=0, not 3;" in line
    assert "selftrain" not in line


def test_the_precision_may_change(out, capsys):
    """As the advice after NaN says."""
    assert main(["adapt", "--out", str(out), "--resume", "--precision", "32"]) == 0
    assert "goes on with precision 32, not auto" in capsys.readouterr().err


def test_two_runs_in_one_folder(world, whole, out, capsys):
    with locked_folder(out):
        assert main(command(world, out, "--resume")) == 2
    assert f"in use by a run that is going on (process {os.getpid()}" in told(capsys)
    assert main(command(world, out, "--resume")) == 0
    assert weights(out) == whole


def test_a_dead_process_holds_no_lock(tmp_path):
    """Nor do those that it forked and left behind."""
    ready, hold = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with locked_folder(tmp_path):
            if os.fork() == 0:
                os.close(hold[1])
                os.write(ready[1], b"x")
                os.read(hold[0], 1)  # lives on until the test ends
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.read(ready[0], 1)
    os.waitpid(child, 0)
    with locked_folder(tmp_path):
        pass
    os.close(hold[1])


@pytest.mark.parametrize("kind", ["a file", "below a file", "of something else", "read-only", "a broken link"])
def test_an_out_that_can_not_be(world, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr(launch, "load_segmenter", lambda *a, **k: pytest.fail("work began"))
    out = tmp_path / "out"
    if kind == "a file":
        out.touch()
    elif kind == "below a file":
        out.touch()
        out = out / "run"
    elif kind == "of something else":
        out.mkdir()
        (out / "thesis.txt").touch()
    elif kind == "a broken link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert main(command(world, out)) == 2
    line = told(capsys)
    assert str(out) in line
    assert "choose another --out" in line


@pytest.fixture
def disk(monkeypatch):
    """Calls of it fill the disk at the n-th file that is written."""

    def fill(after):
        opened = []

        class Part(files._PartFile):
            def __init__(self, path, mode):
                opened.append(path)
                super().__init__(path, mode)

            def write(self, data):
                if len(opened) >= after:
                    os.write(self.fileno(), bytes(data)[: len(data) // 2])
                    self.failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    raise self.failed
                return super().write(data)

        monkeypatch.setattr(files, "_PartFile", Part)

    return fill


SLOW = pytest.mark.slow


@pytest.mark.parametrize("after", [1, 3, 7, 11, *(pytest.param(n, marks=SLOW) for n in (2, 5, 9, 13))])
def test_a_full_disk(world, whole, tmp_path, capsys, disk, monkeypatch, after):
    """Whatever is being written when it fills up: recipe, labels, weights, log, checkpoints."""
    out = tmp_path / "run"
    disk(after)
    assert main(command(world, out)) == 2
    line = told(capsys)
    assert "no space left (No space left on device); free some space" in line
    assert str(out) in line
    assert is_clean(out)
    monkeypatch.undo()
    assert main(command(world, out, "--resume")) == 0
    assert weights(out) == whole


@pytest.mark.parametrize("full", ["safetensors", "log"])
def test_a_disk_that_fills_up_at_libraries(world, whole, out, capsys, monkeypatch, full):
    if full == "safetensors":
        from safetensors import SafetensorError

        def save(*arguments):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("safetensors.torch.save_file", save)
    else:

        def add(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("das3.training.event_file.EventFile.scalars", add)
    assert main(command(world, out, "--resume")) == 2
    assert "no space left" in told(capsys)
    assert is_clean(out)
    monkeypatch.undo()
    assert main(command(world, out, "--resume")) == 0
    assert weights(out) == whole


@pytest.mark.parametrize(("stopped", "status"), [(Terminated, 143), (KeyboardInterrupt, 130)])
def test_a_signal_that_makes_torch_fail_is_still_a_signal(capsys, monkeypatch, stopped, status):
    """Where it comes while a mode of torch is entered, torch raises an error of its own instead."""

    def dispatch(arguments):
        try:
            raise stopped
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    monkeypatch.setattr(sys.modules["das3.cli.main"], "_dispatch", dispatch)
    assert main(["adapt"]) == status
    assert "--resume" in capsys.readouterr().err


def test_sigterm_saves_the_step(world, whole, tmp_path, capsys, monkeypatch):
    """Not the last checkpoint's: it is that of the step in which the signal came."""
    out, add = tmp_path / "run", run_folder.Log.add

    def report(self, phase, stage, record, seconds, measured):
        add(self, phase, stage, record, seconds, measured)
        if (phase, record.step) == (1, 3):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_folder.Log, "add", report)
    every = ["--log-every", "1", "--checkpoint-every", "100"]
    assert main([*command(world, out), *every]) == 143
    assert capsys.readouterr().err.startswith("das3: terminated; a run goes on with --resume")
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    assert (state["phase"], state["step"]) == (1, 4)
    monkeypatch.undo()
    assert main(["adapt", "--out", str(out), "--resume", "--quiet"]) == 0
    assert weights(out) == whole


def test_a_second_ctrl_c_while_a_checkpoint_is_written_is_heeded_at_once(tmp_path, monkeypatch):
    path, before = tmp_path / "last.pt", signal.signal(signal.SIGINT, signal.default_int_handler)

    def save(state, file):
        file.write(b"half")
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as torch does
            raise RuntimeError from None
        pytest.fail("not at once")

    monkeypatch.setattr("torch.save", save)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_ctrl_c_while_things_are_imported_is_no_traceback(tmp_path, seconds):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    try:
        command = [sys.executable, "-m", "das3", "adapt", "--model", "x", "--images", "y", "--out", "z"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=100)[1]
    if process.returncode == -signal.SIGINT or "Traceback" in error:  # before das3 was begun to be read
        assert "das3/cli/main.py" not in error
        return
    assert process.returncode == 130
    assert "interrupted" in error


@pytest.mark.parametrize(("size", "parts"), [(8, 1), (4, 2), (3, 4), (1, 8)])
def test_a_batch_that_does_not_fit_is_gone_through_in_parts(size, parts):
    """With the gradient of the whole batch, said once."""
    images = torch.rand(64, 3)

    class Stage:
        name = "stage"

        def loss(self, model, batch):
            if len(batch["image"]) > size:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return {"loss": model(batch["image"]).square().mean()}

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, n):
            return {"image": images[n]}

    model, said = torch.nn.Linear(3, 2), []
    optimizer = torch.optim.SGD(model.parameters())
    options = LoopOptions(batch_size=8, accumulate=2)
    batches = Batches(make_fabric("cpu", "32"), Samples(), options, said.append)
    for step in range(2):
        optimizer.zero_grad()
        losses = batches.add_gradients(Stage(), model, optimizer, step, 0)
        assert len(losses) == 2 * parts
        found = model.weight.grad.clone()
        optimizer.zero_grad()
        model(images[16 * step :][:16]).square().mean().backward()
        torch.testing.assert_close(found, model.weight.grad)
    assert len(said) == (parts > 1) * (parts.bit_length() - 1)


def test_not_one_image_fits():
    class Stage:
        def loss(self, model, batch):
            raise torch.OutOfMemoryError("CUDA out of memory")

    batches = Batches(make_fabric("cpu", "32"), [{"image": torch.rand(3)}] * 8, LoopOptions(batch_size=2), print)
    with pytest.raises(TrainingError, match="smaller --batch-size or --crop"):
        batches.add_gradients(Stage(), None, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 0, 0)


@pytest.mark.parametrize(
    "given",
    [
        {"lr": ".inf"},
        {"weight_decay": ".nan"},
        {"accumulate": "0"},
        {"accumulate": "1000000000"},
        {"workers": "-1"},
        {"workers": "1000000"},
        {"devices": "0"},
        {"cache_gib": ".nan"},
        {"checkpoint_every": "0"},
    ],
)
def test_numbers_that_no_run_can_have(world, tmp_path, capsys, given):
    recipe = tmp_path / "recipe.yaml"
    [(name, value)] = given.items()
    recipe.write_text(f"align:\n  lr: {value}\n" if name == "lr" else f"{name}: {value}\n")
    assert main([*command(world, tmp_path / "run"), "--recipe", str(recipe)]) == 2
    assert name in told(capsys)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_not_saved(world, out, capsys, monkeypatch):
    """A run would go on from them to no end."""
    step = torch.optim.AdamW.step

    def spoiling(self, *arguments):
        step(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    before = (out / "checkpoints" / "last.pt").read_bytes()
    assert main(command(world, out, "--resume", "--checkpoint-every", "1")) == 2
    assert "--resume --precision 32" in told(capsys)
    assert (out / "checkpoints" / "last.pt").read_bytes() == before


@pytest.fixture(scope="module")
def took(world, whole, tmp_path_factory):
    """Result of the run that benchmarks/chaos.py disturbs, a smaller one here, and what it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos, "begin", lambda root, out: command(world, out))
        found = chaos.whole_run(tmp_path_factory.mktemp("took"), 1)
        assert found[0]["model"] == whole
        yield found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that uses a GPU can't be forked")
@pytest.mark.parametrize("kind", ["kill", "kill-at", "term-at", "fail", "full", "limit"])
def test_chaos(took, tmp_path, kind):
    """A few faults of benchmarks/chaos.py, at random moments."""
    found = chaos.trial(tmp_path, 0, kind, 1, random.Random(), took)
    assert found["problems"] == [], found
