"""Odd numbers: networks that return what no network should, crops, shapes and data sets at the edge of sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hostile.cases import Case, Place

NETWORK = """
import torch
from torch import nn

INF, NAN = float("inf"), float("nan")

class Net(nn.Module):
    def __init__(self, change="x", classes=3, frozen=""):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, classes, 1)
        self.change = change
        for name in frozen.split():
            getattr(self, name).requires_grad_(False)

    def forward(self, x):
        x = self.last(self.body(x))
        return eval(self.change)

def build(**kwargs):
    return Net(**kwargs)

def nothing():
    return nn.Identity()

def constant():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3, *x.shape[2:])
    return Constant()

def one_layer():
    return nn.Conv2d(3, 3, 1)

def falls():
    class Falls(Net):
        calls = 0
        def forward(self, x):
            type(self).calls += 1
            if type(self).calls > 5:
                raise ValueError("a network's own error")
            return super().forward(x)
    return Falls()

def exits():
    raise SystemExit(3)

def recurses():
    return recurses()

def no_module():
    return 3
"""
ALL = ("--stages=align,selftrain,propagate", "--align.steps=2", "--selftrain.steps=2", "--propagate.steps=2")


def network(
    spec: str = "build", how: str = "adapt", more: tuple[str, ...] = (), **args: object
) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        import json

        (place.folder / "net.py").write_text(NETWORK)
        given = ["--model-args", json.dumps(args), *more] if args else more
        return getattr(place, how)(model=f"net:{spec}", more=given)

    return make


LOGITS: dict[str, tuple[str, str]] = {
    "all equal": ("x * 0", "works"),
    "all equal and large": ("x * 0 + 1e4", "works"),
    "±1e4": ("x.sign() * 1e4", "works"),
    "times 1e4": ("x * 1e4", "works"),
    "times 1e30": ("x * 1e30", "either"),
    "times 1e-30": ("x * 1e-30", "works"),
    "NaN": ("x * NAN", "told"),
    "one NaN": ("torch.where(torch.arange(x.shape[-1]) == 3, NAN, x)", "told"),
    "inf": ("x + INF", "told"),
    "one class inf": ("torch.cat([x[:, :1] + INF, x[:, 1:]], 1)", "told"),
    "minus inf": ("x - INF", "told"),
    "one class −inf": ("torch.cat([x[:, :1] * 0 - INF, x[:, 1:]], 1)", "works"),
    "two classes −inf": ("torch.cat([x[:, :2] * 0 - INF, x[:, 2:]], 1)", "works"),
    "one class −200": ("torch.cat([x[:, :1] - 200, x[:, 1:]], 1)", "works"),
    "one class −1e30": ("torch.cat([x[:, :1] - 1e30, x[:, 1:]], 1)", "works"),
    "half": ("x.half()", "works"),
    "bfloat16": ("x.bfloat16()", "works"),
    "double": ("x.double()", "works"),
    "whole": ("x.long()", "told"),
    "complex": ("x.to(torch.complex64)", "told"),
    "three dimensions": ("x[:, 0]", "told"),
    "five dimensions": ("x[None]", "told"),
    "no pixels": ("x[..., :0]", "told"),
    "one pixel": ("x.mean((2, 3), keepdim=True)", "works"),
    "no classes": ("x[:, :0]", "told"),
    "turned": ("x.transpose(2, 3)", "works"),
    "larger": ("torch.nn.functional.interpolate(x, scale_factor=2)", "works"),
    "a batch of one": ("x[:1]", "either"),
    "detached": ("x.detach()", "told"),
    "a tuple of nothing": ("()", "told"),
    "nothing": ("None", "told"),
    "an empty mapping": ("{}", "told"),
    "probabilities": ("x.softmax(1)", "told"),
    "log probabilities": ("x.log_softmax(1)", "works"),
    "labels": ("x.argmax(1)", "told"),
    "sparse": ("x.to_sparse()", "told"),
    "meta": ("x.to('meta')", "told"),
    "noise": ("x + torch.randn_like(x)", "works"),
}


def logits() -> Iterator[Case]:
    for name, (change, expect) in LOGITS.items():
        quick = name in ("one class −inf", "NaN")
        yield Case("numbers", f"logits: {name}", network(change=change), expect, quick=quick)
        if expect == "works":
            yield Case(
                "numbers",
                f"logits in all stages: {name}",
                network(change=change, more=(*ALL, "--guard=best", "--report=true")),
                expect,
            )
        yield Case(
            "numbers",
            f"logits to predict with: {name}",
            network(how="predict", change=change),
            "either" if name == "detached" else expect,
            quick=name == "one NaN",
        )
    for count in (1, 2, 255, 256, 300):
        expect = "told" if count > 255 else "works"
        yield Case("numbers", f"{count} classes", network(classes=count, more=(*ALL, "--guard=best")), expect)
    for frozen, expect in (("body", "either"), ("last", "works"), ("body last", "works")):
        for stage in ("align", "selftrain"):
            yield Case(
                "numbers",
                f"frozen: {frozen}, {stage}",
                network(frozen=frozen, more=(f"--stages={stage}", "--align.steps=1")),
                "told" if (frozen, stage) == ("body", "align") else expect,
                quick=(frozen, stage) == ("body", "align"),
            )
    for spec, expect in (
        ("nothing", "told"),
        ("constant", "told"),
        ("one_layer", "either"),
        ("falls", "told"),
        ("recurses", "told"),
        ("no_module", "told"),
        ("NAN", "told"),
        ("torch", "told"),
    ):
        for how in ("adapt", "predict"):
            yield Case(
                "numbers",
                f"{how} with net:{spec}",
                network(spec, how),
                "either" if spec == "falls" and how == "predict" else expect,
            )
    yield Case(
        "numbers", "one layer, stage 1", network("one_layer", more=("--stages=align", "--align.steps=1")), "told"
    )


def crops() -> Iterator[Case]:
    for crop in ("1,1", "1,2", "2,2", "3,3", "3,4", "4,4", "5,7", "1,64", "33,33"):
        yield Case(
            "numbers", f"crop {crop}", lambda p, c=crop: p.adapt(more=("--crop", c, *ALL)), "works", quick=crop == "3,3"
        )
        more = (
            "--selftrain.pairwise-weight=1",
            "--selftrain.color=0.5",
            "--selftrain.blur=1",
            "--selftrain.scale=0.5,2",
        )
        yield Case(
            "numbers",
            f"crop {crop}, every augmentation",
            lambda p, c=crop, m=more: p.adapt(more=("--crop", c, *m)),
            "works",
        )
        yield Case(
            "numbers",
            f"crop {crop}, a transformer",
            lambda p, c=crop: p.adapt(model=p.base / "hf", more=("--crop", c)),
            "works",
        )


def loops() -> Iterator[Case]:
    told = {
        "steps=-1": "--selftrain.steps=-1",
        "batch 0": "--batch-size=0",
        "ids 0": "--selftrain.top-fraction=0",
        "weights of 1e300": "--selftrain.positive-weight=1e300",
    }
    for name, option in told.items():
        yield Case("numbers", f"loop: {name}", lambda p, o=option: p.adapt(more=(o,)))
    fine = {
        "no steps": ("--selftrain.steps=0",),
        "no steps at all": ("--stages=align,selftrain", "--align.steps=0", "--selftrain.steps=0", "--guard=best"),
        "a batch of one": ("--batch-size=1",),
        "a batch of 64": ("--batch-size=64",),
        "accumulate": ("--accumulate=3",),
        "bf16": ("--precision=bf16",),
        "ema 0.999": ("--ema-decay=0.999",),
        "one image often": ("--selftrain.steps=3", "--batch-size=1"),
        "rare classes": ("--selftrain.rare-temperature=0.01",),
        "rare classes, hot": ("--selftrain.rare-temperature=1e6",),
        "data thresholds": ("--selftrain.thresholds=data",),
        "frozen norms": ("--selftrain.bn-mode=frozen",),
        "norms of batches of one": ("--selftrain.bn-mode=batch", "--batch-size=1", "--crop=1,1"),
        "target norms": ("--selftrain.bn-mode=target",),
        "bn alone": ("--stages=bn",),
        "size 1": ("--size=1",),
        "every image one pixel": ("--size=1,1", *ALL),
        "no cache": ("--cache-gib=0",),
    }
    for name, options in fine.items():
        yield Case("numbers", f"loop: {name}", lambda p, o=options: p.adapt(more=o), "works")
    either = {
        "lr of 1e30": ("--selftrain.lr=1e30", "--selftrain.steps=4"),
        "fp16": ("--precision=16",),
        "lr of 1e30 and the guard": ("--selftrain.lr=1e30", "--selftrain.steps=4", "--guard=best"),
        "colour of 1e30": ("--selftrain.color=1e30",),
        "decay of 1e300": ("--weight-decay=1e300", "--selftrain.steps=3"),
    }
    for name, options in either.items():
        yield Case("numbers", f"loop: {name}", lambda p, o=options: p.adapt(more=o), "either")


def _of(values: np.ndarray, count: int = 2) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = place.folder / "images"
        folder.mkdir()
        for i in range(count):
            Image.fromarray(values).save(folder / f"{i}.png")
        return place.adapt(images=folder, more=(*ALL, "--guard=best", "--report=true"))

    return make


def images() -> Iterator[Case]:
    black = np.zeros((32, 40, 3), np.uint8)
    for name, values in {"black": black, "white": black + 255, "one colour": black + np.uint8([1, 2, 3])}.items():
        yield Case("numbers", f"images: {name}", _of(values), "works")
    yield Case("numbers", "images: one", _of(black + 9, 1), "works")
    yield Case("numbers", "images: of many sizes", _many_sizes, "works")


def _many_sizes(place: Place) -> list[str]:
    folder = place.folder / "images"
    folder.mkdir()
    for i, size in enumerate(((1, 1), (3, 5), (40, 3), (2, 70), (33, 47))):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    return place.adapt(images=folder, more=(*ALL, "--guard=best", "--report=true"))


def inference() -> Iterator[Case]:
    for option in (
        "--scales=0",
        "--scales=-1",
        "--scales=nan",
        "--scales=inf",
        "--scales=1e9",
        "--scales=[]",
        "--tile=0",
        "--tile=-5",
        "--tile=1",
        "--tile=63",
        "--tile=1.5",
        "--size=0",
        "--size=0,5",
        "--size=nan",
        "--num-classes=7",
        "--mean=nan,0,0",
        "--std=0,1,1",
        "--input-max=nan",
        "--nodata=nan",
        "--ids=nope",
        "--ids=cityscapes",
        "--ids=mask",
        "--precision=3",
        "--device=cuda",
        "--flip=perhaps",
        "--bands=0",
    ):
        yield Case(
            "numbers",
            f"predict {option}",
            lambda p, o=option: p.predict(more=(o,)),
            quick=option in ("--scales=nan", "--nodata=nan"),
        )
        if not option.startswith("--ids"):
            yield Case("numbers", f"evaluate {option}", lambda p, o=option: p.evaluate(more=(o,)))
    for option in (
        "--scales=1e-9",
        "--scales=0.01,3",
        "--tile=64",
        "--tile=100000",
        "--size=1",
        "--flip",
        "--size=1,1",
        "--overlays=true",
    ):
        yield Case("numbers", f"predict {option}", lambda p, o=option: p.predict(more=(o,)), "works", check=_labels)


def _labels(folder: Path) -> None:
    for path in sorted((folder / "out/labels").glob("*.png")):
        assert Image.open(path).size == (40, 32)


def cases() -> Iterator[Case]:
    for part in (logits, crops, loops, images, inference):
        yield from part()
