"""Steps and predictions in processes that keep the memory that they free, and in usual ones."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F

from das3.heap import keep_freed_memory
from das3.losses import entropy_of_probs
from das3.segmenter import main_logits
from speed_rows.bench import CLASSES, Bench, network

SIZES = {"128x192": (8, (128, 192)), "512x1024": (4, (512, 1024))}
"""Batch and size of the images."""
WORKS = ("step", "predictions")
STEPS, PROCESSES = 8, 3


def heap_rows(bench: Bench, folder: Path) -> None:
    for work, title in product(WORKS, SIZES) if not bench.on_gpu else ():
        names = [f"{what}/{work}/{title}" for what in ("heap", "heap-memory")]
        if any(map(bench.wants, names)):
            pairs = [[measured(how, work, title) for how in ("kept", "usual")] for _ in range(PROCESSES)]
            for name, unit in zip(names, ("ms", "mib"), strict=True):
                bench.add(name, [ours[unit] for ours, _ in pairs], [usual[unit] for _, usual in pairs], unit=unit)


def measured(how: str, work: str, title: str) -> dict[str, float]:
    """Milliseconds of a step, and mebibytes of memory of a process of its own."""
    command = [sys.executable, "-m", "speed_rows.heap", how, work, title]
    said = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def main() -> None:
    how, work, title = sys.argv[1:]
    if how == "kept":
        keep_freed_memory()
    torch.set_num_threads(1)
    batch, size = SIZES[title]
    model = network("small").model.train(work == "step")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    images, labels = torch.rand(batch, 3, *size), torch.randint(CLASSES, (batch, *size))
    times = []
    for _ in range(STEPS):
        began = time.process_time()
        with torch.set_grad_enabled(work == "step"):
            logits = F.interpolate(main_logits(model(images)), size=size, mode="bilinear", align_corners=False)
            if work == "step":
                F.cross_entropy(logits, labels).backward()
                optimizer.step()
                optimizer.zero_grad()
            else:
                entropy_of_probs(logits.softmax(dim=1)).mean()
        times.append(1e3 * (time.process_time() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"ms": statistics.median(times[2:]), "mib": peak}))


if __name__ == "__main__":
    main()
