"""What a stage works with: the model, the target images, a folder, and the few things every method does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from das3.data.samples import Maps, Samples, View
from das3.entropy import entropy_of_probs
from das3.label_store import LabelStore
from das3.moments import Moments
from das3.norms import reestimate, restored_statistics
from das3.refine import refined
from das3.segmenter import Segmenter
from das3.tones import PLAIN, TONES, information

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from das3.data.images import Images
    from das3.stages.base import StageOptions

__all__ = ["Bench", "Habits", "Insight"]

T = TypeVar("T")

_GRID = 8
_UNPLACED = 8
_RARELY = 1e-3
_ENOUGH = 500
_FEW = 100
_CLEARLY = 0.01


def _no_progress(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    return items


class Habits(NamedTuple):
    """What a model makes of all target images together, see `Bench.habits`.

    Attributes:
        layout: C×8×8 shares > 0: where it sees which class, of sum 1 in each cell of the grid.
        shortfall: C, above 0: how many times more often it predicts a class, on the mean, than that class wins a pixel.
    """

    layout: Tensor
    shortfall: Tensor


class Insight(NamedTuple):
    """How much a model makes of the target images, see `Bench.insight`.

    Attributes:
        information: of image and class, see `das3.tones.information`.
        doubt: mean entropy, in [0, 1].
    """

    information: float
    doubt: float

    def exceeds(self, other: Insight, by: float) -> bool:
        """Whether it tells more, and is surer of the pixels too.

        What merely turns background into objects may show more of the classes, but leaves the model in doubt.
        """
        return self.information > other.information + by and self.doubt < other.doubt


@dataclass
class Bench:
    """A stage's workbench. It holds target images and no labels: there is nothing here to cheat with.

    Attributes:
        fabric: device, precision and processes.
        segmenter: the model as it enters the stage, on the device.
        images: target images at the size they are trained at, H×W×3 uint8.
        folder: where the stage keeps what it prepares; survives a kill.
        seed: everything random in the stage depends on it.
        crop: (height, width) of training samples.
        batch_size: samples per batch on this process.
        source_moments: what the batch-norm layers remembered of the source when the model came in.
        track: wraps a long iteration to show its progress.
    """

    fabric: Fabric
    segmenter: Segmenter
    images: Images
    folder: Path
    seed: tuple[int, ...]
    crop: tuple[int, int]
    batch_size: int = 8
    source_moments: Sequence[Moments] = ()
    track: Callable[[Iterable[T], str, int], Iterable[T]] = field(default=_no_progress)

    def samples(self, options: StageOptions, maps: Maps | None = None, order: Sequence[int] | None = None) -> Samples:
        """Training samples of the target images, augmented as the options say."""
        return Samples(self.images, self.view(options), seed=self.seed, maps=maps, order=order)

    def view(self, options: StageOptions) -> View:
        """How a sample is cut, as the options say."""
        return View(self.crop, scale=options.scale, color=options.color, blur=options.blur)

    def groups(self) -> list[list[int]]:
        """Indices of all images in batches: consecutive ones of equal size together."""
        groups: list[list[int]] = []
        sizes = self.images.sizes()
        for i, size in enumerate(sizes):
            if groups and len(groups[-1]) < self.batch_size and sizes[groups[-1][0]] == size:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def some_groups(self, enough: int = _ENOUGH) -> list[list[int]]:
        """Every n-th of `groups`, so that they are about `enough` images: for means over many pixels of each."""
        groups = self.groups()
        return groups[:: max(1, round(len(self.images) / enough))]

    def batches(self, groups: Sequence[Sequence[int]] | None = None) -> Iterator[Tensor]:
        """Whole images B×3×H×W float32 in [0, 1] on the device, a batch per group; all groups when None."""
        for group in groups if groups is not None else self.groups():
            yield self._stack([self.images[i] for i in group])

    def _stack(self, arrays: list[NDArray[np.uint8]]) -> Tensor:
        batch = torch.from_numpy(np.stack(arrays)).to(self.fabric.device)
        return batch.permute(0, 3, 1, 2).float().div_(255)

    @torch.no_grad()
    def label_all(
        self,
        name: str,
        label: Callable[[Tensor], dict[str, Tensor]],
        *,
        groups: Sequence[Sequence[int]] | None = None,
        tone: str | None = None,
        refine: bool = False,
    ) -> LabelStore:
        """Run the model over target images in evaluation mode and store what `label` makes of its prediction.

        Memory is constant: one batch of predictions is held at a time. What a killed run had stored is not made again;
        several processes share the work.

        Args:
            name: of the folder the labels are kept in.
            label: probabilities C×H×W float32 of one image → small arrays to store.
            groups: of images to label, from `groups`; all when None.
            tone: of `das3.tones.TONES`; the images are shown in it, the norm statistics re-estimated on images in it.
                None shows them as they are, with the statistics that the model has.
            refine: by the image's colours and edges, see `das3.refine`.
        """
        store = LabelStore(self.folder / name, self.images.names)
        world, rank = self.fabric.world_size, self.fabric.global_rank
        # Whole groups are made anew, not single images: a batch of another size would round differently.
        chosen = self.groups() if groups is None else groups
        missing = [g for g in chosen[rank::world] if not all(store.has(i) for i in g)]
        was_training = self.segmenter.training
        self.segmenter.eval()
        batches = zip(missing, self.batches(missing), strict=True)
        with self._in_tone(tone, self.some_groups() if groups is None else groups):
            for group, batch in self.track(batches, f"labelling ({name})", len(missing)):
                for i, image, predicted in zip(group, batch, self.predict(batch, tone), strict=True):
                    probs = refined(predicted, image) if refine else predicted
                    store.write(i, {key: value.cpu().numpy() for key, value in label(probs).items()})
        self.segmenter.train(was_training)
        self.fabric.barrier()
        return store

    @contextmanager
    def _in_tone(self, tone: str | None, groups: Sequence[Sequence[int]]) -> Iterator[None]:
        """The model's norm statistics are those of images in the tone."""
        if tone is None:
            yield
            return
        with restored_statistics(self.segmenter):
            reestimate(self.segmenter, (TONES[tone](batch) for batch in self.batches(groups)))
            yield

    def habits(self, tone: str | None = None) -> Habits:
        """The mean prediction in each cell of a grid and of each class, over `some_groups` of images, on the device.

        Few images say little of places, so `_UNPLACED` images in which every place is alike are counted along; of a
        class below a thousandth of the pixels, little can be said as well.

        Args:
            tone: see `label_all`.
        """

        def summary(probs: Tensor) -> dict[str, Tensor]:
            won = torch.bincount(probs.argmax(dim=0).flatten(), minlength=probs.shape[0])
            return {"cells": F.adaptive_avg_pool2d(probs, _GRID), "won": won.float() / probs[0].numel()}

        groups = self.some_groups()
        store = self.label_all("habits", summary, groups=groups, tone=tone)
        told = [store[i] for group in groups for i in group]
        cells, won = (np.mean([one[key] for one in told], axis=0, dtype=np.float64) for key in ("cells", "won"))
        mean = cells.mean(axis=(1, 2))
        cells += _UNPLACED / len(told) * mean[:, None, None]
        cells = np.maximum(cells, 1e-6)
        both = cells / cells.sum(axis=0), (mean + _RARELY) / (won + _RARELY)
        return Habits(*(torch.tensor(values, dtype=torch.float32, device=self.fabric.device) for values in both))

    def insight(self, name: str, tone: str | None = None) -> Insight:
        """How much the model makes of some images, as it is now.

        Args:
            name: of the folder that what it is computed from is kept in.
            tone: see `label_all`.
        """

        def summary(probs: Tensor) -> dict[str, Tensor]:
            return {"mean": probs.mean(dim=(1, 2)), "entropy": entropy_of_probs(probs[None]).mean()}

        groups = self.some_groups(_FEW)
        store = self.label_all(name, summary, groups=groups, tone=tone)
        told = [store[i] for group in groups for i in group]
        means, entropies = (torch.from_numpy(np.stack([one[key] for one in told])) for key in ("mean", "entropy"))
        return Insight(information(means, entropies), entropies.mean().item())

    def best_tone(self) -> str | None:
        """The tone of `das3.tones.TONES` in which the model clearly makes more of some images than of plain ones.

        None where there is none, as often.
        """
        found = {tone: self.insight(f"tones/{tone}", tone) for tone in TONES}
        better = [tone for tone in TONES if found[tone].exceeds(found[PLAIN], by=_CLEARLY)]
        return max(better, key=lambda tone: found[tone].information, default=None)

    def predict(self, batch: Tensor, tone: str | None = None) -> Tensor:
        """Probabilities B×C×H×W float32 of a batch of images shown in the tone."""
        with self.fabric.autocast():
            logits: Tensor = self.segmenter(TONES[tone or PLAIN](batch))
        return logits.float().softmax(dim=1)
