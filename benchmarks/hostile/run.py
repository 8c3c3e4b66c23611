"""Run cases, each in a forked child with a time limit and a memory limit, and say what became of them."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.cases import CANARY, Case, Place, pictures

SECONDS = 60
MEMORY = 3 * 2**30
"""Bytes that a case may take beyond what the process has when it begins."""

NOBODY = 65534

_PARSERS: dict[str, Any] = {}
"""The commands' own, built once: building one takes longer than most cases."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: that was run.
        verdict: "well", or what went wrong.
        seconds: that it took.
        text: what it said on stderr.
    """

    case: Case
    verdict: str
    seconds: float
    text: str


def make_base(root: Path) -> Path:
    """A model, images, labels and a Hugging Face folder that are all sound."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    from das3.models import load_segmenter, save_segmenter

    base = root / "base"
    pictures(base / "images", 2)
    (base / "labels").mkdir()
    for i in range(2):
        label = np.random.default_rng(i).integers(0, 3, (32, 40), np.uint8)
        Image.fromarray(label).save(base / "labels" / f"sound{i}.png")
    torch.manual_seed(0)
    save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 8}), base / "model")
    config = transformers.SegformerConfig(
        num_labels=3,
        depths=[1] * 4,
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(base / "hf")
    transformers.SegformerImageProcessor(do_resize=False).save_pretrained(base / "hf")
    for path in base.rglob("*"):  # also for nobody
        path.chmod(0o755 if path.is_dir() else 0o644)
    return base


def prepare() -> None:
    """Import what commands import, once, so that a child begins at once."""
    import lightning_fabric
    import segmentation_models_pytorch
    import tifffile
    import torchvision
    import transformers
    from PIL import Image

    import das3.benchmark.grid
    import das3.cli.adapt
    import das3.cli.evaluate
    import das3.cli.predict  # noqa: F401
    from das3.cli import command
    from das3.recipe import recipe_from

    for module in (lightning_fabric, segmentation_models_pytorch, tifffile, torchvision, transformers):
        assert module
    recipe_from({})
    _PARSERS.update({name: command.command_parser(name) for name in ("adapt", "predict", "evaluate", "benchmark")})
    Image.init()


def _warm_up(place: Place) -> None:
    """Sound commands once, for what they import late."""
    from das3.cli import main

    out = place.folder / "warm"
    for number, arguments in enumerate((place.predict(), place.predict(model=place.base / "hf"), place.adapt())):
        arguments[arguments.index("--out") + 1] = str(out / str(number))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(arguments) == 0
    shutil.rmtree(out)
    gc.collect()
    gc.freeze()  # else children copy nearly all memory when they collect garbage


def run_cases(
    cases: Iterable[Case], *, seconds: float = SECONDS, keep: Path | None = None, warm: bool = True
) -> Iterable[Outcome]:
    """Run the cases one after the other.

    Args:
        cases: to run.
        seconds: after which a case counts as hanging.
        keep: leave everything here, to look at.
        warm: run sound commands first, which makes many cases faster.
    """
    prepare()
    root = Path(keep or tempfile.mkdtemp(prefix="hostile-"))
    root.mkdir(exist_ok=True)
    root.chmod(0o755)
    try:
        base = make_base(root)
        if warm:
            _warm_up(Place(root, base))
        for number, case in enumerate(cases):
            folder = root / f"{number}"
            folder.mkdir(mode=0o777)
            folder.chmod(0o777)
            yield _run(case, Place(folder, base), seconds)
            if keep is None:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)


def _run(case: Case, place: Place, seconds: float) -> Outcome:
    began = time.monotonic()
    said = place.folder.parent / f"{place.folder.name}.said"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _in_child(case, place, said)
    status = _wait(child, began + seconds)
    took = time.monotonic() - began
    text = said.read_text(errors="replace") if said.exists() else ""
    return Outcome(case, _verdict(case, place.folder, status, text), took, text)


def _wait(child: int, until: float) -> int | None:
    """Exit status of a child, negative for a signal; None if it had to be stopped."""
    pause = 0.002
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _in_child(case: Case, place: Place, said: Path) -> None:
    """Never returns. Exit statuses of its own: 97 it can't be set up, 98 a traceback, 99 the network was asked."""
    status = 97
    try:
        os.chdir(place.folder)
        sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(sink, 2)
        os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT, 0o666), 1)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False, errors="backslashreplace") for n in (1, 2))
        arguments = list(case.make(place))
        sys.stderr.flush()
        os.ftruncate(2, 0)  # what setting up said
        os.lseek(2, 0, os.SEEK_SET)
        asked = _watch_network()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        if case.unprivileged and os.getuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        status = 98
        from das3.cli import command, main

        command.command_parser = _PARSERS.__getitem__

        status = main(arguments)
        if asked:
            print(f"asked the network: {asked}", file=sys.stderr)
            status = 99
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _watch_network() -> list[str]:
    """What this process asks of the network from now on."""
    asked: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            asked.append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]}")

    sys.addaudithook(note)
    return asked


def _verdict(case: Case, folder: Path, status: int | None, text: str) -> str:
    if (folder / CANARY).exists():
        return "code run"
    if status is None:
        return "hang"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status == 97:
        return "not set up"
    if status == 99:
        return "network"
    if status == 98 or "Traceback" in text:
        return "traceback"
    lines = text.strip().splitlines()
    if status == 0:
        if case.expect == "told":
            return "not told"
        try:
            if case.check is not None:
                case.check(folder)
        except Exception as error:
            return f"wrong result: {type(error).__name__} {error}"
        return "well"
    if case.expect == "works":
        return "refused"
    if len(lines) != 1 or not lines[0].startswith("das3: error: "):
        return "not one line"
    missing = [word for word in case.words if word not in lines[0]]
    return f"does not say {missing[0]}" if missing else "well"
