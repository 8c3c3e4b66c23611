"""What a stage works with: the model, the target images, a folder, and the passes over images that methods share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from das3.data.array_files import ArrayFiles
from das3.data.images import Images
from das3.data.label_store import LabelStore
from das3.data.pixels import to_unit
from das3.data.samples import Augmentation, Maps, Samples
from das3.distributed import spare_cores, sum_over_processes, wait_for_all
from das3.halves import in_halves
from das3.input_transforms import IDENTITY, InputTransform
from das3.norms import batch_statistics, reestimate, restored_running_statistics
from das3.segmenter import Segmenter, evaluating
from das3.stages.image_views import TransformedImages
from das3.stages.labelling import Label, ToHost, joined, labels_of_data, of_each, writing
from das3.stages.options import StageOptions
from das3.stages.read_ahead import read_ahead

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["StageContext"]

T = TypeVar("T")

_Labelled = tuple[Sequence[int], list[dict[str, NDArray[Any]]]]

MAX_IMAGES_FOR_STATISTICS = 140
"""Approximate number of images, evenly spaced, for means over many pixels."""

SUMMARIES_PER_FILE = 1000
"""Images whose few numbers are kept in one file."""

LABELLED_AT_ONCE = 2**27
"""Probabilities that labels are made of at once on a GPU, unless an image has more: 512 MiB, and as much again for each
step that keeps a copy."""

PREDICTED_AT_ONCE = 3 * 2**26
BATCHES_AT_ONCE = 4
"""Probabilities that a GPU predicts at once, and pixels in batches of training, if several batches together have no
more: with few images a network is done before Python has asked for its next layers, which it does in turns with threads
that read and write. Training keeps what every layer found, so that four times its pixels take less memory."""

_OWN_STREAM = (0, 3, 0)
"""Numbers after (seed, phase): `Samples` has (…, 0 … 2, …) in the middle, the loop's steps have one number alone."""


def _no_progress(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    return items


@dataclass
class StageContext:
    """Everything that a stage has access to: the model and target images, but no labels and no source data.

    Attributes:
        fabric: device, precision and processes.
        segmenter: the incoming model, on the device.
        images: target images at the size they are trained at, see `das3.data.images.Images`.
        folder: where the stage stores what it prepares; it is kept if the run is interrupted.
        seed: (seed of the run, number of the phase); everything random in the stage depends on it.
        crop: (height, width) of training samples.
        batch_size: images per batch, of all processes together, so that labels do not depend on how many there are.
        accumulate: batches per step.
        track: wraps a long iteration to show its progress.
        transform: applied to images before they enter the model, with norm statistics re-estimated on transformed
            images; None leaves images and statistics unchanged.
        own_statistics: predict under each batch's own norm statistics, which saves the pass that re-estimates them.
    """

    fabric: Fabric
    segmenter: Segmenter
    images: Images
    folder: Path
    seed: tuple[int, ...]
    crop: tuple[int, int]
    batch_size: int = 8
    track: Callable[[Iterable[T], str, int], Iterable[T]] = field(default=_no_progress)
    transform: InputTransform | None = None
    accumulate: int = 1
    own_statistics: bool = False

    @property
    def transform_name(self) -> str:
        """Name of the input transform."""
        return self.transform.name if self.transform else IDENTITY

    def random_seed(self) -> int:
        """One number for `torch.manual_seed`, another one for every pair (seed, phase)."""
        return int(np.random.SeedSequence([*self.seed, *_OWN_STREAM]).generate_state(1, np.uint64)[0]) >> 1

    def samples(self, options: StageOptions, maps: Maps | None = None, order: Sequence[int] | None = None) -> Samples:
        """Training samples of the target images, augmented by the options; upscaling applies to labels only."""
        images = self.images
        if self.transform is not None:
            images = TransformedImages(self.images, replace(self.transform, upscale=1.0))
        return Samples(images, self.augmentation(options), seed=self.seed, maps=maps, order=order)

    def augmentation(self, options: StageOptions) -> Augmentation:
        """Crop and augmentation of a sample, by the options."""
        return Augmentation(self.crop, scale=options.scale, color=options.color, blur=options.blur, rgb=self.rgb)

    @property
    def rgb(self) -> tuple[int, int, int] | None:
        """Indices of the bands that are red, green and blue; None where the network takes RGB alone."""
        return None if self.segmenter.in_channels == 3 else self.segmenter.preprocess.rgb_bands

    def groups(self) -> list[list[int]]:
        """Indices of all images in batches: consecutive ones of equal size together."""
        return self.groups_of(range(len(self.images)))

    def groups_of(self, indices: Iterable[int]) -> list[list[int]]:
        """The same of some images, by their indices."""
        groups: list[list[int]] = []
        sizes = self.images.sizes()
        for i in indices:
            size = sizes[i]
            if groups and len(groups[-1]) < self.batch_size and sizes[groups[-1][0]] == size:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def subset_groups(self, images: int = MAX_IMAGES_FOR_STATISTICS) -> list[list[int]]:
        """Every n-th of `groups`, so that they hold about this many images."""
        groups = self.groups()
        return groups[:: max(1, round(len(self.images) / images))]

    def drawn_groups(self, samples: Samples, steps: int) -> list[list[int]]:
        """`groups` of the images that so many steps draw: of a very large set most are never seen.

        Args:
            samples: that the steps take, in order from number 0.
            steps: of the stage.
        """
        if self.draws_all(steps) or samples.rare is not None:
            return self.groups()
        return self.groups_of(sorted(samples.drawn(self.draws(steps))))

    def draws(self, steps: int) -> int:
        """Samples that so many steps draw."""
        return steps * self.batch_size * self.accumulate

    def draws_all(self, steps: int) -> bool:
        """Whether so many steps draw as many samples as there are images, or more."""
        return self.draws(steps) >= len(self.images)

    def own_share(self, groups: Sequence[T]) -> Sequence[T]:
        """The groups, or parts of them, that this process works on."""
        return groups[self.fabric.global_rank :: self.fabric.world_size]

    def batches(self, groups: Sequence[Sequence[int]] | None = None) -> Iterator[Tensor]:
        """Whole images B×K×H×W float32 in [0, 1] on the device, a batch per group; all groups when None."""
        for batch, _ in self._masked_batches(groups if groups is not None else self.groups()):
            yield batch

    def _masked_batches(self, groups: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        """The same, with H×W on the device of each image, false where there is no data; None where there is all."""
        device = self.fabric.device
        for pixels, masks in read_ahead(self.images, groups, self.fabric):
            batch = to_unit(pixels.to(device, non_blocking=True).permute(0, 3, 1, 2))
            yield batch, [None if m is None else torch.from_numpy(m).to(device) for m in masks]

    @torch.no_grad()
    def label_all(
        self,
        name: str,
        label: Label,
        *,
        groups: Sequence[Sequence[int]] | None = None,
        batched: bool = False,
    ) -> LabelStore:
        """Run the model over target images in evaluation mode and store `label` of each prediction.

        Memory is constant: one batch of predictions is held at a time. Threads write labels while the next are made.
        What an interrupted run had stored is kept; several processes share the work.

        Args:
            name: of the folder the labels are kept in.
            label: probabilities C×H×W float32 of one image → small arrays to store.
            groups: of images to label, from `groups`; all when None.
            batched: `label` takes B×C×H×W and returns arrays B×…: fewer launches on a GPU.
        """
        store = LabelStore(self.folder / name, self.images.names, writer=self.fabric.global_rank)
        # Whole groups are made anew, not single images: a batch of another size would round differently.
        chosen = self.groups() if groups is None else groups
        missing = [g for g in self.own_share(self.at_once(chosen)) if not all(store.has(i) for i in g)]
        if self._is_needed(missing):
            made = self._labels(missing, label if batched else of_each(label), name, of=chosen)
            with made as labels, writing(store, max(2, spare_cores(self.fabric.device))) as write:
                for group, found in labels:
                    for i, arrays in zip(group, found, strict=True):
                        write(i, arrays)
            wait_for_all()
            store.refresh()
        return store

    @torch.no_grad()
    def summarize(
        self,
        name: str,
        summary: Label,
        *,
        groups: Sequence[Sequence[int]] | None = None,
        per_file: int = SUMMARIES_PER_FILE,
        batched: bool = False,
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """As `label_all`, for a few numbers per image, which are kept of many images in one file.

        Args:
            name: of the folder they are kept in.
            summary: probabilities C×H×W float32 of one image → small arrays, of the same shapes for all images.
            groups: of images, from `groups`; all when None.
            per_file: about how many images a file is of; so many are held in memory.
            batched: as for `label_all`.

        Returns:
            The arrays of each image, in the order of the groups; read file by file.
        """
        chosen = self.groups() if groups is None else groups
        parts = [self.at_once(part) for part in self._parts(chosen, per_file)]
        store = ArrayFiles(self.folder / name, [f"{p[0][0]}-{p[-1][-1]}-{sum(map(len, p))}" for p in parts])
        missing = [k for k in self.own_share(range(len(parts))) if not store.has(k)]
        if self._is_needed(missing):
            of_missing = [group for k in missing for group in parts[k]]
            with self._labels(of_missing, summary if batched else of_each(summary), name, of=chosen) as labels:
                for k in missing:
                    made = [one for _ in parts[k] for one in next(labels)[1]]
                    store.write(k, {key: np.stack([one[key] for one in made]) for key in made[0]})
                next(labels, None)
            wait_for_all()
        return (
            {key: values[i] for key, values in arrays.items()}
            for arrays in store
            for i in range(len(next(iter(arrays.values()))))
        )

    def _parts(self, groups: Sequence[Sequence[int]], per_part: int) -> list[list[list[int]]]:
        """Consecutive groups, of about so many images together, and of fewer if there are processes without any."""
        share = -(-sum(map(len, groups)) // self.fabric.world_size)
        parts: list[list[list[int]]] = []
        for group in groups:
            if parts and sum(map(len, parts[-1])) + len(group) <= min(share, per_part):
                parts[-1].append(list(group))
            else:
                parts.append([list(group)])
        return parts

    def at_once(self, groups: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Groups that follow each other as one, as many as a GPU may predict at once."""
        if self.fabric.device.type == "cpu" or self.own_statistics:
            return groups
        height, width = self.crop
        most = min(PREDICTED_AT_ONCE // self.segmenter.num_classes, BATCHES_AT_ONCE * self.batch_size * height * width)
        return joined(groups, self.images.sizes(), most)

    def _is_needed(self, missing: Sequence[object]) -> bool:
        """Whether any process has something to do: all of them share out the statistics of transformed images."""
        return bool(int(sum_over_processes(torch.tensor(len(missing), device=self.fabric.device))))

    @contextmanager
    def _labels(
        self,
        groups: Sequence[Sequence[int]],
        label: Label,
        name: str,
        *,
        of: Sequence[Sequence[int]],
    ) -> Iterator[Iterator[_Labelled]]:
        """Groups, each with what `label` makes of the predictions of its images; `of` are those of all processes."""

        def made() -> Generator[_Labelled, None, None]:
            # One batch behind: while its labels come from a GPU, the next batch is on its way there.
            behind: tuple[Sequence[int], ToHost] | None = None
            batches = zip(groups, self._masked_batches(groups), strict=True)
            for group, (batch, masks) in self.track(batches, f"labelling ({name})", len(groups)):
                found = self._labelled(batch, masks, label)
                done, behind = behind, (group, ToHost(*zip(*found, strict=True)))
                if done:
                    yield done[0], done[1].arrays()
            if behind:
                yield behind[0], behind[1].arrays()

        many = sum(map(len, of)) > MAX_IMAGES_FOR_STATISTICS
        transformed = self._transformed_statistics(self.subset_groups() if many else of)
        with evaluating(self.segmenter), transformed, closing(made()) as labels:
            yield labels

    def _labelled(
        self, batch: Tensor, masks: Sequence[Tensor | None], label: Label
    ) -> list[tuple[dict[str, Tensor], int]]:
        """Labels of parts of a batch, and of how many images each is; of halves, if the memory does not hold it."""

        def labelled(images: slice) -> list[tuple[dict[str, Tensor], int]]:
            found = []
            for part, valid in self._parts_to_label(self.logits(batch[images]), masks[images]):
                probs = part.softmax(dim=1)
                found.append((label(probs) if valid is None else labels_of_data(label, probs, valid), len(probs)))
            return found

        if self.own_statistics:  # of the whole batch
            return labelled(slice(None))
        return in_halves(labelled, len(batch))

    def _parts_to_label(self, logits: Tensor, masks: Sequence[Tensor | None]) -> Iterable[tuple[Tensor, Tensor | None]]:
        """A batch in parts that take little memory.

        One image each where pixels of some do not count, and on a CPU, whose cache holds one.
        """
        if self.fabric.device.type == "cpu" or any(mask is not None for mask in masks):
            return zip(logits.split(1), masks, strict=True)
        return [(part, None) for part in logits.split(max(1, LABELLED_AT_ONCE // logits[0].numel()))]

    @contextmanager
    def _transformed_statistics(self, groups: Sequence[Sequence[int]]) -> Iterator[None]:
        """Context in which the model's norm statistics are those of transformed images, if there is a transform."""
        if self.own_statistics:
            with batch_statistics(self.segmenter):
                yield
            return
        if self.transform is None:
            yield
            return
        with restored_running_statistics(self.segmenter):
            self.reestimate_bn(groups)
            yield

    def reestimate_bn(self, groups: Sequence[Sequence[int]] | None = None, *, target_weight: float = 1.0) -> None:
        """Re-estimate the batch-norm statistics on (transformed) images; on `subset_groups` when None.

        Args:
            groups: of images, from `groups`.
            target_weight: weight of the new statistics; the old ones have the rest.
        """
        batches = self.batches(self.own_share(self.subset_groups() if groups is None else groups))
        with self.fabric.autocast():
            reestimate(
                self.segmenter,
                (part for batch in batches for part in self._transformed(batch)),
                target_weight=target_weight,
            )

    def logits(self, batch: Tensor) -> Tensor:
        """Logits B×C×H×W float32 of a batch of images, at their size."""
        parts = []
        for part in self._transformed(batch):
            with self.fabric.autocast():
                logits: Tensor = self.segmenter(part)
            if logits.shape[-2:] != batch.shape[-2:]:
                logits = F.interpolate(logits, size=batch.shape[-2:], mode="bilinear", align_corners=False)
            parts.append(logits.float())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _transformed(self, batch: Tensor) -> Sequence[Tensor]:
        """A batch of transformed images, in parts with no more pixels than the batch, where possible."""
        images = batch if self.transform is None else self.transform(batch)
        return torch.split(images, max(1, batch.numel() // images[0].numel()))
