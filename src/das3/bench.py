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
from das3.looks import LOOKS, PLAIN, TONES, ZOOMS, information, larger
from das3.moments import Moments
from das3.norms import reestimate, restored_statistics
from das3.segmenter import Segmenter

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
_MUCH_SURER = 0.07


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
        information: of image and class, see `das3.looks.information`.
        doubt: mean entropy, in [0, 1].
    """

    information: float
    doubt: float

    def exceeds(self, other: Insight, by: float) -> bool:
        """Whether it tells more, and is surer of the pixels too.

        What merely turns background into objects may show more of the classes, but leaves the model in doubt.
        """
        return self.information > other.information + by and self.doubt < other.doubt

    def surer_than(self, other: Insight, by: float, losing: float) -> bool:
        """Whether the doubt is smaller by this share of it, and no more than so much is lost of what it tells."""
        return self.doubt < (1 - by) * other.doubt and self.information > other.information - losing


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
        look: str | None = None,
    ) -> LabelStore:
        """Run the model over target images in evaluation mode and store what `label` makes of its prediction.

        Memory is constant: one batch of predictions is held at a time. What a killed run had stored is not made again;
        several processes share the work.

        Args:
            name: of the folder the labels are kept in.
            label: probabilities C×H×W float32 of one image → small arrays to store.
            groups: of images to label, from `groups`; all when None.
            look: of `das3.looks.LOOKS`; the images are shown so, the norm statistics re-estimated on images shown so.
                None shows them as they are, with the statistics that the model has.
        """
        store = LabelStore(self.folder / name, self.images.names)
        world, rank = self.fabric.world_size, self.fabric.global_rank
        # Whole groups are made anew, not single images: a batch of another size would round differently.
        chosen = self.groups() if groups is None else groups
        missing = [g for g in chosen[rank::world] if not all(store.has(i) for i in g)]
        was_training = self.segmenter.training
        self.segmenter.eval()
        batches = zip(missing, self.batches(missing), strict=True)
        with self._looking(look, self.some_groups() if groups is None else groups):
            for group, batch in self.track(batches, f"labelling ({name})", len(missing)):
                for i, probs in zip(group, self.predict(batch, look), strict=True):
                    store.write(i, {key: value.cpu().numpy() for key, value in label(probs).items()})
        self.segmenter.train(was_training)
        self.fabric.barrier()
        return store

    @contextmanager
    def _looking(self, look: str | None, groups: Sequence[Sequence[int]]) -> Iterator[None]:
        """The model's norm statistics are those of images shown so."""
        if look is None:
            yield
            return
        with restored_statistics(self.segmenter):
            reestimate(self.segmenter, (part for batch in self.batches(groups) for part in _shown(batch, look)))
            yield

    def habits(self, look: str | None = None) -> Habits:
        """The mean prediction in each cell of a grid and of each class, over `some_groups` of images, on the device.

        Few images say little of places, so `_UNPLACED` images in which every place is alike are counted along; of a
        class below a thousandth of the pixels, little can be said as well.

        Args:
            look: see `label_all`.
        """

        def summary(probs: Tensor) -> dict[str, Tensor]:
            won = torch.bincount(probs.argmax(dim=0).flatten(), minlength=probs.shape[0])
            return {"cells": F.adaptive_avg_pool2d(probs, _GRID), "won": won.float() / probs[0].numel()}

        groups = self.some_groups()
        store = self.label_all("habits", summary, groups=groups, look=look)
        told = [store[i] for group in groups for i in group]
        cells, won = (np.mean([one[key] for one in told], axis=0, dtype=np.float64) for key in ("cells", "won"))
        mean = cells.mean(axis=(1, 2))
        cells += _UNPLACED / len(told) * mean[:, None, None]
        cells = np.maximum(cells, 1e-6)
        both = cells / cells.sum(axis=0), (mean + _RARELY) / (won + _RARELY)
        return Habits(*(torch.tensor(values, dtype=torch.float32, device=self.fabric.device) for values in both))

    def insight(self, name: str, look: str | None = None) -> Insight:
        """How much the model makes of some images, as it is now.

        Args:
            name: of the folder that what it is computed from is kept in.
            look: see `label_all`.
        """

        def summary(probs: Tensor) -> dict[str, Tensor]:
            return {"mean": probs.mean(dim=(1, 2)), "entropy": entropy_of_probs(probs[None]).mean()}

        groups = self.some_groups(_FEW)
        store = self.label_all(name, summary, groups=groups, look=look)
        told = [store[i] for group in groups for i in group]
        means, entropies = (torch.from_numpy(np.stack([one[key] for one in told])) for key in ("mean", "entropy"))
        return Insight(information(means, entropies), entropies.mean().item())

    def best_look(self, *, tones: bool = True, zooms: bool = True) -> str | None:
        """How to show the model the images so that it makes more of them than as they are; None where that is best.

        The tone in which it clearly tells most of some of them, if there is one, and in it the zoom in which it is much
        surer; larger images are tried as long as each makes it surer than the one before.

        Args:
            tones: try those of `das3.looks.TONES`.
            zooms: try those of `das3.looks.ZOOMS`.
        """
        if not (tones or zooms):
            return None
        found = {tone: self.insight(f"looks/{tone}", tone) for tone in (TONES if tones else (PLAIN,))}
        better = [tone for tone in found if found[tone].exceeds(found[PLAIN], by=_CLEARLY)]
        tone = max(better, key=lambda tone: found[tone].information, default=PLAIN)
        best, doubt = None if tone == PLAIN else tone, found[tone].doubt
        for zoom in ZOOMS if zooms else ():
            look = larger(tone, zoom)
            seen = self.insight(f"looks/{look}", look)
            if not (seen.surer_than(found[tone], by=_MUCH_SURER, losing=_CLEARLY) and seen.doubt < doubt):
                break
            best, doubt = look, seen.doubt
        return best

    def predict(self, batch: Tensor, look: str | None = None) -> Tensor:
        """Probabilities B×C×H×W float32 of a batch of images, shown so."""
        parts = []
        for part in _shown(batch, look or PLAIN):
            with self.fabric.autocast():
                logits: Tensor = self.segmenter(part)
            if logits.shape[-2:] != batch.shape[-2:]:
                logits = F.interpolate(logits, size=batch.shape[-2:], mode="bilinear", align_corners=False)
            parts.append(logits.float().softmax(dim=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _shown(batch: Tensor, look: str) -> Sequence[Tensor]:
    """A batch of images shown so, in parts that are no larger than the batch where they can be."""
    images = LOOKS[look](batch)
    return torch.split(images, max(1, batch.numel() // images[0].numel()))
