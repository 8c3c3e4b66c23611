"""GPU memory of a recipe with DeepLabV2-ResNet101 at 1024×512 and 2048×1024, into memory.json.

    python benchmarks/memory.py

On a GPU every stage takes its real steps and the device counts. Without one, the same function computes it from what
autograd saves at smaller crops (about 320×160, see `das3.training.cost_estimate`) and the rows say so. The work of a
step is counted
from the network's operations. `--check` prints the rows and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from das3.data.open import open_images
from das3.models import load_segmenter
from das3.recipe import Recipe, load_recipe, recipe_from
from das3.training.cost_estimate import stage_cost
from das3.training.loop import make_fabric

NETWORK = "das3:deeplabv2_resnet101"
SIZES = ((512, 1024), (1024, 2048))  # height, width
OUT = Path(__file__).with_name("memory.json")


class Noise:
    """Two images of a size."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> np.ndarray:
        coarse = np.random.default_rng(i).integers(0, 256, (self.size[0] // 32, self.size[1] // 32, 3), np.uint8)
        return coarse.repeat(32, axis=0).repeat(32, axis=1)


def step_tflop(size: tuple[int, int], batch_size: int, classes: int) -> float:
    """Forward and backward, without computing anything."""
    with torch.device("meta"):
        network = load_segmenter(NETWORK, num_classes=classes).model.to("meta")
        images = torch.empty(batch_size, 3, *size)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / 1e12


def rows(recipe: Recipe, name: str) -> list[dict[str, Any]]:
    """A row per size and stage."""
    classes = recipe.num_classes or 19
    segmenter = load_segmenter(NETWORK, num_classes=classes)
    fabric = make_fabric("auto", recipe.precision)
    segmenter.to(fabric.device)
    on_gpu = fabric.device.type == "cuda"
    version = commit()
    found = []
    for size in SIZES:
        shrink = 1.0 if on_gpu else 160 / size[0]
        sized = replace(recipe, crop=size, workers=0)
        work = step_tflop(size, recipe.batch_size, classes)
        for stage in recipe.stages:
            cost = stage_cost(sized, stage, segmenter, open_images(Noise(size)), fabric, shrink)
            row = {
                "recipe": name,
                "size": f"{size[1]}x{size[0]}",
                "stage": stage,
                "batch_size": recipe.batch_size,
                "precision": recipe.precision,
                "memory_gib": round(cost.memory / 2**30, 2),
                "kind": "measured" if cost.measured else "computed",
                "device": torch.cuda.get_device_name() if on_gpu else "none",
                "step_tflop": round(work, 2),
                "step_seconds": round(cost.step_seconds, 3) if on_gpu else None,
                "commit": version,
            }
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="gta5-cityscapes")
    parser.add_argument("--check", action="store_true", help="print only")
    given = parser.parse_args()
    found = rows(recipe_from(load_recipe(given.recipe)), given.recipe)
    if not given.check:
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
