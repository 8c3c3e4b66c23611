"""Stage 3, information propagation: a frozen copy teaches, easy images as they are and hard ones mixed in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from das3.data.mixing import class_mix
from das3.data.rare_classes import RareClasses
from das3.data.samples import Sample, Samples
from das3.ema import copy_weights, interpolate_weights
from das3.losses import entropy_of_probs, pairwise_loss, positive_loss
from das3.pseudo_labels import adjusted
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions

__all__ = ["Propagate", "split_by_entropy"]


@dataclass(frozen=True)
class PropagateOptions(StageOptions):
    """Options of stage 3.

    Attributes:
        easy_share: share of the images, those of lowest mean entropy, that count as easy.
        mix: class-mix hard images in pairs; without, they are shown as they are.
        smoothing: share of the teacher's label that all classes are given equally, in [0, 1).
        class_balance: in [0, 1]; how much a class counts for more that wins too few pixels, in the teacher's labels, see
            `das3.pseudo_labels.adjusted`; 0 is the paper's plain argmax.
        spatial_prior_weight: how much a class counts for more where in the images it is usually seen, see there; 0 is the paper's.
        color_transforms: show the teacher the images evenly lit or in another tone, as in stage 2.
        upscale: show it larger images, as in stage 2.
        pairwise_weight: weight of the pairwise loss, by which neighbouring pixels of nearly equal colour are of a class, see
            `das3.losses.pairwise_loss`; 0 is the paper's.
        rare_temperature: T of rare-class sampling, as in stage 2, among the easy images and among the hard ones; the
            class for which a hard one is drawn is among those that are mixed into the other. 0 is the paper's.
        source_weight: share, in [0, 1), of the weights that entered the stage in those that it hands on; 0 is the paper's.
        rounds: how often the teacher is replaced by the student and the stage is run again.
    """

    steps: int = 240
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    easy_share: float = 0.3
    mix: bool = True
    smoothing: float = 0.0
    class_balance: float = 0.5
    spatial_prior_weight: float = 0.5
    color_transforms: bool = True
    upscale: bool = True
    pairwise_weight: float = 0.0
    rare_temperature: float = 0.0
    source_weight: float = 0.3
    rounds: int = 1

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {
            "easy_share": 0 <= self.easy_share <= 1,
            "smoothing": 0 <= self.smoothing < 1,
            "class_balance": 0 <= self.class_balance <= 1,
            "spatial_prior_weight": self.spatial_prior_weight >= 0,
            "pairwise_weight": self.pairwise_weight >= 0,
            "rare_temperature": self.rare_temperature >= 0,
            "source_weight": 0 <= self.source_weight < 1,
            "rounds": self.rounds >= 1,
        }


def split_by_entropy(entropies: Sequence[float], easy_share: float) -> tuple[list[int], list[int]]:
    """Indices of the easy images (lowest mean entropy) and of the hard ones, each sorted by entropy.

    At least one image is easy and one hard where there are two images and 0 < easy_share < 1.

    Source: DAS3, stage 3.
    """
    order = np.argsort(np.asarray(entropies), kind="stable").tolist()
    easy = round(len(order) * easy_share)
    if 0 < easy_share < 1 and len(order) > 1:
        easy = min(max(easy, 1), len(order) - 1)
    return order[:easy], order[easy:]


class Propagate(Stage[PropagateOptions]):
    """L_3 = CE(easy) + CE(mixed hard pairs) on the labels of a frozen teacher. Source: DAS3, stage 3.

    The teacher's prediction of a clean image is a constant, so it is computed once and stored, not at every step.
    """

    name = "propagate"
    Options = PropagateOptions

    def prepare(self, context: StageContext) -> Samples:
        """Label and rank every image by the model that enters, the teacher."""
        self.entered = copy_weights(context.segmenter)
        options = self.options
        shown = context.choose_input_transform(tones=options.color_transforms, zooms=options.upscale)
        self.look = shown.transform_name
        self.habits = shown.habits()
        store = self.pseudo_labels = shown.label_all("teacher", self._teach)
        entropies = [float(store[i]["entropy"]) for i in range(len(store))]
        easy, hard = split_by_entropy(entropies, options.easy_share)
        plain = context.samples(options, maps=store.maps("labels"))
        if options.rare_temperature:
            plain.rare = RareClasses((one["labels"] for one in store), options.rare_temperature)
        return EasyAndHard(plain, easy, hard, mix=options.mix)

    def _teach(self, probs: Tensor) -> dict[str, Tensor]:
        likely = adjusted(
            probs, *self.habits, balance=self.options.class_balance, place=self.options.spatial_prior_weight
        )
        labels = likely.argmax(dim=0).to(torch.uint8)
        return {"labels": labels, "entropy": entropy_of_probs(probs[None]).mean()}

    def finish(self, context: StageContext) -> None:
        """Some of what the model could do before stays."""
        interpolate_weights(context.segmenter, self.entered, self.options.source_weight)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy with the teacher's labels, the easy and the hard half each as its own mean."""
        logits, hard = segmenter(batch["image"]), batch["hard"]
        losses = {}
        for name, chosen in (("easy", ~hard), ("hard", hard)):
            if chosen.any():
                labels = batch["labels"][chosen]
                losses[name] = positive_loss(logits[chosen], labels, smoothing=self.options.smoothing)
        if self.options.pairwise_weight:
            pairwise = pairwise_loss(logits, batch["image"], valid=batch["valid"])
            losses["pairwise"] = self.options.pairwise_weight * pairwise
        return losses


class EasyAndHard(Samples):
    """Samples of even number are easy images, those of odd number two hard ones mixed."""

    def __init__(self, plain: Samples, easy: Sequence[int], hard: Sequence[int], *, mix: bool) -> None:
        super().__init__(plain.images, plain.view, seed=plain.seed, maps=plain.maps)
        of = partial(Samples, plain.images, plain.view, seed=plain.seed, maps=plain.maps, rare=plain.rare)
        self.easy, self.hard = of(order=easy), of(order=hard)
        self.mix = mix

    def __getitem__(self, n: int) -> Sample:
        """Sample number n ≥ 0."""
        rng = self.rng(n)
        is_hard = bool(n % 2) if len(self.easy.order) and len(self.hard.order) else bool(len(self.hard.order))
        half = self.hard if is_hard else self.easy
        sample = half.cut(half.pick(n // 2), rng)
        if is_hard and self.mix:
            index, wanted = half.draw(n // 2, salt=1)
            sample = class_mix(half.cut(index, rng), sample, rng, wanted=wanted)
        return {**sample, "hard": torch.tensor(is_hard)}
