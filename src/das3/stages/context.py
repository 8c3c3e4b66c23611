"""What a stage works with: the model, the target images, a folder, and the few things every method does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from das3.baselines.bn_statistics import BatchNormStatistics
from das3.data.images import Images
from das3.data.label_store import LabelStore
from das3.data.samples import Augmentation, Maps, Samples
from das3.input_transforms import (
    COLOR_TRANSFORMS,
    PLAIN,
    UPSCALE_FACTORS,
    InputTransform,
    estimate_illumination,
    information,
)
from das3.losses import entropy_of_probs
from das3.norms import reestimate, restored_running_statistics
from das3.segmenter import Segmenter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from das3.stages.options import StageOptions

__all__ = ["StageContext", "ClassPriors", "ConfidenceStatistics"]

T = TypeVar("T")

_GRID = 8
_UNPLACED = 8
_RARELY = 1e-3
_ENOUGH = 500
_FEW = 50
_CLEARLY = 0.01
_MUCH_SURER = 0.07
_LITTLE = 0.05
_MOST_TONES = 3


def _no_progress(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    return items


class ClassPriors(NamedTuple):
    """What a model makes of all target images together, see `StageContext.habits`.

    Attributes:
        layout: C×8×8 shares > 0: where it sees which class, of sum 1 in each cell of the grid.
        underprediction_ratio: C, above 0: how many times more often it predicts a class, on the mean, than that class wins a pixel.
    """

    layout: Tensor
    underprediction_ratio: Tensor


class ConfidenceStatistics(NamedTuple):
    """How much a model makes of the target images, see `StageContext.insight`.

    Attributes:
        information: of image and class, see `das3.input_transforms.information`.
        doubt: mean entropy, in [0, 1].
    """

    information: float
    doubt: float

    def improves_on(self, other: ConfidenceStatistics, by: float) -> bool:
        """Whether it tells more, and is surer of the pixels too.

        What merely turns background into objects may show more of the classes, but leaves the model in doubt.
        """
        return self.information > other.information + by and self.doubt < other.doubt

    @property
    def told(self) -> float:
        """What it tells as a share of what there is to tell by the classes it sees, which a rare class makes small."""
        return self.information / max(self.information + self.doubt, 1e-9)

    def is_more_confident_than(self, other: ConfidenceStatistics) -> bool:
        """Whether there is much less doubt, and little less is told of what is seen, as where one class is all."""
        return self.doubt < (1 - _MUCH_SURER) * other.doubt and self.told > other.told - _LITTLE


@dataclass
class StageContext:
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
        look: how the images are shown, on norm statistics re-estimated on images shown so; None shows them as they are,
            on the statistics that the model has.
    """

    fabric: Fabric
    segmenter: Segmenter
    images: Images
    folder: Path
    seed: tuple[int, ...]
    crop: tuple[int, int]
    batch_size: int = 8
    source_moments: Sequence[BatchNormStatistics] = ()
    track: Callable[[Iterable[T], str, int], Iterable[T]] = field(default=_no_progress)
    look: InputTransform | None = None

    def samples(self, options: StageOptions, maps: Maps | None = None, order: Sequence[int] | None = None) -> Samples:
        """Training samples of the target images, augmented as the options say; zooms are for labels alone."""
        images = self.images if self.look is None else _Shown(self.images, replace(self.look, zoom=1.0))
        return Samples(images, self.view(options), seed=self.seed, maps=maps, order=order)

    def view(self, options: StageOptions) -> Augmentation:
        """How a sample is cut, as the options say."""
        return Augmentation(self.crop, scale=options.scale, color=options.color, blur=options.blur)

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

    def subset_groups(self, enough: int = _ENOUGH) -> list[list[int]]:
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
        self, name: str, label: Callable[[Tensor], dict[str, Tensor]], *, groups: Sequence[Sequence[int]] | None = None
    ) -> LabelStore:
        """Run the model over target images in evaluation mode and store what `label` makes of its prediction.

        Memory is constant: one batch of predictions is held at a time. What a killed run had stored is not made again;
        several processes share the work.

        Args:
            name: of the folder the labels are kept in.
            label: probabilities C×H×W float32 of one image → small arrays to store.
            groups: of images to label, from `groups`; all when None.
        """
        store = LabelStore(self.folder / name, self.images.names)
        world, rank = self.fabric.world_size, self.fabric.global_rank
        # Whole groups are made anew, not single images: a batch of another size would round differently.
        chosen = self.groups() if groups is None else groups
        missing = [g for g in chosen[rank::world] if not all(store.has(i) for i in g)]
        was_training = self.segmenter.training
        self.segmenter.eval()
        batches = zip(missing, self.batches(missing), strict=True)
        with self._transformed_statistics(self.subset_groups() if groups is None else groups):
            for group, batch in self.track(batches, f"labelling ({name})", len(missing)):
                for i, probs in zip(group, self.predict(batch), strict=True):
                    store.write(i, {key: value.cpu().numpy() for key, value in label(probs).items()})
        self.segmenter.train(was_training)
        self.fabric.barrier()
        return store

    @contextmanager
    def _transformed_statistics(self, groups: Sequence[Sequence[int]]) -> Iterator[None]:
        """The model's norm statistics are those of images shown so, if there is a look."""
        if self.look is None:
            yield
            return
        with restored_running_statistics(self.segmenter):
            self.reestimate(groups)
            yield

    def reestimate(self, groups: Sequence[Sequence[int]] | None = None) -> None:
        """Norm statistics of images as they are shown; of `subset_groups` when None."""
        batches = self.batches(self.subset_groups() if groups is None else groups)
        reestimate(self.segmenter, (part for batch in batches for part in self._shown(batch)))

    def habits(self) -> ClassPriors:
        """The mean prediction in each cell of a grid and of each class, over `subset_groups` of images, on the device.

        Few images say little of places, so `_UNPLACED` images in which every place is alike are counted along; of a
        class below a thousandth of the pixels, little can be said as well.
        """

        def summary(probs: Tensor) -> dict[str, Tensor]:
            won = torch.bincount(probs.argmax(dim=0).flatten(), minlength=probs.shape[0])
            return {"cells": F.adaptive_avg_pool2d(probs, _GRID), "won": won.float() / probs[0].numel()}

        groups = self.subset_groups()
        store = self.label_all("habits", summary, groups=groups)
        told = [store[i] for group in groups for i in group]
        cells, won = (np.mean([one[key] for one in told], axis=0, dtype=np.float64) for key in ("cells", "won"))
        mean = cells.mean(axis=(1, 2))
        cells += _UNPLACED / len(told) * mean[:, None, None]
        cells = np.maximum(cells, 1e-6)
        both = cells / cells.sum(axis=0), (mean + _RARELY) / (won + _RARELY)
        return ClassPriors(*(torch.tensor(values, dtype=torch.float32, device=self.fabric.device) for values in both))

    def insight(self, name: str) -> ConfidenceStatistics:
        """How much the model makes of some images, as it is now.

        Args:
            name: of the folder that what it is computed from is kept in.
        """

        def summary(probs: Tensor) -> dict[str, Tensor]:
            return {"mean": probs.mean(dim=(1, 2)), "entropy": entropy_of_probs(probs[None]).mean()}

        groups = self.subset_groups(_FEW)
        store = self.label_all(name, summary, groups=groups)
        told = [store[i] for group in groups for i in group]
        means, entropies = (torch.from_numpy(np.stack([one[key] for one in told])) for key in ("mean", "entropy"))
        return ConfidenceStatistics(information(means, entropies), entropies.mean().item())

    def choose_input_transform(self, *, tones: bool = True, zooms: bool = True) -> StageContext:
        """The context with the images shown so that the model makes more of them than as they are; itself if there is no
        such look.

        Evenly lit, if the model is much surer of them then and tells little less of what it sees. So lit or not, in the
        tone in which it clearly tells most of some of them, on top of it in another, up to three. And larger, as long
        as each zoom makes it much surer than the one before.

        Args:
            tones: try even light, see `das3.input_transforms.estimate_illumination`, and those of `das3.input_transforms.COLOR_TRANSFORMS`.
            zooms: try those of `das3.input_transforms.UPSCALE_FACTORS`.
        """
        if not (tones or zooms):
            return self
        best = InputTransform()
        told = self._asked(best)
        if tones:
            even = InputTransform(light=estimate_illumination(self.batches(self.subset_groups())))
            seen = self._asked(even)
            if seen.is_more_confident_than(told):
                best, told = even, seen
        while tones and len(best.tones) < _MOST_TONES:
            looks = [replace(best, tones=(*best.tones, tone)) for tone in COLOR_TRANSFORMS]
            found = {look: seen for look in looks if (seen := self._asked(look)).improves_on(told, by=_CLEARLY)}
            if not found:
                break
            best = max(found, key=lambda look: found[look].information)
            told = found[best]
        for zoom in UPSCALE_FACTORS if zooms else ():
            larger = replace(best, zoom=zoom)
            if not self.segmenter.takes(*larger.size(self.images.size(0))):
                break
            seen = self._asked(larger)
            if not seen.is_more_confident_than(told):
                break
            best, told = larger, seen
        return self if best.name == PLAIN else replace(self, look=best)

    @property
    def transform_name(self) -> str:
        """Name of the look that the images are shown in."""
        return self.look.name if self.look else PLAIN

    def _asked(self, look: InputTransform) -> ConfidenceStatistics:
        return replace(self, look=look).insight(f"looks/{look.name}")

    def predict(self, batch: Tensor) -> Tensor:
        """Probabilities B×C×H×W float32 of a batch of images."""
        parts = []
        for part in self._shown(batch):
            with self.fabric.autocast():
                logits: Tensor = self.segmenter(part)
            if logits.shape[-2:] != batch.shape[-2:]:
                logits = F.interpolate(logits, size=batch.shape[-2:], mode="bilinear", align_corners=False)
            parts.append(logits.float().softmax(dim=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shown(self, batch: Tensor) -> Sequence[Tensor]:
        """A batch of images as they are shown, in parts that are no larger than the batch where they can be."""
        images = batch if self.look is None else self.look(batch)
        return torch.split(images, max(1, batch.numel() // images[0].numel()))


class _Shown(Images):
    """Images shown in a look of zoom 1, H×W×3 uint8 as all are."""

    def __init__(self, images: Images, look: InputTransform) -> None:
        super().__init__(images.names)
        self.images, self.look = images, look

    def __getitem__(self, i: int) -> NDArray[np.uint8]:  # type: ignore[override]
        batch = torch.from_numpy(self.images[i]).permute(2, 0, 1)[None].float().div_(255)
        shown: NDArray[np.uint8] = self.look(batch)[0].mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        return shown

    def size(self, i: int) -> tuple[int, int]:
        """The image's own."""
        return self.images.size(i)
