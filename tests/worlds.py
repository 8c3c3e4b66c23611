"""Small labelled worlds on disk for tests of the command line and of whole runs."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {
    "source": [(200, 200, 255), (90, 90, 90), (200, 30, 30)],
    "target": [(90, 80, 120), (60, 50, 30), (150, 60, 20)],
}


def write_world(folder: Path, domain: str, count: int = 8, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    """Sky, road and a box: images/, labels/ and classes.json in `folder`."""
    rng = np.random.default_rng([seed, len(domain)])
    height, width = size
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        label = np.zeros(size, np.uint8)
        label[rng.integers(height // 4, height // 2) :] = 1
        x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
        label[y : y + height // 3, x : x + width // 4] = 2
        image = np.array(COLORS[domain])[label] + rng.normal(0, 15, (*size, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": ["sky", "road", "box"]}))
    return folder
