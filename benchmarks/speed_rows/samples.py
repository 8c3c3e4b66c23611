"""Samples, stored labels and losses alone."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from das3.data.array_files import read_arrays, write_npz, write_zstd
from das3.data.decoding import opened, to_rgb
from das3.data.mixing import class_mix
from das3.data.open import open_images
from das3.data.samples import Augmentation, Sample
from das3.data.streets import Streets
from das3.pseudo_labels import negative_labels, pack_negatives, positive_labels
from das3.recipe import Recipe
from das3.training.cost_estimate import _Saved
from speed_rows.bench import CLASSES, STAGES, Bench, network, prepared, resized, write_images


def sample_rows(bench: Bench, folder: Path) -> None:
    """What augmentation costs the processes that load images."""
    if not any(bench.wants(f"sample/{kind}") for kind in (*SAMPLES, "mixed")):
        return
    size = (512, 1024)
    write_images(folder / "samples", "jpeg", size, 1)
    images, rng = open_images(folder / "samples"), np.random.default_rng(0)
    image = images[0]
    labels = np.kron(rng.integers(0, CLASSES, (32, 64), np.uint8), np.ones((16, 16), np.uint8))

    def cut(view: Augmentation) -> Sample:
        return view(image, {"labels": labels}, np.random.default_rng(1))

    pair = [cut(Augmentation(size, flip=flip)) for flip in (False, True)]
    works = {kind: partial(cut, Augmentation(size, **options)) for kind, options in SAMPLES.items()}
    works["mixed"] = lambda: class_mix(*pair, np.random.default_rng(2))
    for kind, work in works.items():
        times = [[1e3 * seconds_of_thread(one) for one in (work, lambda: images[0])] for _ in range(13)][1:]
        if bench.wants(f"sample/{kind}"):
            bench.add(f"sample/{kind}", *map(list, zip(*times, strict=True)), unit="ms")


SAMPLES: dict[str, dict[str, Any]] = {"plain": {}, "color": {"color": 0.3}, "blur": {"blur": 1.0}}


def seconds_of_thread(work: Callable[[], Any]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def storage_rows(bench: Bench, folder: Path) -> None:
    """Labels of a rendered street as they are stored, beside .npz files."""
    if not any(bench.wants(f"stored/{what}") for what in ("write", "read", "bytes")):
        return
    classes = torch.from_numpy(Streets("target", 1, size=(512, 1024)).label(0)).long().clamp(max=CLASSES - 1)
    logits = F.avg_pool2d(F.one_hot(classes, CLASSES).permute(2, 0, 1).float()[None], 16) * 6
    logits = logits + 1.2 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    probs = F.interpolate(logits, size=(512, 1024), mode="bilinear").softmax(dim=1)[0]
    arrays = {
        "labels": positive_labels(probs, top_fraction=0.3).numpy(),
        "negatives": pack_negatives(negative_labels(probs)).numpy(),
    }

    def stored(write: Any) -> bytes:
        file = io.BytesIO()
        write(file, arrays)
        return file.getvalue()

    files = [stored(write) for write in (write_zstd, write_npz)]
    works = {
        "write": [partial(stored, write) for write in (write_zstd, write_npz)],
        "read": [partial(read_arrays, file) for file in files],
    }
    for what, (ours, other) in works.items():
        times = [[1e3 * seconds_of_thread(one) for one in (ours, other)] for _ in range(21)][1:]
        if bench.wants(f"stored/{what}"):
            bench.add(f"stored/{what}", *map(list, zip(*times, strict=True)), unit="ms")
    if bench.wants("stored/bytes"):
        bench.add("stored/bytes", [len(files[0]) / 1e3], [len(files[1]) / 1e3], unit="kb")


def by_pillow(images: Any, i: int) -> Any:
    with opened(images.paths[i]) as image:
        return to_rgb(image)


def decoding_rows(bench: Bench, folder: Path) -> None:
    """Files decoded as das3 does, beside Pillow, by one thread and by two, which may keep each other waiting."""
    for form, size in (("jpeg", (512, 1024)), ("png", (1024, 2048))):
        if not any(bench.wants(f"decoded/{form}/{threads}") for threads in (1, 2)):
            continue
        files = folder / f"decoded-{form}"
        write_images(files, form, size, 8)
        images = open_images(files)

        for threads in (1, 2):
            with ThreadPoolExecutor(threads) as pool:
                works = [
                    lambda f=f, pool=pool: list(pool.map(f, range(8)))
                    for f in (images.masked, partial(by_pillow, images))
                ]
                times = [[1e3 / 8 * seconds_of_clock(work) for work in works] for _ in range(9)][1:]
            if bench.wants(f"decoded/{form}/{threads}"):
                bench.add(f"decoded/{form}/{threads}", *map(list, zip(*times, strict=True)), unit="ms")


def waiting_rows(bench: Bench, folder: Path) -> None:
    """Milliseconds per file that another thread of Python is kept from running, das3's decoding beside Pillow's."""
    for form, size in (("jpeg", (512, 1024)), ("png", (1024, 2048))):
        if not bench.wants(f"waiting/{form}"):
            continue
        files = folder / f"waiting-{form}"
        write_images(files, form, size, 4)
        images = open_images(files)

        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # this thread runs as soon as it may
        try:
            times = [
                [1e3 * kept_waiting(work) for work in (images.masked, partial(by_pillow, images))] for _ in range(8)
            ][1:]
        finally:
            sys.setswitchinterval(usual)
        bench.add(f"waiting/{form}", *map(list, zip(*times, strict=True)), unit="ms")


def kept_waiting(work: Callable[[int], Any], seconds: float = 1.0) -> float:
    """Seconds of waiting per call, by how much less this thread counts while another one works; never quite none."""
    calls, over = 0, False

    def go_on() -> None:
        nonlocal calls
        while not over:
            work(calls % 4)
            calls += 1

    before = counted(seconds)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(go_on)
        beside, done = counted(seconds), calls
        over = True
        working.result()
    alone = (before + counted(seconds)) / 2
    return max(1e-6, seconds * (1 - beside / alone) / max(1, done))


def counted(seconds: float) -> int:
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        count += 1
    return count


def seconds_of_clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def loss_rows(bench: Bench, folder: Path) -> None:
    images, batch, crop = resized(open_images(folder / "jpeg"), Recipe()), 4, bench.setting.networks["small"][2]
    forms = {stage: (stage, {}) for stage in STAGES} | {"pairwise": ("selftrain", {"pairwise_weight": 1.0})}
    for title, (name, options) in forms.items():
        if not (bench.wants(f"losses/{title}") or bench.wants(f"saved/{title}")):
            continue
        segmenter = network("small").to(bench.fabric.device)
        search = {"color_transforms": False} | ({} if name == "align" else {"upscale": False})
        with prepared(bench, segmenter, images, name, batch, crop, **search, **options) as (stage, samples, _):
            made = [samples[n] for n in range(batch)]
            shown = {key: torch.stack([one[key] for one in made]).to(bench.fabric.device) for key in made[0]}
        logits = torch.randn(batch, CLASSES, *crop, device=bench.fabric.device, requires_grad=True)
        labels = torch.randint(CLASSES, (batch, *crop), device=bench.fabric.device)

        def ours(stage: Any = stage, shown: Sample = shown, logits: Tensor = logits) -> Tensor:
            losses = stage.loss(lambda images: logits * 1, shown)  # a network's logits are no leaves
            return torch.stack(list(losses.values())).sum()

        def bare(logits: Tensor = logits, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy(logits * 1, labels)

        times = [[1e3 * bench.seconds(lambda f=f: f().backward()) for f in (ours, bare)] for _ in range(13)][1:]
        bench.add(f"losses/{title}", *map(list, zip(*times, strict=True)), unit="ms")
        kept = [[autograd_bytes(f) / 2**20] for f in (ours, bare)]
        bench.add(f"saved/{title}", *kept, unit="mib")


def autograd_bytes(work: Callable[[], Tensor]) -> int:
    saved = _Saved()
    with saved.watching():
        kept = work()
    saved.next_step()
    del kept
    return saved.peak
