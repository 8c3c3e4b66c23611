"""Runs that are killed, terminated, or lose their disk at random moments, and go on: each must end bit-equal.

    python benchmarks/chaos.py --faults 240 --out benchmarks/results/chaos.json

Every run is a fork of this process, which has imported everything, so that a run takes about a second. A fault is

    kill, term          SIGKILL or SIGTERM at a random moment
    kill-at, term-at    the same at a random file event: a file of the run is opened, renamed, removed, a folder is made
    fail, full          a file layer that fails (EIO), or is full (ENOSPC) from the n-th written file on
    limit               the kernel refuses files beyond a random size (EFBIG), whoever writes them

After it no file may be half, and `das3 adapt --out RUN --resume` has to end with the model, the choice and the report
of the run that was not interrupted. A third of the resumed runs get another fault first.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

KINDS = ("kill", "term", "kill-at", "term-at", "fail", "full", "limit")
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
SECONDS = 240
"""A run that takes longer hangs."""


def write_world(root: Path) -> None:
    """Three small images, and a model folder."""
    from das3.models import load_segmenter, save_segmenter

    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
    torch.manual_seed(0)
    save_segmenter(load_segmenter("das3:small", num_classes=3, model_args={"width": 4}), root / "model")


def begin(root: Path, out: Path) -> list[str]:
    """Arguments of a run that goes through everything."""
    steps = [f"--{stage}.steps=3" for stage in ("align", "selftrain", "propagate")]
    return [
        *("adapt", "--model", str(root / "model"), "--images", str(root / "images"), "--out", str(out), *steps),
        *("--batch-size=2", "--device=cpu", "--checkpoint-every=2", "--log-every=1", "--selftrain.upscale=false"),
        *(f"--{stage}.color-transforms=false" for stage in ("align", "selftrain")),
    ]


class Fault:
    """What happens to a run, decided beforehand.

    Args:
        kind: of `KINDS`.
        out: the run folder.
        where: from 0 to 1, how far into the run; of what a whole run takes.
        whole: seconds, file events and written files of a whole run.
    """

    def __init__(self, kind: str, out: Path, where: float, whole: dict[str, float]) -> None:
        self.kind, self.out = kind, out
        self.seconds = where * whole["seconds"]
        self.event = 1 + int(where * whole["events"])
        self.file = 1 + int(where * whole["files"])
        self.bytes = 1 + int(where**3 * whole["largest"])

    def prepare(self) -> None:
        """Set it up, in the process that it happens to."""
        if self.kind.endswith("-at"):
            number = signal.SIGKILL if self.kind == "kill-at" else signal.SIGTERM
            _count_events(self.out, lambda n: os.kill(os.getpid(), number) if n == self.event else None)
        elif self.kind in ("fail", "full"):
            _fail_files(self.file, errno.EIO if self.kind == "fail" else errno.ENOSPC)
        elif self.kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))


def _count_events(out: Path, then) -> None:
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in EVENTS and arguments and str(arguments[0]).startswith(str(out)):
            if event == "open" and arguments[1] is not None and not set(str(arguments[1])) & set("wax+"):
                return  # for reading
            count += 1
            then(count)

    sys.addaudithook(hook)


def _fail_files(number: int, code: int) -> None:
    """From the n-th file on, half of what is written arrives, and then the disk fails."""
    from das3 import files

    opened = []

    class Part(files._PartFile):
        def __init__(self, path, mode):
            opened.append(path)
            super().__init__(path, mode)

        def write(self, data):
            if len(opened) >= number:
                os.write(self.fileno(), bytes(data)[: len(data) // 2])
                self.failed = OSError(code, os.strerror(code))
                raise self.failed
            return super().write(data)

    files._PartFile = Part


def start(arguments: list[str], log: Path, fault: Fault | None, environment: dict[str, str]) -> int:
    """Fork a process that runs the command; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.environ.update(environment)
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if fault:
            fault.prepare()
        from das3.cli import main

        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the limit holds for the log as well
                stream.flush()
        os._exit(status)


def start_all(arguments: list[str], log: Path, world: int, fault: Fault | None = None, hit: int = 0) -> list[int]:
    """Fork the processes of a run, as torchrun would start them; returns their numbers.

    Args:
        arguments: of das3.
        log: file that gets their output: with `.0.txt`, `.1.txt`, … in place of its suffix.
        world: how many processes.
        fault: what happens to one of them.
        hit: to which.
    """
    shared = {}
    if world > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "chaos"}
        shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "NODE_RANK": "0"}
    return [
        start(
            arguments,
            log.with_suffix(f".{rank}.txt"),
            fault if rank == hit else None,
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {},
        )
        for rank in range(world)
    ]


def run(arguments: list[str], log: Path, world: int, fault: Fault | None = None, hit: int = 0) -> list[int]:
    """`start_all`, and wait for the end; returns the processes' statuses, negative numbers of signals."""
    children = start_all(arguments, log, world, fault, hit)
    began, statuses = time.monotonic(), {}
    sent = fault is None or fault.kind not in ("kill", "term")
    while len(statuses) < world:
        for rank, child in enumerate(children):
            if rank not in statuses and (found := os.waitpid(child, os.WNOHANG))[0]:
                statuses[rank] = os.waitstatus_to_exitcode(found[1])
                ended = time.monotonic()
        elapsed = time.monotonic() - began
        if not sent and elapsed > fault.seconds and hit not in statuses:
            os.kill(children[hit], signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)
            sent = True
        # What torchrun does when one of them is gone.
        late = any(statuses.values()) and time.monotonic() - ended > 3
        for rank, child in enumerate(children):
            if rank not in statuses and (late or elapsed > SECONDS):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    assert time.monotonic() - began < SECONDS, f"{log}: it hangs"
    return [statuses[rank] for rank in range(world)]


def halves(out: Path) -> list[str]:
    """Files under their own names that can't be read."""
    from safetensors import safe_open

    bad = []
    for path in out.rglob("*"):
        try:
            if path.name.endswith(".part") or not path.is_file():
                continue
            if path.suffix in (".pt", ".npz", ".zip"):
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            elif path.suffix == ".json" and not path.parent.name.startswith(".model."):
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors" and path.parent.name == "model":
                with safe_open(path, "pt") as found:
                    assert list(found.keys())
            elif path.name == "report.html":
                assert path.read_text().rstrip().endswith("</html>")
        except Exception as error:
            bad.append(f"{path.relative_to(out)}: {error!r}")
    return bad


def phase_of(out: Path) -> str:
    """How far a run came."""
    last = out / "checkpoints" / "last.pt"
    if (out / "summary.json").exists():
        return "report"
    if last.exists():
        number = torch.load(last, weights_only=True)["phase"]
        if number == 3:
            return "choice and export"
        return ("align", "selftrain", "propagate")[number]
    if (out / "work" / "0-align").exists():
        return "align"
    if (out / "work" / "selection").exists() or (out / "work" / "report" / "incoming" / "meta.json").exists():
        return "statistics"
    return "capture for the report" if (out / "work").exists() else "begin"


def result_of(out: Path) -> dict[str, object]:
    """What has to be equal."""
    from das3.data.label_store import find_labels

    summary = json.loads((out / "summary.json").read_text())
    for stage in summary["stages"]:
        stage["seconds"] = None
    pseudo_labels = [(folder, find_labels(folder)) for folder in sorted((out / "work").glob("*/labels"))]
    return {
        "model": (out / "model" / "model.safetensors").read_bytes(),
        "summary": summary,
        "report": (out / "report.html").is_file(),
        "labels": [
            (str(folder.relative_to(out)), store.names[i], {key: value.tobytes() for key, value in store[i].items()})
            for folder, store in pseudo_labels
            for i in range(len(store))
            if store.has(i)
        ],
        "left": sorted(p.name for p in out.rglob("*") if p.name.endswith(".part") or p.name.startswith(".model.")),
    }


def whole_run(root: Path, world: int) -> tuple[dict[str, object], dict[str, float]]:
    """The run that is not interrupted: its result, and what it takes."""
    out, counts = root / f"whole-{world}", root / f"counts-{world}"

    class Counting(Fault):
        def __init__(self):
            self.kind = "none"

        def prepare(self):
            from das3 import files

            seen = {"events": 0, "files": 0}

            def event(n):
                seen["events"] = n
                counts.write_text(json.dumps(seen))

            class Part(files._PartFile):
                def __init__(self, path, mode):
                    seen["files"] += 1
                    super().__init__(path, mode)

            files._PartFile = Part
            _count_events(out, event)

    began = time.monotonic()
    assert run(begin(root, out), root / f"whole-{world}", world, Counting()) == [0] * world, root
    took = json.loads(counts.read_text()) | {"seconds": time.monotonic() - began}
    took["largest"] = max(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return result_of(out), took


def trial(root: Path, number: int, kind: str, world: int, rng: random.Random, whole) -> dict[str, object]:
    """One run with one or two faults, resumed to its end; what happened."""
    (expected, took), out, log = whole, root / f"run-{number}", root / f"log-{number}"
    resume, faults, problems = ["adapt", "--out", str(out), "--resume"], [], []
    for attempt in range(1 + (rng.random() < 1 / 3)):
        kind = kind if attempt == 0 else rng.choice(KINDS)
        hit = rng.randrange(world) if kind in ("kill", "term") else 0
        again = out.joinpath("recipe.yaml").exists()
        statuses = run(resume if again else begin(root, out), log, world, Fault(kind, out, rng.random(), took), hit)
        phase = phase_of(out)
        faults.append({"kind": kind, "phase": phase, "processes": world, "hit": statuses[0] != 0})
        problems += [f"half a file after {kind} in {phase}: {bad}" for bad in halves(out)]
        wanted = {"kill": (-9,), "kill-at": (-9,), "term": (143, -15), "term-at": (143, -15)}.get(kind, (2,))
        if world == 1 and statuses[0] not in (*wanted, 0):
            problems.append(f"{kind} in {phase} ended with {statuses}")
    for _ in range(2):  # begun anew where there was no recipe yet; --resume works there as well
        statuses = run([*begin(root, out), "--resume"] if not (out / "recipe.yaml").exists() else resume, log, world)
        if statuses == [0] * world:
            break
    text = "".join(f.read_text(errors="replace") for f in root.glob(f"{log.name}.*.txt"))
    if statuses != [0] * world:
        problems.append(f"the resumed run ended with {statuses}")
    else:
        found = result_of(out)
        problems += [f"{key} differs" for key, value in expected.items() if found[key] != value]
    if "Traceback" in text and world == 1:
        problems.append("a traceback")
    if problems:
        print(f"run {number}: {faults}\n{problems}\n{text[-3000:]}", file=sys.stderr, flush=True)
    else:
        shutil.rmtree(out)
    return {"faults": faults, "problems": problems}


def summary_of(trials: list[dict[str, object]], seconds: float) -> dict[str, object]:
    """Counts, for the result file."""
    faults = [fault for one in trials for fault in one["faults"] if fault["hit"]]
    kinds = sorted({f["phase"] for f in faults})
    return {
        "faults": len(faults),
        "runs": len(trials),
        "runs_bit_equal": sum(not one["problems"] for one in trials),
        "by_processes": dict(Counter(str(f["processes"]) for f in faults)),
        "by_kind_and_phase": {
            kind: {p: sum(f["kind"] == kind and f["phase"] == p for f in faults) for p in kinds} for kind in KINDS
        },
        "problems": [problem for one in trials for problem in one["problems"]],
        "seconds": round(seconds),
    }


def main() -> int:
    """Run the trials; 1 if any of them shows a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=240, help="at least so many, that have taken effect")
    parser.add_argument("--two", type=float, default=0.25, help="share of the runs on two processes")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from das3.cli import main as das3

    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="das3-chaos-") as folder:
        root = Path(folder)
        write_world(root)
        assert das3([*begin(root, root / "imports"), "--quiet"]) == 0  # everything that forks need is imported then
        wholes = {1: whole_run(root, 1)} | ({2: whole_run(root, 2)} if given.two else {})
        done = [root / f"trials-{job}.json" for job in range(given.jobs)]
        children = [os.fork() or _work(root, job, given, wholes, done[job]) for job in range(given.jobs)]
        while children:
            time.sleep(1)
            children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
            trials = [json.loads(line) for file in done if file.exists() for line in file.read_text().splitlines()]
            found = summary_of(trials, time.monotonic() - began)
            if given.out:
                given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 1 if found["problems"] or found["faults"] < given.faults else 0


def _work(root: Path, job: int, given: argparse.Namespace, wholes: dict[int, object], done: Path) -> int:
    """A fork that does its share of the trials."""
    rng, count, number = random.Random(f"{given.seed} {job}"), 0, job
    try:
        while count < -(-given.faults // given.jobs):
            world = 2 if rng.random() < given.two else 1
            one = trial(root, number, KINDS[number % len(KINDS)], world, rng, wholes[world])
            count += sum(fault["hit"] for fault in one["faults"])
            number += given.jobs
            with done.open("a") as file:
                file.write(json.dumps(one) + "\n")
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
