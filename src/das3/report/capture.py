"""What one model predicts on a sample of the target images, kept in the run folder for the report.

RUN/work/report/incoming/   the model that came in     RUN/work/report/adapted/   the one that went out
    meta.json               which images and which weights; written last, so that it marks a complete capture
    NAME.npz                labels, entropy and the photograph, see `capture`
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from das3.data.array_files import ArrayFiles
from das3.data.images import Images
from das3.data.pixels import Pixel, as_rgb8
from das3.evaluation.predict import predict_probs
from das3.files import write_atomically
from das3.fingerprints import weights_hash
from das3.losses import IGNORE_INDEX, entropy_of_probs
from das3.segmenter import Segmenter

__all__ = ["BINS", "SIDE", "Capture", "CaptureInfo", "capture", "center_window", "evenly_spaced"]

SAMPLE = 200
"""Images, evenly spaced, that the statistics are taken from; a report costs as much for any number of images."""

SIDE = 480
"""Longer side of the report's pictures, in pixels; smaller images keep their size."""

BINS = 20
"""Bins of the histogram of per-pixel entropy over [0, 1]."""

_HEAT_SIDE = 240  # longer side of stored entropy maps: entropy is smooth, and noise would not compress
_LARGEST = 2**21  # pixels of an image that are looked at; of larger ones the centre
_VALUES = 2**27  # probabilities held at once: 512 MiB

Track = Callable[[Iterable[int], str, int], Iterable[int]]
"""Wraps an iteration (items, what, total) to show its progress."""


def untracked(items: Iterable[int], what: str, total: int) -> Iterable[int]:
    """No progress is shown."""
    return items


@dataclass(frozen=True)
class CaptureInfo:
    """What a capture is of.

    Attributes:
        names: of the images in the sample, in the order of the data set.
        total: images in the whole data set.
        class_names: of the model.
        model: the model in one line.
        weights: SHA-256 of the weights, see `weights_hash`.
    """

    names: list[str]
    total: int
    class_names: list[str]
    model: str
    weights: str


class Capture:
    """Read access to a complete capture.

    Args:
        folder: that `capture` wrote.

    Raises:
        FileNotFoundError: if there is no complete capture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.info = CaptureInfo(**json.loads((self.folder / "meta.json").read_text(encoding="utf-8")))
        self._store = ArrayFiles(self.folder, self.info.names)

    @staticmethod
    def is_complete(folder: Path) -> bool:
        """Whether `folder` holds a complete capture."""
        return (Path(folder) / "meta.json").is_file()

    def __len__(self) -> int:
        return len(self.info.names)

    def __getitem__(self, i: int) -> Mapping[str, NDArray[Any]]:
        """Arrays of the i-th image of the sample: `labels`, `entropy`, `mean_entropy`, `histogram` and `photo`."""
        return self._store[i]

    def photo(self, i: int) -> bytes:
        """JPEG file of the i-th image."""
        return self[i]["photo"].tobytes()


def capture(segmenter: Segmenter, images: Images, folder: Path, *, track: Track = untracked) -> Capture:
    """Predict a sample of the images and keep what a report needs; model and random state stay as they are.

    Args:
        segmenter: the model, on any device; predicts in evaluation mode.
        images: target images at the size that they are trained at.
        folder: of the capture. One that is complete and of the same weights and images is kept, another one replaced.
        track: shows progress.

    Returns:
        The capture. Per image: `labels` H×W uint8, 255 where it has no data; `entropy` h×w uint8, normalised
        entropy × 255, longer side 240 at most; `mean_entropy` in [0, 1]; `histogram` of the entropy of all pixels,
        `BINS` counts; `photo`, bytes of a JPEG file. Of images of more than 2 megapixels the centre is taken, see
        `center_window`.
    """
    chosen = evenly_spaced(len(images), SAMPLE)
    info = CaptureInfo(
        names=[images.names[i] for i in chosen],
        total=len(images),
        class_names=list(segmenter.class_names),
        model=segmenter.describe(),
        weights=weights_hash(segmenter.model),
    )
    if _is_of(folder, info):
        return Capture(folder)
    shutil.rmtree(folder, ignore_errors=True)
    store = ArrayFiles(folder, info.names)
    device = next(segmenter.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for n, i in enumerate(track(chosen, "predicting for the report", len(chosen))):
            store.write(n, _arrays(segmenter, *images.masked(i)))
    write_atomically(folder / "meta.json", json.dumps(asdict(info), ensure_ascii=False, indent=1))
    return Capture(folder)


def _is_of(folder: Path, info: CaptureInfo) -> bool:
    """Whether a folder holds this capture, whole."""
    try:
        return Capture(folder).info == info and all(
            ArrayFiles(folder, info.names).has(n) for n in range(len(info.names))
        )
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def evenly_spaced(total: int, count: int) -> list[int]:
    """Indices of at most `count` of `total` things, from the first to the last, in order."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})


def _arrays(segmenter: Segmenter, image: Pixel, valid: NDArray[np.bool_] | None) -> dict[str, NDArray[Any]]:
    """What is kept of an image; `valid` is false where it has no data, None if there is none such."""
    window = center_window(image.shape[:2], segmenter.num_classes)
    seen = np.ascontiguousarray(image[window])
    probs = predict_probs(segmenter, seen)
    labels = probs.argmax(dim=0).to(torch.uint8).cpu()
    entropy = entropy_of_probs(probs[None])[0].clamp(0, 1).float().cpu()
    there = torch.ones_like(labels, dtype=torch.bool) if valid is None else torch.from_numpy(valid[window].copy())
    known = entropy[there]
    return {
        "labels": labels.masked_fill(~there, IGNORE_INDEX).numpy(),
        "entropy": _shrunk(entropy.masked_fill(~there, 0), _HEAT_SIDE).mul(255).round().to(torch.uint8).numpy(),
        "mean_entropy": np.array(known.mean(dtype=torch.float64).item() if len(known) else 0.0),
        "histogram": torch.histc(known, BINS, 0, 1).numpy().astype(np.int64),
        "photo": np.frombuffer(_jpeg(as_rgb8(seen, segmenter.preprocess.rgb_bands)), np.uint8),
    }


def center_window(shape: Sequence[int], num_classes: int) -> tuple[slice, slice]:
    """Rows and columns of the central part of an image that is looked at; all of them up to 2 megapixels.

    Args:
        shape: (height, width).
        num_classes: C; with very many classes the part is smaller, so that its probabilities fit into memory.
    """
    height, width = shape
    factor = min(1.0, (min(_LARGEST, _VALUES // num_classes) / (height * width)) ** 0.5)
    rows, columns = max(1, int(height * factor)), max(1, int(width * factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def _shrunk(values: Tensor, side: int) -> Tensor:
    """Means over blocks, so that the longer side of H×W values is `side` at most."""
    factor = min(1.0, side / max(values.shape))
    height, width = (max(1, round(length * factor)) for length in values.shape)
    return F.adaptive_avg_pool2d(values[None].float(), (height, width))[0]


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
