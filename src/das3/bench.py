"""What a stage works with: the model, the target images, a folder, and the few things every method does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from das3.data.samples import Maps, Samples, View
from das3.label_store import LabelStore
from das3.segmenter import Segmenter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from das3.data.images import Images
    from das3.stages.base import StageOptions

__all__ = ["Bench"]

T = TypeVar("T")


def _no_progress(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    return items


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
        track: wraps a long iteration to show its progress.
    """

    fabric: Fabric
    segmenter: Segmenter
    images: Images
    folder: Path
    seed: tuple[int, ...]
    crop: tuple[int, int]
    batch_size: int = 8
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

    def batches(self, groups: Sequence[Sequence[int]] | None = None) -> Iterator[Tensor]:
        """Whole images B×3×H×W float32 in [0, 1] on the device, a batch per group; all groups when None."""
        for group in groups if groups is not None else self.groups():
            yield self._stack([self.images[i] for i in group])

    def _stack(self, arrays: list[NDArray[np.uint8]]) -> Tensor:
        batch = torch.from_numpy(np.stack(arrays)).to(self.fabric.device)
        return batch.permute(0, 3, 1, 2).float().div_(255)

    @torch.no_grad()
    def label_all(self, name: str, label: Callable[[Tensor], dict[str, Tensor]], *, flip: bool = False) -> LabelStore:
        """Run the model over every target image in evaluation mode and store what `label` makes of its prediction.

        Memory is constant: one batch of predictions is held at a time. What a killed run had stored is not made again;
        several processes share the work.

        Args:
            name: of the folder the labels are kept in.
            label: probabilities C×H×W float32 of one image → small arrays to store.
            flip: average the prediction with the mirrored image's.
        """
        store = LabelStore(self.folder / name, self.images.names)
        world, rank = self.fabric.world_size, self.fabric.global_rank
        # Whole groups are made anew, not single images: a batch of another size would round differently.
        missing = [g for g in self.groups()[rank::world] if not all(store.has(i) for i in g)]
        was_training = self.segmenter.training
        self.segmenter.eval()
        batches = zip(missing, self.batches(missing), strict=True)
        for group, batch in self.track(batches, f"labelling ({name})", len(missing)):
            for i, probs in zip(group, self.predict(batch, flip=flip), strict=True):
                store.write(i, {key: value.cpu().numpy() for key, value in label(probs).items()})
        self.segmenter.train(was_training)
        self.fabric.barrier()
        return store

    def class_shares(self) -> Tensor:
        """The model's mean prediction over all target images: C values > 0 with sum 1, on the device."""
        store = self.label_all("shares", lambda probs: {"mean": probs.mean(dim=(1, 2))})
        mean = np.mean([store[i]["mean"] for i in range(len(store))], axis=0, dtype=np.float64)
        shares = torch.tensor(mean, dtype=torch.float32, device=self.fabric.device).clamp(min=1e-6)
        return shares / shares.sum()

    def predict(self, batch: Tensor, *, flip: bool = False) -> Tensor:
        """Probabilities B×C×H×W float32 of a batch of images."""
        with self.fabric.autocast():
            probs: Tensor = self.segmenter(batch).float().softmax(dim=1)
            if flip:
                probs = (probs + self.segmenter(batch.flip(-1)).float().softmax(dim=1).flip(-1)) / 2
        return probs
