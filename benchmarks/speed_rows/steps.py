"""Steps of stages beside bare ones: time and memory, and what options of the loop bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from das3.data.images import Images
from das3.data.open import open_images
from das3.recipe import Recipe
from das3.segmenter import Segmenter
from das3.training.cost_estimate import _fixed_bytes, _Saved
from das3.training.loop import train
from speed_rows.bench import STAGES, BareStep, Bench, OtherProcess, Ready, ReleasedStep, network, prepared, resized

FORMS = ("ready", "jpeg", "png")


class Turns:
    """Called by the loop after every block of steps: looks at the clock, then takes as many bare steps.

    The first block warms up, and starts the processes that load images.
    """

    def __init__(self, bench: Bench, bare: Callable[[int], float]) -> None:
        """`bare`: steps → seconds."""
        self.bench, self.bare = bench, bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.to_skip = 1 + bench.setting.lead
        self.since = bench.clock()

    def __call__(self, record: object) -> None:
        now, block = self.bench.clock(), self.bench.setting.block
        if self.to_skip:
            self.to_skip -= 1
        else:
            self.ours.append(1e3 * (now - self.since) / block)
            self.theirs.append(1e3 * self.bare(block) / block)
            self.to_skip = self.bench.setting.lead
        self.since = self.bench.clock()


def step_rows(bench: Bench, folder: Path) -> None:
    setting = bench.setting
    for title, (kind, batch, crop) in setting.networks.items():
        wanted = [f"step/{stage}/{title}/{form}" for stage in STAGES for form in FORMS]
        wanted = [*filter(bench.wants, [*wanted, f"released/propagate/{title}/jpeg"])]
        if not wanted:
            continue
        segmenter = network(kind).to(bench.fabric.device)
        for name in wanted:
            form = name.split("/")[-1]
            images = open_images(folder / ("jpeg" if form == "ready" else form))
            other = bare_steps(bench, name, kind, segmenter, batch, crop)
            step_row(bench, name, segmenter, resized(images, Recipe()), other, batch, crop)


def bare_steps(
    bench: Bench, name: str, kind: str, segmenter: Segmenter, batch: int, crop: tuple[int, int]
) -> Callable[[int], float]:
    if not bench.on_gpu and not name.startswith("released"):
        return OtherProcess(kind, batch, crop).seconds
    step = (ReleasedStep if name.startswith("released") else BareStep)(bench, segmenter, batch, crop)
    return lambda steps: bench.seconds(lambda: [step() for _ in range(steps)])


def step_row(
    bench: Bench,
    name: str,
    segmenter: Segmenter,
    images: Images,
    bare: Callable[[int], float],
    batch: int,
    crop: tuple[int, int],
) -> None:
    setting, (_, kind, title, form) = bench.setting, name.split("/")
    # The search for a transform has a row of its own, and what it finds for random weights is chance.
    search = {"color_transforms": False} | ({} if kind == "align" else {"upscale": False})
    steps = setting.block * (1 + setting.blocks[title] * (setting.lead + 1))
    # At the usual rates random weights run away within these steps.
    options = {"steps": steps, "lr": 1e-6, **search}
    with prepared(bench, segmenter, images, kind, batch, crop, **options) as (stage, samples, context):
        if form == "ready":
            samples = Ready(samples, batch)
        recipe = replace(Recipe(), batch_size=batch, log_every=setting.block)
        bare(1)
        turns = Turns(bench, bare)
        train(bench.fabric, segmenter, stage, samples, recipe, seed=context.seed, report=turns)
    bench.add(name, turns.ours, turns.theirs, default=form != "ready", unit="ms")


def variant_rows(bench: Bench, folder: Path) -> None:
    """What options of the loop that are off by default bring."""
    for title, (kind, batch, crop) in bench.setting.networks.items():
        for what in ("channels_last", "compile"):
            if not bench.wants(f"{what}/{title}"):
                continue
            segmenter = network(kind).to(bench.fabric.device)
            usual, other = (BareStep(bench, segmenter, batch, crop) for _ in range(2))
            if what == "compile":
                other.network = torch.compile(other.network)  # type: ignore[assignment]
            else:
                other.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                other.images = other.images.contiguous(memory_format=torch.channels_last)
            times = [
                [1e3 * bench.seconds(step) for step in (other, usual)] for _ in range(bench.setting.blocks[title] + 2)
            ]
            bench.add(f"{what}/{title}", *map(list, zip(*times[2:], strict=True)), default=False, unit="ms")


def memory_rows(bench: Bench, folder: Path) -> None:
    images = resized(open_images(folder / "jpeg"), Recipe())
    for title, (kind, batch, crop) in bench.setting.networks.items():
        for name in STAGES:
            if bench.wants(f"memory/{name}/{title}"):
                segmenter = network(kind).to(bench.fabric.device)
                memory_row(bench, f"memory/{name}/{title}", segmenter, images, batch, crop)


def memory_row(
    bench: Bench, name: str, segmenter: Segmenter, images: Images, batch: int, crop: tuple[int, int]
) -> None:
    bare = BareStep(bench, segmenter, batch, crop)
    weights = sum(p.numel() for p in bare.network.parameters())
    theirs = peak(bench, bare.network, lambda ended, step=bare: step(), lambda: 16 * weights)
    del bare
    kind = name.split("/")[1]
    search = {"color_transforms": False} | ({} if kind == "align" else {"upscale": False})
    options = {"steps": 2, "lr": 1e-6, **search}
    with prepared(bench, segmenter, images, kind, batch, crop, **options) as (stage, samples, context):
        recipe = replace(Recipe(), batch_size=batch, log_every=1)
        ready, seed = Ready(samples, batch), context.seed
        ours = peak(
            bench,
            segmenter,
            lambda ended: train(
                bench.fabric, segmenter, stage, ready, recipe, seed=seed, report=lambda record: ended()
            ),
            lambda: _fixed_bytes(segmenter, stage, recipe),
        )
    bench.add(name, [ours / 2**20], [theirs / 2**20], unit="mib")


def peak(bench: Bench, module: nn.Module, work: Callable[[Callable[[], None]], Any], fixed: Callable[[], int]) -> float:
    """Bytes at the peak; on a CPU those that autograd keeps of the larger step, and `fixed` ones.

    `work` calls what it is given after each step: tensors of two steps lie at other addresses, and would count twice.
    """
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work(lambda: None)
        return float(torch.cuda.max_memory_allocated())
    saved = _Saved()
    with saved.watching(module):
        work(saved.next_step)
    saved.next_step()
    return float(fixed() + saved.peak)
