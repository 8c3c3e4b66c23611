"""A run of 30,000 steps on tiny images: memory, open files, threads and the time of a step must not grow.

    nice -n 19 python benchmarks/long_run.py --out benchmarks/results/long_run.json

A line is fitted through each from the tenth part of the run on. `growth` is what it rises by until the end, `noise` the
standard deviation around it; it is flat if the growth is below twice the noise, or below 2 % of the mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

PAGE = os.sysconf("SC_PAGE_SIZE")


def watched(samples: list[dict[str, float]]) -> None:
    """Look at this process whenever the run writes a line of its log."""
    from das3.training import run_folder

    add, last = run_folder.Log.add, {"step": 0, "cpu": time.process_time()}

    def watching(self, phase, stage, record, seconds, measured):
        add(self, phase, stage, record, seconds, measured)
        now = time.process_time()
        samples.append(
            {
                "step": record.step,
                "rss_mib": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20,
                "open_files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "step_cpu_ms": 1000 * (now - last["cpu"]) / max(1, record.step - last["step"]),
            }
        )
        last.update(step=record.step, cpu=now)

    run_folder.Log.add = watching


def fitted(steps: np.ndarray, values: np.ndarray) -> dict[str, float | bool]:
    """Line through the values."""
    slope, start = np.polyfit(steps, values, 1)
    growth, noise = slope * (steps[-1] - steps[0]), float(np.std(values - slope * steps - start))
    flat = abs(growth) <= max(2 * noise, 0.02 * abs(values.mean()))
    return {
        "mean": round(float(values.mean()), 3),
        "growth": round(float(growth), 3),
        "noise": round(noise, 3),
        "flat": bool(flat),
    }


def main() -> int:
    """Run, and write the result; 1 if something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from das3 import adapt

    torch.set_num_threads(1)
    samples: list[dict[str, float]] = []
    watched(samples)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        (Path(folder) / "images").mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(Path(folder, "images", f"{i}.png"))
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        options = {"steps": given.steps, "bn_mode": "batch", "color_transforms": False, "lr": 1e-5}
        adapt(
            *(network, Path(folder, "images")),
            **{"out": Path(folder, "run"), "stages": ["selftrain"], "batch_size": 1, "crop": (8, 8), "device": "cpu"},
            **{"guard": "off", "report": False, "log_every": max(1, given.steps // 300), "checkpoint_every": 1000},
            **{"quiet": True, "selftrain": {**options, "upscale": False}},
        )
    kept = samples[len(samples) // 10 :]
    steps = np.array([s["step"] for s in kept], float)
    names = ("rss_mib", "open_files", "threads", "step_cpu_ms")
    found = {name: fitted(steps, np.array([s[name] for s in kept])) for name in names}
    result = {"steps": given.steps, **found, "seconds": round(time.monotonic() - began), "machine": platform.machine()}
    result["curve"] = [{k: round(v, 2) for k, v in s.items()} for s in samples[:: max(1, len(samples) // 30)]]
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(found[name]["flat"] for name in names) else 1


if __name__ == "__main__":
    raise SystemExit(main())
