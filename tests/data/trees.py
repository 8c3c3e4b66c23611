"""Small trees in the exact layouts of the published data sets.

Every maker writes a few images of 24×16 pixels with labels in which every id of the data set occurs. What the ids mean
is stated apart, in `test_published.py`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 16, 24
CITIES = ("aachen", "zurich")


def pixels(ids: Iterable[int], dtype: str = "u1") -> np.ndarray:
    """H×W map in which all ids occur, in rows of blocks."""
    values = np.resize(np.array(list(ids), dtype), (HEIGHT // 2) * (WIDTH // 2))
    return np.kron(values.reshape(HEIGHT // 2, WIDTH // 2), np.ones((2, 2), dtype)).astype(dtype)


def image(path: Path, seed: int = 0) -> Path:
    """A picture, JPEG or PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(path)
    return path


def label(path: Path, values: np.ndarray, *, palette: bool = False) -> Path:
    """An id map, as grey or palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    picture.save(path)
    return path


def png_16_bit_rgb(values: np.ndarray) -> bytes:
    """A PNG after the specification, rows filtered in turn by none, Sub and Up: Pillow can't write this mode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    raw = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, width * 6)
    rows = []
    for y, row in enumerate(raw):
        left = np.concatenate([np.zeros(6, np.uint8), row[:-6]])
        above = raw[y - 1] if y else np.zeros_like(row)
        rows.append(bytes([y % 3]) + (row - (np.zeros_like(row), left, above)[y % 3]).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def polygons(path: Path, shapes: Iterable[tuple[str, list[tuple[float, float]]]], **extra: object) -> Path:
    """A Cityscapes-style polygon file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [{"label": name, "polygon": points, **extra} for name, points in shapes]
    path.write_text(json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}))
    return path


def cityscapes(root: Path, ending: str = "_leftImg8bit", folder: str = "leftImg8bit") -> None:
    """leftImg8bit and gtFine with all that the official archives hold; test labels are dummies."""
    for split in ("train", "val", "test"):
        for city in CITIES:
            for frame in range(2):
                stem = f"{city}/{city}_{frame:06d}_000019"
                image(root / folder / split / f"{stem}{ending}.png", frame)
                ids = range(34) if split != "test" else (0, 1, 2, 3)
                values = pixels(ids)
                label(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", values)
                label(root / "gtFine" / split / f"{stem}_gtFine_instanceIds.png", values.astype(np.uint16) * 1000)
                image(root / "gtFine" / split / f"{stem}_gtFine_color.png")
                polygons(root / "gtFine" / split / f"{stem}_gtFine_polygons.json", [])


def foggy_cityscapes(root: Path) -> None:
    """Three densities of every image, and Cityscapes' labels."""
    for beta in ("0.005", "0.01", "0.02"):
        cityscapes(root, f"_leftImg8bit_foggy_beta_{beta}", "leftImg8bit_foggyDBF")


def gta5(root: Path) -> None:
    """Numbered images, palette labels, and the two images whose labels have another size."""
    for number in (1, 2, 3, 4, 15188, 17705):
        image(root / f"images/{number:05d}.png", number)
        values = pixels(range(35))
        label(root / f"labels/{number:05d}.png", values[:-2] if number > 9 else values, palette=True)


def synthia(root: Path) -> None:
    """16-bit RGB labels: class, instance, nothing."""
    for number in range(3):
        image(root / f"RAND_CITYSCAPES/RGB/{number:07d}.png", number)
        values = pixels(range(23), "u2")
        instances = np.random.default_rng(number).integers(0, 65536, values.shape).astype(np.uint16)
        path = root / f"RAND_CITYSCAPES/GT/LABELS/{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_16_bit_rgb(np.dstack([values, instances, np.zeros_like(values)])))
        image(root / f"RAND_CITYSCAPES/GT/COLOR/{number:07d}.png")


def acdc(root: Path) -> None:
    """Four conditions, references in clear weather, labels of train and val."""
    for condition in ("fog", "night", "rain", "snow"):
        for split in ("train", "val", "test"):
            stem = f"GOPR0{split}/GOPR0{split}_frame_000001"
            image(root / f"rgb_anon/{condition}/{split}/{stem}_rgb_anon.png")
            image(root / f"rgb_anon/{condition}/{split}_ref/{stem}_rgb_ref_anon.png")
            if split != "test":
                values = pixels(range(34))
                label(root / f"gt/{condition}/{split}/{stem}_gt_labelIds.png", values)
                label(root / f"gt/{condition}/{split}/{stem}_gt_labelTrainIds.png", values)
                label(root / f"gt/{condition}/{split}/{stem}_gt_invIds.png", values)


def dark_zurich(root: Path) -> None:
    """Three times of day to train on, labels of the night images of val alone."""
    for where in ("train/day", "train/night", "train/twilight", "val/night", "test/night"):
        image(root / f"rgb_anon/{where}/GOPR0356/GOPR0356_frame_000321_rgb_anon.png")
    image(root / "rgb_anon/val_ref/day/GOPR0356/GOPR0356_frame_000321_rgb_ref_anon.png")
    for kind, ids in (("labelIds", range(34)), ("labelTrainIds", range(19)), ("invIds", (0, 1))):
        label(root / f"gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_{kind}.png", pixels(ids))


def bdd100k(root: Path) -> None:
    """The newer layout."""
    for split in ("train", "val", "test"):
        for name in ("00a0f008-3c67908e", "00a0f008-a315437f"):
            image(root / f"images/10k/{split}/{name}.jpg")
            if split != "test":
                label(root / f"labels/sem_seg/masks/{split}/{name}.png", pixels((*range(19), 255)))


def bdd100k_older(root: Path) -> None:
    """The layout of the first release."""
    for split in ("train", "val", "test"):
        image(root / f"seg/images/{split}/0004a4c0-d4dff0ad.jpg")
        if split != "test":
            label(root / f"seg/labels/{split}/0004a4c0-d4dff0ad_train_id.png", pixels((*range(19), 255)))
            image(root / f"seg/color_labels/{split}/0004a4c0-d4dff0ad_train_color.png")


def crosscity(root: Path) -> None:
    """Four cities, labels of the test images."""
    for city in ("Rio", "Rome", "Taipei", "Tokyo"):
        for number in range(3):
            image(root / city / f"Images/Train/pano_{number:05d}_0_180.png")
        image(root / city / "Images/Test/pano_01234_3_0.png")
        label(root / city / "Labels/Test/pano_01234_3_0_eval.png", pixels((*range(34), 255)))


MAPILLARY_12 = (
    *("animal--bird", "construction--barrier--curb", "construction--barrier--fence", "construction--barrier--wall"),
    *("construction--flat--curb-cut", "construction--flat--road", "construction--flat--sidewalk", "human--person"),
    *(
        "construction--structure--building",
        "human--rider--motorcyclist",
        "marking--crosswalk-zebra",
        "marking--general",
    ),
    *("nature--sky", "nature--terrain", "nature--vegetation", "object--manhole", "object--support--pole"),
    *("object--support--utility-pole", "object--traffic-light", "object--traffic-sign--back"),
    *("object--traffic-sign--front", "object--vehicle--bicycle", "object--vehicle--bus", "object--vehicle--car"),
    *("object--vehicle--caravan", "object--vehicle--motorcycle", "object--vehicle--on-rails", "object--vehicle--truck"),
    "void--unlabeled",
)
MAPILLARY_20 = (
    *("construction--flat--road", "construction--flat--road-shoulder", "human--person--individual"),
    *("marking--continuous--solid", "marking--discrete--crosswalk-zebra", "marking-only--discrete--text"),
    *("object--support--pole-group", "object--traffic-light--cyclists", "object--traffic-sign--direction-front"),
    *("object--traffic-sign--direction-back", "object--vehicle--vehicle-group", "void--unlabeled"),
)


def mapillary(root: Path, newer: bool = False) -> None:
    """Version 1.2, or 2.0 with the labels of both; images are JPEG, labels palette PNG."""
    configs = {"v1.2": MAPILLARY_12, "v2.0": MAPILLARY_20} if newer else {"": MAPILLARY_12}
    for version, names in configs.items():
        root.mkdir(exist_ok=True)
        labels = [{"name": name, "readable": name, "color": [i, i, i]} for i, name in enumerate(names)]
        (root / (f"config_{version}.json" if version else "config.json")).write_text(json.dumps({"labels": labels}))
        for split in ("training", "validation"):
            values = pixels(range(len(names)))
            label(root / split / version / "labels/-0tPAzsvYcsdvfJNShUnXg.png", values, palette=True)
            label(root / split / version / "instances/-0tPAzsvYcsdvfJNShUnXg.png", values)
    for split in ("training", "validation", "testing"):
        image(root / split / "images/-0tPAzsvYcsdvfJNShUnXg.jpg")


IDD_SHAPES = [
    ("road", [(0, 8), (23, 8), (23, 15), (0, 15)]),
    ("sky", [(0.0, 0.0), (23.4, 0.2), (23.0, 4.9), (0.1, 5.2)]),
    ("autorickshaw", [(2, 6), (6, 6), (6, 12), (2, 12)]),
    ("non-drivable fallback", [(10, 8), (14, 8), (14, 10), (10, 10)]),
]


def idd(root: Path) -> None:
    """Polygons only, as published; PNG images of part I and JPEG images of part II."""
    for split in ("train", "val", "test"):
        image(root / f"leftImg8bit/{split}/201/frame0029_leftImg8bit.jpg")
        image(root / f"leftImg8bit/{split}/0/005506_leftImg8bit.png")
        if split != "test":
            polygons(root / f"gtFine/{split}/201/frame0029_gtFine_polygons.json", IDD_SHAPES, deleted=0)
            polygons(root / f"gtFine/{split}/0/005506_gtFine_polygons.json", IDD_SHAPES, deleted=0)


def idd_lite(root: Path) -> None:
    """Small images with labels and what are called instances."""
    for split in ("train", "val", "test"):
        image(root / f"idd20k_lite/leftImg8bit/{split}/0/024541_image.jpg")
        if split != "test":
            for kind in ("label", "inst_label"):
                label(root / f"idd20k_lite/gtFine/{split}/0/024541_{kind}.png", pixels((*range(7), 255)))


CAMVID_STEMS = {
    "train": ("0001TP_006690", "0006R0_f00930", "0016E5_07920"),
    "val": ("0016E5_07959", "0016E5_08159"),
    "test": ("0001TP_008550", "Seq05VD_f00000"),
}


def camvid(root: Path) -> None:
    """The SegNet tutorial's layout."""
    for split, stems in CAMVID_STEMS.items():
        for stem in stems:
            image(root / split / f"{stem}.png")
            label(root / f"{split}annot/{stem}.png", pixels(range(12)))


CAMVID_COLORS = ((128, 128, 128), (0, 128, 64), (0, 0, 64), (192, 0, 64), (192, 128, 192), (192, 0, 192), (0, 0, 0))


def camvid_original(root: Path) -> None:
    """All images in one folder, labels in colours."""
    for stem in sum(CAMVID_STEMS.values(), ()):
        image(root / f"701_StillsRaw_full/{stem}.png")
        colors = np.array(CAMVID_COLORS, np.uint8)[pixels(range(len(CAMVID_COLORS)))]
        label(root / f"LabeledApproved_full/{stem}_L.png", colors)


def folders(root: Path) -> None:
    """Two splits and a class table."""
    for split in ("day", "dusk"):
        for name in ("a", "b"):
            image(root / split / f"images/{name}.jpg")
            label(root / split / f"labels/{name}.png", pixels((0, 1, 2, 255)))
    (root / "classes.json").write_text('{"classes": ["road", "car", "sky"], "ignore_index": 255}')
