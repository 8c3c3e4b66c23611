"""`das3 predict` on one image of 20,000 × 20,000 pixels: time, memory and seams, into results/large_image.json.

    nice -n 15 python benchmarks/large_image.py --work /tmp/das3-large

The image is a mosaic of rendered streets, each enlarged to 1,000 × 1,000 pixels, as a tiled TIFF; the network is
das3:small, trained for a minute. The real command labels it. Parts of 4,000 × 4,000 pixels are predicted again: in
tiles of another side, whose seams lie elsewhere, and whole. The row says seconds, the most memory that the command
held, and the share of the pixels of these parts that are labelled otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from das3 import __version__
from das3.benchmark.suites import streets
from das3.dataclass_options import options_from
from das3.evaluation.predict import predict_labels
from das3.models import load_segmenter
from das3.training.supervised import SourceRecipe, train_supervised

FILE = Path(__file__).with_name("results") / "large_image.json"
OTHER_TILE = 1440
PART = 4000
PARTS = 3
MARGIN = 256  # at the sides of a part, where its prediction sees padding in place of the image


def train(folder: Path) -> None:
    """A network whose labels follow what is in the image, as those of random weights do not."""
    suite = streets()
    network = load_segmenter(suite.network, num_classes=10, model_args={"width": 16})
    options = {**suite.source_options, "steps": 150, "device": "cpu", "workers": 0}
    train_supervised(network, suite.source(), options_from(SourceRecipe, {**options, "out": str(folder)}), quiet=True)


def write_image(path: Path, side: int) -> None:
    """Tiles go to the file one after the other: the whole would be 1.2 GB."""
    images, cell, tile = streets().target().images, min(1000, side), 256
    pictures = [
        np.asarray(Image.fromarray(images[i]).resize((cell, cell), Image.Resampling.BICUBIC)) for i in range(24)
    ]
    count = -(-side // cell)
    chosen = np.random.default_rng(0).integers(0, len(pictures), (count, count))

    def row(y: int) -> np.ndarray:
        return np.concatenate([pictures[i][y % cell] for i in chosen[min(y, side - 1) // cell]])

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, side, tile):
            band = np.stack([row(y) for y in range(top, top + tile)])
            band = np.pad(band, ((0, 0), (0, tile), (0, 0)))
            for left in range(0, side, tile):
                yield band[:, left : left + tile]

    kind = {"shape": (side, side, 3), "dtype": np.uint8, "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(path, tiles(), tile=(tile, tile), metadata=None, **kind)


def predict(model: Path, image: Path, out: Path) -> dict[str, Any]:
    """The command in a process of its own."""
    given = ["--model", model, "--images", image, "--out", out, "--device", "cpu", "--quiet"]
    begun = time.monotonic()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "das3", "predict", *map(str, given)])
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"das3 predict ended with {os.waitstatus_to_exitcode(status)}")
    seconds = {"seconds": round(time.monotonic() - begun), "cpu_seconds": round(used.ru_utime + used.ru_stime)}
    return {**seconds, "peak_gib": round(used.ru_maxrss / 2**20, 2)}


def seams(model: Path, image: Path, labels: Path) -> dict[str, Any]:
    """Shares of the pixels of some parts that are labelled otherwise in other tiles, and whole."""
    network, rng = load_segmenter(model), np.random.default_rng(1)
    with Image.open(labels) as picture:
        found = np.asarray(picture)
    part = min(PART, len(found))
    inner = slice(MARGIN, part - MARGIN)
    differ: dict[str, list[float]] = {"other_tiles_differ_percent": [], "whole_differs_percent": []}
    for _ in range(PARTS if part < len(found) else 1):
        top, left = (int(rng.integers((len(found) - part) // 32 + 1)) * 32 for _ in range(2))
        pixels = tifffile.imread(image)[top : top + part, left : left + part].copy()
        here = found[top : top + part, left : left + part][inner, inner]
        for name, tile in zip(differ, (OTHER_TILE, part + 32), strict=True):
            other = predict_labels(network, pixels, tile=tile)[inner, inner]
            differ[name].append(100 * float((here != other).mean()))
    shares = {name: [round(share, 4) for share in shares] for name, shares in differ.items()}
    return {"parts": part, **shares, "classes_in_labels": len(np.unique(found))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, the image and the labels")
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    model, image, out = given.work / "model", given.work / f"{given.side}.tif", given.work / f"{given.side}"
    if not (model / "summary.json").exists():
        train(model)
    if not image.exists():
        write_image(image, given.side)
    row = {
        "side": given.side,
        "network": "das3:small, width 16, 10 classes",
        **predict(model, image, out),
        **seams(model, image, out / "labels" / f"{image.stem}.png"),
        "machine": f"CPU, {os.cpu_count()} cores, shared with other work",
        "das3": __version__,
    }
    given.out.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
