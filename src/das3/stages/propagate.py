"""Stage 3, information propagation: a frozen teacher labels easy images, and hard ones mixed in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.data.label_store import LabelStore
from das3.data.mixing import class_mix
from das3.data.rare_classes import RareClasses
from das3.data.samples import Sample, Samples
from das3.ema import copy_weights, interpolate_weights
from das3.losses import IGNORE_INDEX, entropy_of_probs, masked_mean, most_likely, pairwise_loss
from das3.pseudo_labels import adjust_posteriors
from das3.stages.base import Stage
from das3.stages.choose_transform import choose_input_transform
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option
from das3.stages.priors import class_priors

__all__ = ["Propagate", "split_by_entropy"]


@dataclass(frozen=True)
class PropagateOptions(StageOptions):
    """Options of stage 3.

    Attributes:
        easy_share: fraction of the images that count as easy, those of lowest mean entropy.
        mix: mix hard images in pairs, by class (ClassMix); without, they are used unmixed.
        class_balance: in [0, 1]; raises classes that win too few pixels in the teacher's labels, see
            `das3.pseudo_labels.adjust_posteriors`; 0 is the paper's plain argmax.
        spatial_prior_weight: raises each class in the part of the image where it usually occurs, see
            `das3.pseudo_labels.adjust_posteriors`; 0 is the paper.
        color_transforms: make the teacher's labels on colour-transformed images, as in stage 2.
        upscale: make the teacher's labels on enlarged images, as in stage 2.
        pairwise_weight: weight of the pairwise loss, which pulls neighbouring pixels of nearly equal colour to the same
            class, see `das3.losses.pairwise_loss`; 0 is the paper.
        rare_temperature: temperature of rare-class sampling, as in stage 2, separately among easy and hard images; the
            class that a hard image was drawn for is always among those that are mixed into the other. 0 is the paper.
        source_weight: weight interpolation: fraction, in [0, 1), of the incoming weights in those that the stage passes
            on; 0 is the paper.
    """

    steps: int = 240
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    easy_share: float = option(0.3, low=0, high=1)
    mix: bool = True
    class_balance: float = option(0.5, low=0, high=1, old="balance")
    spatial_prior_weight: float = option(0.5, low=0, old="layout")
    color_transforms: bool = option(True, old="tones")
    upscale: bool = option(True, old="zooms")
    pairwise_weight: float = option(0.0, low=0, old="pairwise")
    rare_temperature: float = option(0.0, low=0)
    source_weight: float = option(0.3, low=0, below=1, old="keep")


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
        """Label and rank every image by the incoming model, the teacher."""
        options = self.options
        self.incoming_weights = copy_weights(context.segmenter)
        chosen = choose_input_transform(context, options.steps, color=options.color_transforms, upscale=options.upscale)
        self.input_transform = chosen.transform_name
        self.priors = class_priors(chosen)
        if options.rare_temperature or context.draws_all(options.steps):
            store = self.pseudo_labels = chosen.label_all("teacher", self._label, batched=True)
            entropies = [float(store.read(i, "entropy")["entropy"]) for i in range(len(store))]
            samples = self._samples(context, entropies, store)
        else:  # all images are ranked, and only those labelled that will be drawn
            entropies = [float(one["entropy"]) for one in chosen.summarize("entropies", _entropy, batched=True)]
            samples = self._samples(context, entropies)
            groups = context.drawn_groups(samples, options.steps)
            store = self.pseudo_labels = chosen.label_all("teacher", self._label, groups=groups, batched=True)
            samples = self._samples(context, entropies, store)
        return samples

    def _samples(
        self, context: StageContext, entropies: Sequence[float], store: LabelStore | None = None
    ) -> EasyAndHard:
        """Samples of images by their mean entropies, with the labels of a store."""
        options = self.options
        easy, hard = split_by_entropy(entropies, options.easy_share)
        plain = context.samples(options, maps=store.maps("labels") if store else None)
        if options.rare_temperature and store:
            plain.rare = RareClasses((one["labels"] for one in store), options.rare_temperature)
        return EasyAndHard(plain, easy, hard, mix=options.mix)

    def _label(self, probs: Tensor) -> dict[str, Tensor]:
        options = self.options
        adjusted = adjust_posteriors(
            probs,
            *self.priors,
            class_balance=options.class_balance,
            spatial_prior_weight=options.spatial_prior_weight,
        )
        return {"labels": most_likely(adjusted, 1).to(torch.uint8), **_entropy(probs)}

    def finish(self, context: StageContext) -> None:
        """Weights between those that came in and those that were trained."""
        interpolate_weights(context.segmenter, self.incoming_weights, self.options.source_weight)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy with the teacher's labels, the easy and the hard half each as its own mean."""
        options, labels, hard = self.options, batch["labels"], batch["hard"].view(-1, 1, 1)
        logits = segmenter(batch["image"])
        # Both means whatever the batch holds: with a sample per process one has easy ones alone, another hard ones.
        values = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
        labelled = labels != IGNORE_INDEX
        losses = {"easy": masked_mean(values, labelled & ~hard), "hard": masked_mean(values, labelled & hard)}
        if options.pairwise_weight:
            losses["pairwise"] = options.pairwise_weight * pairwise_loss(logits, batch["image"], valid=batch["valid"])
        return losses


def _entropy(probs: Tensor) -> dict[str, Tensor]:
    """Mean entropy of each prediction B×C×H×W."""
    return {"entropy": entropy_of_probs(probs).mean(dim=(1, 2))}


class EasyAndHard(Samples):
    """Samples of even number are easy images, those of odd number two hard ones mixed; of one kind only, if all are."""

    def __init__(self, plain: Samples, easy: Sequence[int], hard: Sequence[int], *, mix: bool) -> None:
        super().__init__(plain.images, plain.view, seed=plain.seed, maps=plain.maps)
        of = partial(Samples, plain.images, plain.view, seed=plain.seed, maps=plain.maps, rare=plain.rare)
        self.easy, self.hard = of(order=easy), of(order=hard)
        self.mix = mix

    def _place(self, n: int) -> tuple[bool, int]:
        """Whether sample n is hard, and its number among the hard or easy ones: each image once an epoch."""
        both = len(self.easy.order) > 0 and len(self.hard.order) > 0
        return (n % 2 == 1, n // 2) if both else (len(self.hard.order) > 0, n)

    def drawn(self, count: int) -> set[int]:
        """Those that are mixed among them."""
        found = set()
        for n in range(count):
            is_hard, place = self._place(n)
            found.add((self.hard if is_hard else self.easy).pick(place))
            if is_hard and self.mix:
                found.add(self.hard.pick(place, salt=1))
        return found

    def __getitem__(self, n: int) -> Sample:
        """Sample number n ≥ 0."""
        is_hard, place = self._place(n)
        half, rng = self.hard if is_hard else self.easy, self.rng(n)
        sample = half.cut(half.pick(place), rng)
        if is_hard and self.mix:
            index, wanted = half.draw(place, salt=1)
            sample = class_mix(half.cut(index, rng), sample, rng, wanted=wanted)
        return {**sample, "hard": torch.tensor(is_hard)}
