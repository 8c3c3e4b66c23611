"""Labelling and measuring, image by image, from files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from das3.data.open import open_images, open_labelled
from das3.evaluation.evaluate import evaluate
from das3.evaluation.label_files import label_files
from das3.segmenter import Segmenter
from speed_rows.bench import Bench, network, upsampled, write_images

SIZES = {"jpeg": (512, 1024), "png": (1024, 2048)}
IMAGES = 24
WAIT = 0.1


class Elsewhere(nn.Module):
    """Takes a tenth of a second for an image, and nothing of the processor: a network on a device that is not here."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(WAIT)
        return self.classifier(images[..., ::32, ::32])  # type: ignore[no-any-return]


def inference_rows(bench: Bench, folder: Path) -> None:
    """Seconds of the clock on a CPU, too: what is asked is how long the network waits."""
    kinds = {title: kind for title, (kind, *_) in bench.setting.networks.items()}
    for title, kind in (kinds if bench.on_gpu else {"elsewhere": ""}).items():
        for form, size in SIZES.items():
            names = {what: f"{what}/{title}/{form}" for what in ("evaluate", "predict")}
            if not any(map(bench.wants, names.values())):
                continue
            segmenter = (network(kind) if kind else Segmenter(Elsewhere())).to(bench.fabric.device).eval()
            images, labels = folder / f"inference-{form}", folder / f"inference-{form}-labels"
            if not images.exists():
                write_images(images, form, size, IMAGES)
                write_labels(labels, size, segmenter.num_classes)
            shown = segmenter.preprocess(torch.rand(1, 3, *size, device=bench.fabric.device))

            @torch.no_grad()
            def bare(segmenter: Segmenter = segmenter, shown: Tensor = shown) -> None:
                for _ in range(IMAGES):
                    if bench.on_gpu:
                        upsampled(bench.fabric, segmenter.model, shown).argmax(dim=1).cpu()
                    else:
                        segmenter.model(shown)

            def measured(segmenter: Segmenter = segmenter, images: Path = images, labels: Path = labels) -> None:
                with bench.fabric.autocast():
                    evaluate(segmenter, open_labelled(images, labels, num_classes=segmenter.num_classes))

            def labelled(segmenter: Segmenter = segmenter, images: Path = images) -> None:
                with bench.fabric.autocast(), tempfile.TemporaryDirectory(prefix="das3-speed-") as out:
                    label_files(segmenter, open_images(images), range(IMAGES), Path(out))

            for what, work in {"evaluate": measured, "predict": labelled}.items():
                if not bench.wants(names[what]):
                    continue
                times = [[1e3 * seconds(one) / IMAGES for one in (work, bare)] for _ in range(4)][1:]
                bench.add(names[what], *map(list, zip(*times, strict=True)), unit="ms")


def seconds(work: Callable[[], None]) -> float:
    """Of the clock; both sides end with what is on the host."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_labels(folder: Path, size: tuple[int, int], classes: int) -> None:
    folder.mkdir()
    for i in range(IMAGES):
        blocks = np.random.default_rng(i).integers(0, classes, (size[0] // 32, size[1] // 32))
        Image.fromarray(np.kron(blocks, np.ones((32, 32))).astype(np.uint8)).save(folder / f"{i:04d}.png")
