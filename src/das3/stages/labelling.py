"""What is made of predictions, from the device into files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from das3.data.label_store import LabelStore
from das3.losses import IGNORE_INDEX
from das3.threads import behind

__all__ = ["Label", "ToHost", "joined", "labels_of_data", "of_each", "writing"]

Label = Callable[[Tensor], dict[str, Tensor]]
"""Probabilities B×C×H×W float32 → small arrays B×…, or C×H×W of one image → small arrays."""

WAITING = 32
"""Images whose labels may wait to be written, so that memory is constant."""


class ToHost:
    """Labels of parts of a batch, of so many images each, on their way from a device that goes on working meanwhile."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]) -> None:
        for part, size in zip(parts, sizes, strict=True):
            for key, value in part.items():
                if not value.ndim or len(value) != size:
                    raise ValueError(
                        f"{key!r} is of shape {tuple(value.shape)}, but it must be {size}×…, one per image"
                    )
        on_gpu = any(value.is_cuda for part in parts for value in part.values())
        self.copies = [{key: value.to("cpu", non_blocking=on_gpu) for key, value in part.items()} for part in parts]
        self.sizes, self.copied = sizes, torch.cuda.Event() if on_gpu else None
        if self.copied:
            self.copied.record()

    def arrays(self) -> list[dict[str, NDArray[Any]]]:
        """The labels of each image, once they are there."""
        if self.copied:
            self.copied.synchronize()
        parts = [{key: value.numpy() for key, value in part.items()} for part in self.copies]
        return [
            {key: values[i] for key, values in part.items()}
            for part, size in zip(parts, self.sizes, strict=True)
            for i in range(size)
        ]


@contextmanager
def writing(store: LabelStore, writers: int) -> Iterator[Callable[[int, dict[str, NDArray[np.generic]]], None]]:
    """A function that has arrays written by threads; all are, or an error is raised, when the block ends.

    Args:
        store: what they are written to.
        writers: how many threads compress them.
    """
    with store.writing() as packs, behind(writers, WAITING) as begin:
        yield partial(begin, packs.add)


def joined(groups: Sequence[Sequence[int]], sizes: Sequence[tuple[int, int]], most_pixels: int) -> list[list[int]]:
    """Groups of images, those that follow each other as one if they are of one size and no more pixels together.

    Args:
        groups: indices of images, those of a group of one size.
        sizes: (height, width) of every image.
        most_pixels: of groups that are joined.
    """
    found: list[list[int]] = []
    for group in groups:
        height, width = sizes[group[0]]
        if (
            found
            and sizes[found[-1][0]] == (height, width)
            and (len(found[-1]) + len(group)) * height * width <= most_pixels
        ):
            found[-1].extend(group)
        else:
            found.append(list(group))
    return found


def of_each(label: Label) -> Label:
    """What takes B×C×H×W, made of what takes C×H×W."""

    def labels(probs: Tensor) -> dict[str, Tensor]:
        found = [label(one) for one in probs]
        return {key: torch.stack([one[key] for one in found]) for key in found[0]}

    return labels


def labels_of_data(label: Label, probs: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What `label` makes of a prediction 1×C×H×W where only the `valid` pixels H×W count.

    The others show the predictions of valid pixels, evenly spread, so that shares, means and ranks over the image are
    those of its data. Label maps of the image's size then get 255 there (0 where bits are packed).
    """
    inside, outside = valid.flatten().nonzero().squeeze(1), (~valid).flatten().nonzero().squeeze(1)
    if len(inside):
        spread = torch.arange(len(outside), device=inside.device) * len(inside) // max(1, len(outside))
        flat = probs.flatten(2).clone()
        flat[..., outside] = flat[..., inside[spread]]
        probs = flat.view_as(probs)
    found = label(probs)
    for key, value in found.items():
        if value.dtype == torch.uint8 and value.shape[-2:] == valid.shape:
            found[key] = value.masked_fill(~valid, IGNORE_INDEX if value.ndim == 3 else 0)
    return found
