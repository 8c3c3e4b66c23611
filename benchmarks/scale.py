"""What a run costs before and beside its steps when there are very many images, into results/scale.json.

    python benchmarks/scale.py --images 100000 --work /tmp/das3-scale

A set of small pictures (48×64, JPEG) is written into the folder, or continued where an earlier call was interrupted.
Then a process of its own adapts das3:small to it, a few steps in stages 1 and 2, is killed amid stage 2, and
resumed. The row says seconds until the first step (of a clock, and of the processor, which other work on the machine
changes little), seconds between the stages, the most memory that the process held, files and bytes in the run folder,
and seconds from the resume until the next step. Python's byte code is cached, as after any first run (no
PYTHONDONTWRITEBYTECODE): compiling that of PyTorch takes 7 s.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILE = Path(__file__).with_name("results") / "scale.json"
PER_FOLDER = 1000
STEPS = 12


def write_set(folder: Path, count: int) -> None:
    """Files are renamed when whole, and those that are there are kept."""
    noise = np.random.default_rng(0).normal(0, 12, (64, 80, 3))

    def write(i: int) -> None:
        path = folder / f"{i // PER_FOLDER:03d}" / f"{i:06d}.jpg"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        colors = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = np.asarray(Image.fromarray(colors).resize((64, 48), Image.Resampling.NEAREST))
        top, left = rng.integers(0, 16, 2)
        image = (image + noise[top : top + 48, left : left + 64]).clip(0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=90)
        part = path.with_suffix(".part")
        part.write_bytes(data.getvalue())
        part.replace(path)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(write, range(count), chunksize=256):
            pass


def run(work: Path, images: Path, resume: bool) -> None:
    """What the measured process does; it prints a line with its seconds at every step."""
    began = time.perf_counter()
    import torch

    from das3.api import adapt
    from das3.models import load_segmenter
    from das3.training.progress import Display

    def step(self: Any, name: str, record: Any) -> None:
        seconds = time.perf_counter() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seen = {"seconds": seconds, "cpu": time.process_time(), "mib": memory}
        print(json.dumps({"stage": name, "step": record.step, **seen}), flush=True)

    Display.step = step  # type: ignore[method-assign]
    torch.manual_seed(0)
    options = {stage: {"steps": STEPS} for stage in ("align", "selftrain", "propagate")}
    # Stage 3 labels all images in any case, in time that grows with their number.
    stages = ["align", "selftrain"]
    adapt(
        *(load_segmenter("das3:small", num_classes=4).model, images),
        **{"out": work / "run", "resume": resume, "stages": stages, "log_every": 1, "checkpoint_every": 2},
        **{"device": "cpu", "quiet": True, "report": False, "guard": "off", "num_classes": 4},
        **{stage: options[stage] for stage in stages},
    )


def watched(work: Path, images: Path, *, resume: bool, until: tuple[str, int] | None) -> list[dict[str, Any]]:
    """Lines of a run, killed when it has reached a step."""
    command = [sys.executable, __file__, "--run", *(["--resume"] if resume else []), "--work", str(work)]
    process = subprocess.Popen(
        [*command, "--set", str(images)], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if until and (lines[-1]["stage"], lines[-1]["step"]) == until:
            process.send_signal(signal.SIGKILL)
    process.wait()
    return lines


def measure(work: Path, count: int) -> dict[str, Any]:
    images = work / f"images-{count}"
    write_set(images, count)
    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
    lines = watched(work, images, resume=False, until=("selftrain", STEPS // 2))
    first = {stage: next(line for line in lines if line["stage"] == stage) for stage in ("align", "selftrain")}
    last_of_align = [line for line in lines if line["stage"] == "align"][-1]
    sizes = [path.stat().st_size for path in (work / "run").rglob("*") if path.is_file()]
    resumed = watched(work, images, resume=True, until=None)
    assert resumed[-1]["step"] == STEPS
    return {
        "name": f"scale/{count}",
        "device": "cpu",
        "images": count,
        "seconds_to_first_step": round(first["align"]["seconds"], 1),
        "cpu_seconds_to_first_step": round(first["align"]["cpu"], 1),
        "seconds_between_stages": round(first["selftrain"]["seconds"] - last_of_align["seconds"], 1),
        "peak_mib": round(max(line["mib"] for line in lines)),
        "files": len(sizes),
        "mib_on_disk": round(sum(sizes) / 2**20, 1),
        "seconds_to_first_step_after_resume": round(resumed[0]["seconds"], 1),
        "cpu_seconds_to_first_step_after_resume": round(resumed[0]["cpu"], 1),
        "peak_mib_after_resume": round(max(line["mib"] for line in resumed)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="2000,100000", help="numbers of images, separated by commas")
    parser.add_argument("--work", type=Path, required=True, help="folder for the pictures and the run")
    parser.add_argument("--check", action="store_true", help="print only")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--set", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.work, given.set, given.resume)
        return
    rows = {row["name"]: row for row in (json.loads(FILE.read_text()) if FILE.exists() else [])}
    for count in map(int, given.images.split(",")):
        row = measure(given.work, count)
        print(json.dumps(row), flush=True)
        rows[row["name"]] = row
        if not given.check:
            FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows.values()) + "\n]\n")


if __name__ == "__main__":
    main()
