"""What is done between steps: label passes, preparation, checkpoints, all passes of a run."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import das3
from das3.data.images import Images
from das3.data.open import open_images
from das3.data.streets import Streets
from das3.models import load_segmenter
from das3.recipe import Recipe
from das3.registry import find_stage
from das3.segmenter import Segmenter
from das3.selection.signals import COLOR_VIEWS, measure_color_consistency
from das3.stages import StageContext
from das3.training import phases
from das3.training.checkpoints import save_checkpoint
from das3.training.loop import train
from speed_rows.bench import CLASSES, STAGES, BareStep, Bench, network, prepared, resized, upsampled, write_images

PREPARATION = (*((find_stage(name), "prepare") for name in STAGES), (phases.Guard, "choose_statistics"))
"""Classes and their methods: all that is done before the steps of a stage."""


def label_rows(bench: Bench, folder: Path) -> None:
    setting = bench.setting
    for title, (kind, batch, crop) in setting.networks.items():
        for form in ("arrays", "jpeg", "png"):
            if not bench.wants(f"labels/{title}/{form}"):
                continue
            segmenter = network(kind).to(bench.fabric.device).eval()
            images = open_images(repeated(folder / ("jpeg" if form == "arrays" else form), setting.labelled))
            if form == "arrays":
                images = open_images([images[i] for i in range(len(images))])  # type: ignore[arg-type]
            search = {"color_transforms": False, "upscale": False}
            with prepared(bench, segmenter, images, "selftrain", batch, crop, **search) as (stage, _, context):
                names = (f"again-{n}" for n in count())
                shown = torch.cat([segmenter.preprocess(part) for part in context.batches()])

                def ours(context: Any = context, stage: Any = stage, names: Any = names) -> None:
                    context.label_all(next(names), stage._label, batched=True)

                @torch.no_grad()
                def bare(segmenter: Segmenter = segmenter, shown: Tensor = shown, batch: int = batch) -> None:
                    for part in shown.split(batch):
                        upsampled(bench.fabric, segmenter.model, part).argmax(dim=1)

                times = [[1e3 * bench.seconds(work) for work in (ours, bare)] for _ in range(4)][1:]
            bench.add(f"labels/{title}/{form}", *map(list, zip(*times, strict=True)), unit="ms")


def repeated(folder: Path, number: int) -> Path:
    """A folder of so many images: those of this one, over and over."""
    files, repeats = sorted(folder.iterdir()), folder.with_name(f"{folder.name}-{number}")
    repeats.mkdir(exist_ok=True)
    for i in range(number):
        link = repeats / f"{i:04d}{files[0].suffix}"
        if not link.exists():
            link.hardlink_to(files[i % len(files)])
    return repeats


def view_rows(bench: Bench, folder: Path) -> None:
    for title, (kind, batch, _) in bench.setting.networks.items():
        if not bench.wants(f"views/{title}"):
            continue
        segmenter = network(kind).to(bench.fabric.device).eval()
        images = torch.rand(batch, 3, *bench.setting.sizes["jpeg"], device=bench.fabric.device)
        shown = segmenter.preprocess(images)

        def ours(segmenter: Segmenter = segmenter, images: Tensor = images) -> None:
            with bench.fabric.autocast():
                measure_color_consistency(segmenter, [images])

        @torch.no_grad()
        def bare(segmenter: Segmenter = segmenter, shown: Tensor = shown) -> None:
            for _ in range(1 + len(COLOR_VIEWS)):
                upsampled(bench.fabric, segmenter.model, shown).argmax(dim=1).cpu()

        times = [[1e3 * bench.seconds(work) for work in (ours, bare)] for _ in range(6)][1:]
        bench.add(f"views/{title}", *map(list, zip(*times, strict=True)), unit="ms")


def prepare_rows(bench: Bench, folder: Path) -> None:
    kind, batch, crop = bench.setting.networks["small"]
    for number in bench.setting.prepared:
        for name in STAGES:
            if not bench.wants(f"prepare/{name}/{number}"):
                continue
            segmenter = network(kind).to(bench.fabric.device)
            images = folder / f"prepare-{number}"
            if not images.exists():
                write_images(images, "jpeg", bench.setting.sizes["jpeg"], number)
            shown = resized(open_images(images), Recipe())
            began = bench.clock()
            with prepared(bench, segmenter, shown, name, batch, crop) as found:
                before = bench.clock() - began
                stage, samples, context = found
                steps, few = stage.options.steps, 6
                seen: list[float] = []
                stage.options = replace(stage.options, steps=few, lr=1e-6)
                recipe = replace(Recipe(), log_every=1)
                train(
                    *(bench.fabric, segmenter, stage, samples, recipe),
                    seed=context.seed,
                    report=lambda record, seen=seen: seen.append(bench.clock()),
                )
                step = statistics.median(np.diff(seen))
            bench.add(f"prepare/{name}/{number}", [before], [float(step * steps)], unit="s")


def pass_rows(bench: Bench, folder: Path) -> None:
    """Counted, not timed; the network is as large as it may be small, and so are the images."""
    for number in (50, 500):
        for name in STAGES:
            if not bench.wants(f"passes/{name}/{number}"):
                continue
            segmenter, images = tiny(number)
            segmenter = segmenter.to(bench.fabric.device)
            shown: list[int] = []
            hook = segmenter.model.register_forward_hook(lambda *given, shown=shown: shown.append(len(given[1][0])))
            with tempfile.TemporaryDirectory(prefix="das3-speed-") as work:
                stage = find_stage(name)(find_stage(name).Options())
                stage.prepare(StageContext(bench.fabric, segmenter, images, Path(work), (0, 0), (32, 32)))
            hook.remove()
            bench.add(f"passes/{name}/{number}", [float(sum(shown))], [float(number)], unit="images")


def tiny(number: int) -> tuple[Segmenter, Images]:
    """A network and images as small as may be."""
    torch.manual_seed(0)
    segmenter = load_segmenter("das3:small", num_classes=CLASSES, model_args={"width": 4})
    streets = Streets("target", 16, size=(32, 48))
    return segmenter, open_images([streets.image(i % 16) for i in range(number)])  # type: ignore[arg-type]


def run_rows(bench: Bench, folder: Path) -> None:
    """Counted, not timed: a whole run of the default recipe. A backward pass counts as two forward ones."""
    number = 500
    if not any(bench.wants(f"run/{what}/{number}") for what in ("prepare", "guard")):
        return
    segmenter, images = tiny(number)
    shown = {"train": 0, "prepare": 0, "guard": 0}
    preparing = False

    def count_images(module: Any, given: Any, _: Any) -> None:
        what = "train" if torch.is_grad_enabled() else "prepare" if preparing else "guard"
        shown[what] += len(given[0])

    def counted(prepare: Any) -> Any:
        def prepare_counted(*given: Any) -> Any:
            nonlocal preparing
            preparing = True
            try:
                return prepare(*given)
            finally:
                preparing = False

        return prepare_counted

    segmenter.model.register_forward_hook(count_images)
    with tempfile.TemporaryDirectory(prefix="das3-speed-") as work, ExitStack() as patches:
        for owner, name in PREPARATION:
            patches.enter_context(patch.object(owner, name, counted(getattr(owner, name))))
        das3.adapt(segmenter, images, out=Path(work) / "run", recipe={"device": "cpu"}, quiet=True, report=False)
    total = 3 * shown["train"] + shown["prepare"] + shown["guard"]
    for what in ("prepare", "guard"):
        if bench.wants(f"run/{what}/{number}"):
            bench.add(f"run/{what}/{number}", [float(shown[what])], [float(total)], unit="images")


def timed_run_rows(bench: Bench, folder: Path) -> None:
    """Whole runs of the default recipe, on images from files."""
    number = bench.setting.run
    for title, (kind, batch, crop) in bench.setting.networks.items():
        if not any(bench.wants(f"timed/{what}/{title}") for what in ("prepare", "guard")):
            continue
        images = folder / f"run-{number}"
        if not images.exists():
            write_images(images, "jpeg", bench.setting.sizes["jpeg"], number)
        segmenter, seconds = network(kind), {"prepare": 0.0, "train": 0.0}

        def timed(what: str, function: Any, seconds: dict[str, float] = seconds) -> Any:
            def run(*given: Any, **named: Any) -> Any:
                began = bench.clock()
                try:
                    return function(*given, **named)
                finally:
                    seconds[what] += bench.clock() - began

            return run

        with tempfile.TemporaryDirectory(prefix="das3-speed-") as work, ExitStack() as patches:
            for owner, name in PREPARATION:
                patches.enter_context(patch.object(owner, name, timed("prepare", getattr(owner, name))))
            patches.enter_context(patch.object(phases, "train", timed("train", phases.train)))
            # At the usual rates random weights run away, and the guard would end the run.
            options: dict[str, Any] = {name: {"lr": 1e-6} for name in STAGES}
            options |= {"batch_size": batch, "crop": crop, "device": bench.fabric.device.type, "report": False}
            began = bench.clock()
            das3.adapt(segmenter, images, out=Path(work) / "run", quiet=True, **options)
            total = bench.clock() - began
        rest = total - seconds["train"] - seconds["prepare"]
        for what, spent in {"prepare": seconds["prepare"], "guard": rest}.items():
            if bench.wants(f"timed/{what}/{title}"):
                bench.add(f"timed/{what}/{title}", [spent], [total], unit="s")


def checkpoint_rows(bench: Bench, folder: Path) -> None:
    every = Recipe().checkpoint_every
    for title, (kind, batch, crop) in bench.setting.networks.items():
        if not bench.wants(f"checkpoint/{title}"):
            continue
        segmenter = network(kind).to(bench.fabric.device)
        bare = BareStep(bench, segmenter, batch, crop)
        bare()
        step = [every * bench.seconds(bare) for _ in range(3)]
        weights = segmenter.state_dict()
        state = {"segmenter": weights, "ema": dict(weights), "optimizer": bare.optimizer.state_dict()}
        ours = [bench.seconds(lambda state=state: save_checkpoint(folder / "last.pt", state)) for _ in range(3)]
        bench.add(f"checkpoint/{title}", ours, step, unit="s")
