"""Shifts with CamVid's labelled day as their target: `python camvid_dev.py DATA OUT` writes OUT/NAME/NAME.yaml.

Real streets to choose defaults on without any label of a target that results are reported on: two sequences are the
source, the third, changed by a camera of `render.py`, is target and test (its frames in turn). "dark" has CamVid's 11
classes and lacks light, "haze" has IDD-Lite's 7 and is hazy. "back" is nothing made: IDD-Lite's training images are the
source, all of CamVid's day target and test.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from render import FOLDERS, Camera

SHIFTS = {
    "dark": (Camera(0.45, (1.05, 0.9, 0.95), noise=0.03, blur=0.6), None),
    "haze": (Camera(0.8, (1.1, 1.0, 0.85), noise=0.03, blur=0.6, haze=0.45), "as_idd_lite"),
}
TARGET_SEQUENCE = "Seq05VD"

SUITE = (
    FOLDERS
    + """\
model_args: {width: 32}
size: 144
source_options: {steps: 500, batch_size: 8, lr: 2.0e-3, color: 0.2}
oracle_options: {steps: 300, batch_size: 8, lr: 1.0e-3, color: 0.2}
"""
)


def write(name: str, day: Path, folder: Path) -> None:
    """Make one shift of CamVid's day, `classes.json` beside it."""
    camera, key = SHIFTS[name]
    classes, lookup = _classes(day, key)
    _make_folders(folder)
    seen = 0
    for number, path in enumerate(sorted((day / "images").glob("*.jpg"))):
        part, label = "source", day / "labels" / f"{path.stem}.png"
        if path.stem.startswith(TARGET_SEQUENCE):
            part, seen = ("target", "test")[seen % 2], seen + 1
            rng = np.random.default_rng(number)
            image = camera.take(np.asarray(Image.open(path), float), rng)
            Image.fromarray(image).save(folder / part / "images" / f"{path.stem}.png")
        else:
            shutil.copyfile(path, folder / part / "images" / path.name)
        Image.fromarray(lookup[np.asarray(Image.open(label))]).save(folder / part / "labels" / f"{path.stem}.png")
    _finish(name, folder, classes)


def write_back(data: Path, folder: Path) -> None:
    """IDD-Lite → CamVid by day, in IDD-Lite's classes."""
    day, train = data / "camvid" / "day", data / "idd-lite" / "train"
    classes, lookup = _classes(day, "as_idd_lite")
    _make_folders(folder)
    for kind in ("images", "labels"):
        shutil.copytree(train / kind, folder / "source" / kind, dirs_exist_ok=True)
    for number, path in enumerate(sorted((day / "images").glob("*.jpg"))):
        part = ("target", "test")[number % 2]
        shutil.copyfile(path, folder / part / "images" / path.name)
        label = lookup[np.asarray(Image.open(day / "labels" / f"{path.stem}.png"))]
        Image.fromarray(label).save(folder / part / "labels" / f"{path.stem}.png")
    _finish("back", folder, classes)


def _classes(day: Path, key: str | None) -> tuple[list[str], NDArray[np.uint8]]:
    """Names, and CamVid's ids → those of the shift."""
    table = json.loads((day.parent / "classes.json").read_text())
    lookup = np.arange(256, dtype=np.uint8)
    if not key:
        return table["classes"], lookup
    for old, new in table[key]["map"].items():
        lookup[int(old)] = new
    return json.loads((day.parents[1] / "idd-lite" / "classes.json").read_text())["classes"], lookup


def _make_folders(folder: Path) -> None:
    for part in ("source", "target", "test"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)


def _finish(name: str, folder: Path, classes: list[str]) -> None:
    (folder / "classes.json").write_text(json.dumps({"classes": classes}) + "\n")
    (folder / f"{name}.yaml").write_text(SUITE)


if __name__ == "__main__":
    for name in SHIFTS:
        write(name, Path(sys.argv[1]) / "camvid" / "day", Path(sys.argv[2]) / name)
        print(f"{sys.argv[2]}/{name}/{name}.yaml")
    write_back(Path(sys.argv[1]), Path(sys.argv[2]) / "back")
    print(f"{sys.argv[2]}/back/back.yaml")
