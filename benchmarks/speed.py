"""How fast das3 is beside bare loops of the same network: ratios, das3 ÷ bare, into results/speed-DEVICE.json.

    python benchmarks/speed.py                      # everything, on a GPU if there is one, else on the CPU
    python benchmarks/speed.py --only step/align    # rows whose name begins so; the others in the file stay
    python benchmarks/speed.py --check              # print only

Both sides of a ratio are measured in turn, a few steps each, in one process, so that what else the machine does falls
on both. On a GPU seconds are counted; on a CPU the seconds of one thread of this process, which other processes do not
change much.

What is bare: a supervised step of the network, its inputs on the device (forward, upsampling to the image,
cross-entropy, backward, AdamW); inference is forward, upsampling and argmax. What is measured of das3: the real loop,
stages and samples.

Rows hold name, device, default (nothing but defaults is used, batch size and images being named), ratio (the median),
p10 and p90 of the ratios of the single blocks, and milliseconds of both sides.

    step/STAGE/NETWORK/FORM     ready: samples at hand; jpeg, png: from such files, decoded before or not, as it comes
    channels_last/NETWORK       a bare step in that memory format beside the usual one
    compile/NETWORK             a bare step through torch.compile, once it is compiled, beside the usual one
    memory/STAGE/NETWORK        bytes of a step at its peak, on a CPU what autograd keeps, with weights and optimiser
    sample/KIND                 a sample of 512×1024 on one core, its image at hand, beside decoding such a JPEG;
                                mixed: that two of them are mixed into one
    losses/NAME                 the stage's loss from logits, forward and backward, beside cross-entropy
    saved/NAME                  bytes that autograd keeps for it, beside cross-entropy
    labels/NETWORK/FORM         pass that makes stage 2's labels of whole images, beside inference
    prepare/STAGE/IMAGES        all that a stage does before its first step, beside its steps
    passes/STAGE/IMAGES         images that the network is shown before the first step, beside the number there are
    checkpoint/NETWORK          writing one, beside the steps between two
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from das3.data.images import Images
from das3.data.mixing import class_mix
from das3.data.open import open_images
from das3.data.samples import Augmentation, Sample, Samples
from das3.data.streets import Streets
from das3.models import load_segmenter
from das3.recipe import Recipe
from das3.registry import find_stage
from das3.segmenter import Segmenter, main_logits
from das3.stages import StageContext
from das3.training.checkpoints import save_checkpoint
from das3.training.cost_estimate import _fixed_bytes, _Saved
from das3.training.loop import make_fabric, train

STAGES = ("align", "selftrain", "propagate")
FORMS = ("ready", "jpeg", "png")
CLASSES = 19
FOLDER = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Setting:
    """What is measured on a kind of device."""

    networks: dict[str, tuple[str, int]]  # name → network, batch size
    crop: tuple[int, int]
    sizes: dict[str, tuple[int, int]]  # of files
    images: int
    prepared: tuple[int, ...]  # numbers of images that a stage is prepared for
    block: int  # steps between two looks at the clock
    blocks: int


CPU = Setting(
    networks={"small": ("small", 8), "segformer": ("segformer", 8)},
    crop=(128, 192),
    sizes={"jpeg": (128, 192), "png": (128, 192)},
    images=16,
    prepared=(50, 200),
    block=1,
    blocks=15,
)
GPU = Setting(
    networks={
        "small": ("small", 8),
        "segformer": ("segformer", 8),
        "deeplabv2-b2": ("deeplabv2", 2),
        "deeplabv2-b4": ("deeplabv2", 4),
    },
    crop=(512, 1024),
    sizes={"jpeg": (512, 1024), "png": (1024, 2048)},
    images=32,
    prepared=(500,),
    block=5,
    blocks=7,
)


class Bench:
    """The device, the clock and the rows."""

    def __init__(self, device: str, only: str) -> None:
        self.fabric = make_fabric(device)
        self.on_gpu = self.fabric.device.type == "cuda"
        self.device = torch.cuda.get_device_name() if self.on_gpu else "cpu"
        self.setting = GPU if self.on_gpu else CPU
        self.only, self.rows = only, []

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
        self.rows.append(row)


# ---------------------------------------------------------------------------------------------- what is measured


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
    for i in range(number):
        picture = Image.fromarray(streets.image(i % 16)).resize(size[::-1], Image.Resampling.BICUBIC)
        noise = np.random.default_rng(i).normal(0, 3, (*size, 3))
        array = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{i:04d}.{'jpg' if form == 'jpeg' else 'png'}", quality=92)


class Ready(Samples):
    """Samples that were made before, over and over."""

    def __init__(self, samples: Samples, number: int) -> None:
        self.made = [samples[n] for n in range(number)]

    def __getitem__(self, n: int) -> Sample:
        return self.made[n % len(self.made)]


class BareStep:
    """A supervised step of a copy of the network on one batch that lies on the device."""

    def __init__(self, bench: Bench, segmenter: Segmenter, batch: int) -> None:
        self.fabric, self.network = bench.fabric, copy.deepcopy(segmenter.model).train()
        self.network.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-6)
        height, width = bench.setting.crop
        self.images = segmenter.preprocess(torch.rand(batch, 3, height, width, device=bench.fabric.device))
        self.labels = torch.randint(CLASSES, (batch, height, width), device=bench.fabric.device)

    def __call__(self) -> None:
        loss = F.cross_entropy(upsampled(self.fabric, self.network, self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def upsampled(fabric: Any, network_: nn.Module, images: Tensor) -> Tensor:
    with fabric.autocast():
        logits = main_logits(network_(images))
    return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)


class Turns:
    """Called by the loop after every block of steps: looks at the clock, then takes as many bare steps."""

    def __init__(self, bench: Bench, bare: BareStep) -> None:
        self.bench, self.bare = bench, bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.since = bench.clock()

    def __call__(self, record: object) -> None:
        block = self.bench.setting.block
        self.ours.append(1e3 * (self.bench.clock() - self.since) / block)
        self.theirs.append(1e3 * self.bench.seconds(lambda: [self.bare() for _ in range(block)]) / block)
        self.since = self.bench.clock()


@contextmanager
def prepared(
    bench: Bench, segmenter: Segmenter, images: Images, name: str, batch: int, **options: Any
) -> Iterator[Any]:
    """A stage with its samples and its context."""
    with tempfile.TemporaryDirectory(prefix="das3-speed-") as folder:
        kind = find_stage(name)
        stage = kind(replace(kind.Options(), **options))
        context = StageContext(bench.fabric, segmenter, images, Path(folder), (0, 0), bench.setting.crop, batch)
        yield stage, stage.prepare(context), context


def resized(images: Images, recipe: Recipe) -> Images:
    """As a run sees them."""
    return images.resized(None, cache_bytes=int(recipe.cache_gib * 2**30))


# ---------------------------------------------------------------------------------------------- the rows


def step_rows(bench: Bench, folder: Path) -> None:
    setting = bench.setting
    for title, (kind, batch) in setting.networks.items():
        wanted = [(s, f) for s in STAGES for f in FORMS if bench.wants(f"step/{s}/{title}/{f}")]
        if not wanted:
            continue
        segmenter = network(kind).to(bench.fabric.device)
        bare = BareStep(bench, segmenter, batch)
        for stage, form in wanted:
            images = open_images(folder / ("jpeg" if form == "ready" else form))
            step_row(bench, f"step/{stage}/{title}/{form}", segmenter, resized(images, Recipe()), bare, batch)


def step_row(bench: Bench, name: str, segmenter: Segmenter, images: Images, bare: BareStep, batch: int) -> None:
    setting, (_, kind, _, form) = bench.setting, name.split("/")
    # The search for a transform has a row of its own, and what it finds for random weights is chance.
    search = {"color_transforms": False} | ({} if kind == "align" else {"upscale": False})
    steps = setting.block * (setting.blocks + 1)
    # At the usual rates random weights run away within these steps.
    with prepared(bench, segmenter, images, kind, batch, steps=steps, lr=1e-6, **search) as (stage, samples, context):
        if form == "ready":
            samples = Ready(samples, batch)
        recipe = replace(Recipe(), batch_size=batch, log_every=setting.block)
        turns = Turns(bench, bare)
        train(bench.fabric, segmenter, stage, samples, recipe, seed=context.seed, report=turns)
    # The first block warms up, and starts the processes that load images.
    bench.add(name, turns.ours[1:], turns.theirs[1:], default=form != "ready", unit="ms")


def variant_rows(bench: Bench, folder: Path) -> None:
    """What options of the loop that are off by default bring."""
    for title, (kind, batch) in bench.setting.networks.items():
        for what in ("channels_last", "compile"):
            if not bench.wants(f"{what}/{title}"):
                continue
            segmenter = network(kind).to(bench.fabric.device)
            usual, other = (BareStep(bench, segmenter, batch) for _ in range(2))
            if what == "compile":
                other.network = torch.compile(other.network)  # type: ignore[assignment]
            else:
                other.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                other.images = other.images.contiguous(memory_format=torch.channels_last)
            times = [[1e3 * bench.seconds(step) for step in (other, usual)] for _ in range(bench.setting.blocks + 2)]
            bench.add(f"{what}/{title}", *map(list, zip(*times[2:], strict=True)), default=False, unit="ms")


def memory_rows(bench: Bench, folder: Path) -> None:
    images = resized(open_images(folder / "jpeg"), Recipe())
    for title, (kind, batch) in bench.setting.networks.items():
        for name in STAGES:
            if bench.wants(f"memory/{name}/{title}"):
                memory_row(bench, f"memory/{name}/{title}", network(kind).to(bench.fabric.device), images, batch)


def memory_row(bench: Bench, name: str, segmenter: Segmenter, images: Images, batch: int) -> None:
    bare = BareStep(bench, segmenter, batch)
    weights = sum(p.numel() for p in bare.network.parameters())
    theirs = peak(bench, bare.network, lambda ended, step=bare: step(), lambda: 16 * weights)
    del bare
    kind = name.split("/")[1]
    search = {"color_transforms": False} | ({} if kind == "align" else {"upscale": False})
    with prepared(bench, segmenter, images, kind, batch, steps=2, lr=1e-6, **search) as (stage, samples, context):
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


def loss_rows(bench: Bench, folder: Path) -> None:
    images, batch = resized(open_images(folder / "jpeg"), Recipe()), 4
    forms = {stage: (stage, {}) for stage in STAGES} | {"pairwise": ("selftrain", {"pairwise_weight": 1.0})}
    for title, (name, options) in forms.items():
        if not (bench.wants(f"losses/{title}") or bench.wants(f"saved/{title}")):
            continue
        segmenter = network("small").to(bench.fabric.device)
        search = {"color_transforms": False} | ({} if name == "align" else {"upscale": False})
        with prepared(bench, segmenter, images, name, batch, **search, **options) as (stage, samples, _):
            made = [samples[n] for n in range(batch)]
            shown = {key: torch.stack([one[key] for one in made]).to(bench.fabric.device) for key in made[0]}
        logits = torch.randn(batch, CLASSES, *bench.setting.crop, device=bench.fabric.device, requires_grad=True)
        labels = torch.randint(CLASSES, (batch, *bench.setting.crop), device=bench.fabric.device)

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


def label_rows(bench: Bench, folder: Path) -> None:
    setting = bench.setting
    for title, (kind, batch) in setting.networks.items():
        for form in ("arrays", "jpeg", "png"):
            if not bench.wants(f"labels/{title}/{form}"):
                continue
            segmenter = network(kind).to(bench.fabric.device).eval()
            images = open_images(folder / ("jpeg" if form == "arrays" else form))
            if form == "arrays":
                images = open_images([images[i] for i in range(len(images))])  # type: ignore[arg-type]
            search = {"color_transforms": False, "upscale": False}
            with prepared(bench, segmenter, images, "selftrain", batch, **search) as (stage, _, context):
                names = (f"again-{n}" for n in count())
                shown = torch.cat([segmenter.preprocess(part) for part in context.batches()])

                def ours(context: Any = context, stage: Any = stage, names: Any = names) -> None:
                    context.label_all(next(names), stage._label)

                @torch.no_grad()
                def bare(segmenter: Segmenter = segmenter, shown: Tensor = shown, batch: int = batch) -> None:
                    for part in shown.split(batch):
                        upsampled(bench.fabric, segmenter.model, part).argmax(dim=1)

                times = [[1e3 * bench.seconds(work) for work in (ours, bare)] for _ in range(4)][1:]
            bench.add(f"labels/{title}/{form}", *map(list, zip(*times, strict=True)), unit="ms")


def prepare_rows(bench: Bench, folder: Path) -> None:
    (kind, batch) = next(iter(bench.setting.networks.values()))
    for number in bench.setting.prepared:
        for name in STAGES:
            if not bench.wants(f"prepare/{name}/{number}"):
                continue
            segmenter = network(kind).to(bench.fabric.device)
            images = folder / f"prepare-{number}"
            if not images.exists():
                write_images(images, "jpeg", bench.setting.sizes["jpeg"], number)
            began = bench.clock()
            with prepared(bench, segmenter, resized(open_images(images), Recipe()), name, batch) as found:
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
            torch.manual_seed(0)
            segmenter = load_segmenter("das3:small", num_classes=CLASSES, model_args={"width": 4})
            segmenter = segmenter.to(bench.fabric.device)
            streets = Streets("target", 16, size=(32, 48))
            images = open_images([streets.image(i % 16) for i in range(number)])  # type: ignore[arg-type]
            shown: list[int] = []
            hook = segmenter.model.register_forward_hook(lambda *given, shown=shown: shown.append(len(given[1][0])))
            with tempfile.TemporaryDirectory(prefix="das3-speed-") as work:
                stage = find_stage(name)(find_stage(name).Options())
                stage.prepare(StageContext(bench.fabric, segmenter, images, Path(work), (0, 0), (32, 32)))
            hook.remove()
            bench.add(f"passes/{name}/{number}", [float(sum(shown))], [float(number)], unit="images")


def checkpoint_rows(bench: Bench, folder: Path) -> None:
    every = Recipe().checkpoint_every
    for title, (kind, batch) in bench.setting.networks.items():
        if not bench.wants(f"checkpoint/{title}"):
            continue
        segmenter = network(kind).to(bench.fabric.device)
        bare = BareStep(bench, segmenter, batch)
        bare()
        step = [every * bench.seconds(bare) for _ in range(3)]
        weights = segmenter.state_dict()
        state = {"segmenter": weights, "ema": dict(weights), "optimizer": bare.optimizer.state_dict()}
        ours = [bench.seconds(lambda state=state: save_checkpoint(folder / "last.pt", state)) for _ in range(3)]
        bench.add(f"checkpoint/{title}", ours, step, unit="s")


ROWS = (
    *(sample_rows, loss_rows, step_rows, variant_rows, memory_rows),
    *(label_rows, prepare_rows, pass_rows, checkpoint_rows),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--only", default="", help="rows whose name begins so")
    parser.add_argument("--check", action="store_true", help="print only")
    given = parser.parse_args()
    bench = Bench(given.device, given.only)
    if not bench.on_gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="das3-speed-") as name:
        folder = Path(name)
        for form, size in bench.setting.sizes.items():
            write_images(folder / form, form, size, bench.setting.images)
        for measure in ROWS:
            measure(bench, folder)
    if not given.check:
        write(bench)


def write(bench: Bench) -> None:
    """Rows that were not measured this time stay as they are in the file."""
    short = "cpu" if not bench.on_gpu else bench.device.lower().replace("nvidia ", "").replace(" ", "-")
    path = FOLDER / f"speed-{short}.json"
    found = {row["name"]: row for row in (json.loads(path.read_text()) if path.exists() else [])}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found |= {row["name"]: {**row, "commit": commit.stdout.strip()} for row in bench.rows}
    path.write_text("[\n" + ",\n".join(json.dumps(found[name]) for name in sorted(found)) + "\n]\n")


if __name__ == "__main__":
    main()
