"""A label pass by its parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das3.data.label_store import LabelStore
from das3.data.open import open_images
from das3.distributed import spare_cores
from das3.stages import StageContext
from das3.stages.labelling import ToHost, writing
from speed_rows.bench import Bench, network, prepared, upsampled
from speed_rows.passes import repeated

PARTS = ("predicted", "labelled", "with-reading", "pass", "reading-alone", "writing-alone")
"""Each of the first four holds those before it."""


def part_rows(bench: Bench, folder: Path) -> None:
    for title, (kind, batch, crop) in bench.setting.networks.items():
        if not any(bench.wants(f"parts/{title}/{name}") for name in PARTS):
            continue
        segmenter, number = network(kind).to(bench.fabric.device).eval(), bench.setting.labelled
        images = open_images(repeated(folder / "jpeg", number))
        search = {"color_transforms": False, "upscale": False}
        with prepared(bench, segmenter, images, "selftrain", batch, crop, **search) as (stage, _, context):
            shown = [segmenter.preprocess(part) for part in context.batches()]
            works = works_of(bench, context, stage._label)
            for name, work in zip(PARTS, works, strict=True):
                if bench.wants(f"parts/{title}/{name}"):
                    sides = (work, lambda model=segmenter.model, shown=shown: inferred(bench, model, shown))
                    times = [[1e3 * bench.seconds(one) / number for one in sides] for _ in range(4)][1:]
                    bench.add(f"parts/{title}/{name}", *map(list, zip(*times, strict=True)), unit="ms")


@torch.no_grad()
def inferred(bench: Bench, model: Any, shown: Sequence[Tensor]) -> None:
    for part in shown:
        upsampled(bench.fabric, model, part).argmax(dim=1)


def works_of(bench: Bench, context: StageContext, label: Any) -> Sequence[Callable[[], Any]]:
    """What is timed, in the order of `PARTS`."""
    groups, number = context._at_once(context.groups()), len(context.images)
    ready, numbers = list(context.batches(groups)), count()

    @torch.no_grad()
    def predicted() -> None:
        deque(map(context.logits, ready), maxlen=0)

    @torch.no_grad()
    def labelled() -> list[Any]:
        found, behind = [], deque[ToHost]()
        for part in ready:
            behind.append(ToHost(*zip(*context._labelled(part, [None] * len(part), label), strict=True)))
            if len(behind) > 1:
                found = behind.popleft().arrays()
        return behind.popleft().arrays() + found

    @torch.no_grad()
    def with_reading() -> None:
        with context._labels(groups, label, "parts", of=groups) as made:
            deque(made, maxlen=0)

    arrays = [{key: value.copy() for key, value in one.items()} for one in labelled()]

    def written() -> None:
        store = LabelStore(context.folder / f"parts-written-{next(numbers)}", context.images.names)
        with writing(store, max(2, spare_cores(bench.fabric.device))) as write:
            for i in range(number):
                write(i, arrays[i % len(arrays)])

    return (
        *(predicted, labelled, with_reading),
        lambda: context.label_all(f"parts-{next(numbers)}", label, batched=True),
        lambda: deque(context.batches(groups), maxlen=0),
        written,
    )
