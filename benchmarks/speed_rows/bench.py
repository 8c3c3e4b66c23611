"""The device, the clock, the rows, and the networks and images that they are measured with."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from das3.data.images import Images
from das3.data.samples import Sample, Samples
from das3.data.shared_cache import Room
from das3.data.streets import Streets
from das3.ema import frozen_copy
from das3.models import load_segmenter
from das3.recipe import Recipe
from das3.registry import find_stage
from das3.segmenter import Segmenter, main_logits
from das3.stages import StageContext
from das3.training.loop import make_fabric

STAGES = ("align", "selftrain", "propagate")
CLASSES = 19


@dataclass(frozen=True)
class Setting:
    """What is measured on a kind of device."""

    networks: dict[str, tuple[str, int, tuple[int, int]]]  # name → network, batch size, crop
    blocks: dict[str, int]  # name → how many; the shorter the steps, the less certain one is
    sizes: dict[str, tuple[int, int]]  # of files
    images: int
    labelled: int  # images of a label pass, so many that its begin and end count for little
    prepared: tuple[int, ...]  # numbers of images that a stage is prepared for
    run: int  # images of a whole run that is timed
    block: int  # steps between two looks at the clock
    lead: int  # blocks that are not counted after bare steps, in which is used up what was loaded meanwhile


CPU = Setting(
    networks={"small": ("small", 8, (128, 192)), "segformer": ("segformer", 8, (128, 192))},
    blocks={"small": 45, "segformer": 15},
    sizes={"jpeg": (128, 192), "png": (128, 192)},
    images=16,
    labelled=16,
    prepared=(50, 200),
    run=50,
    block=1,
    lead=0,
)
GPU = Setting(
    networks={
        "segformer": ("segformer", 8, (512, 512)),
        "deeplabv2-b4": ("deeplabv2", 4, (512, 1024)),
        "deeplabv2-b2": ("deeplabv2", 2, (512, 1024)),
        "small": ("small", 8, (512, 512)),
    },
    blocks={"small": 5, "segformer": 16, "deeplabv2-b2": 3, "deeplabv2-b4": 2},
    sizes={"jpeg": (512, 1024), "png": (1024, 2048)},
    images=32,
    labelled=256,
    prepared=(500,),
    run=500,
    block=10,
    lead=2,  # 20 steps: 8 processes are at most 16 batches ahead
)


class Bench:
    """The device, the clock and the rows."""

    def __init__(self, device: str, only: Sequence[str], keep: Callable[[dict[str, Any]], None]) -> None:
        self.fabric = make_fabric(device)
        self.on_gpu = self.fabric.device.type == "cuda"
        self.device = torch.cuda.get_device_name() if self.on_gpu else "cpu"
        self.setting = GPU if self.on_gpu else CPU
        self.only, self.keep = tuple(only) or ("",), keep

    def wants(self, name: str) -> bool:
        return name.startswith(self.only)

    def clock(self) -> float:
        if not self.on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], Any]) -> float:
        began = self.clock()
        work()
        return self.clock() - began

    def add(self, name: str, ours: Sequence[float], bare: Sequence[float], *, default: bool = True, unit: str) -> None:
        ratios = [one / other for one, other in zip(ours, bare, strict=True)]
        low, high = np.quantile(ratios, [0.1, 0.9])
        row = {
            "name": name,
            "device": self.device,
            "default": default,
            "ratio": round(statistics.median(ratios), 3),
            "p10": round(float(low), 3),
            "p90": round(float(high), 3),
            f"das3_{unit}": round(statistics.median(ours), 3),
            f"bare_{unit}": round(statistics.median(bare), 3),
        }
        print(json.dumps(row), flush=True)
        self.keep(row)


def network(kind: str) -> Segmenter:
    """With random weights: what is counted does not depend on them."""
    torch.manual_seed(0)
    if kind == "segformer":
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        return Segmenter(SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES)))
    names = {"small": "das3:small", "deeplabv2": "das3:deeplabv2_resnet101"}
    return load_segmenter(names[kind], num_classes=CLASSES)


def write_images(folder: Path, form: str, size: tuple[int, int], number: int) -> None:
    """Rendered streets, with as much noise as a camera's pictures have."""
    folder.mkdir(parents=True, exist_ok=True)
    streets = Streets("target", min(number, 16), size=(128, 192))

    def write(i: int) -> None:
        picture = Image.fromarray(streets.image(i % 16)).resize(size[::-1], Image.Resampling.BICUBIC)
        noise = np.random.default_rng(i).normal(0, 3, (*size, 3))
        array = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{i:04d}.{'jpg' if form == 'jpeg' else 'png'}", quality=92)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(number)))


class Ready(Samples):
    """Samples that were made before, over and over."""

    def __init__(self, samples: Samples, number: int) -> None:
        self.made = [samples[n] for n in range(number)]

    def __getitem__(self, n: int) -> Sample:
        return self.made[n % len(self.made)]


class BareStep:
    """A supervised step of a copy of the network on one batch that lies on the device."""

    def __init__(self, bench: Bench, segmenter: Segmenter, batch: int, crop: tuple[int, int]) -> None:
        self.fabric, self.network = bench.fabric, copy.deepcopy(segmenter.model).train()
        self.network.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-6)
        height, width = crop
        self.images = segmenter.preprocess(torch.rand(batch, 3, height, width, device=bench.fabric.device))
        self.labels = torch.randint(CLASSES, (batch, height, width), device=bench.fabric.device)

    def __call__(self) -> None:
        loss = F.cross_entropy(upsampled(self.fabric, self.network, self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class OtherProcess:
    """Bare steps of a process of its own, which asks for memory as any process does: das3's keeps what it frees."""

    def __init__(self, kind: str, batch: int, crop: tuple[int, int]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, others = spawn.Pipe()
        with patch.dict(os.environ, {"GLIBC_TUNABLES": ""}):  # set by the user, so it stays: see das3.heap
            self.process = spawn.Process(target=_steps, args=(others, kind, batch, crop), daemon=True)
            self.process.start()

    def seconds(self, steps: int) -> float:
        """Of the child's processor."""
        self.pipe.send(steps)
        return float(self.pipe.recv())


def _steps(pipe: Any, kind: str, batch: int, crop: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    bench = Bench("cpu", [], lambda row: None)
    bare = BareStep(bench, network(kind), batch, crop)
    with suppress(EOFError):  # the other end is gone
        while steps := pipe.recv():
            pipe.send(bench.seconds(lambda steps=steps: [bare() for _ in range(steps)]))


class ReleasedStep(BareStep):
    """The same with a teacher that labels the clean images at every step: easy ones, and two hard ones that are mixed.

    Such is stage 3 in the released code of ATP. The mixing itself is left out.
    """

    def __init__(self, bench: Bench, segmenter: Segmenter, batch: int, crop: tuple[int, int]) -> None:
        super().__init__(bench, segmenter, batch, crop)
        self.teacher = frozen_copy(segmenter.model)
        self.clean = self.images.repeat(2, 1, 1, 1)[: batch + batch // 2]

    def __call__(self) -> None:
        with torch.no_grad():
            labels = upsampled(self.fabric, self.teacher, self.clean).argmax(dim=1)
        self.labels = labels[: len(self.images)]
        super().__call__()


def upsampled(fabric: Any, network_: nn.Module, images: Tensor) -> Tensor:
    with fabric.autocast():
        logits = main_logits(network_(images))
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)


@contextmanager
def prepared(
    bench: Bench,
    segmenter: Segmenter,
    images: Images,
    name: str,
    batch: int,
    crop: tuple[int, int],
    **options: Any,
) -> Iterator[Any]:
    """A stage with its samples and its context."""
    with tempfile.TemporaryDirectory(prefix="das3-speed-") as folder:
        kind = find_stage(name)
        stage = kind(replace(kind.Options(), **options))
        context = StageContext(bench.fabric, segmenter, images, Path(folder), (0, 0), crop, batch)
        yield stage, stage.prepare(context), context


def resized(images: Images, recipe: Recipe) -> Images:
    """As a run sees them."""
    return images.resized(None, room=Room(int(recipe.cache_gib * 2**30)))
