"""Choose the input transform under which a model is most confident on the target images, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from das3.data.images import Images
from das3.input_transforms import COLOR_TRANSFORMS, IDENTITY, UPSCALE_FACTORS, InputTransform, estimate_illumination
from das3.losses import entropy_of_probs, mutual_information
from das3.norms import batch_norms
from das3.stages.context import StageContext
from das3.stages.image_views import TransformedImages, Windows

__all__ = ["ConfidenceStatistics", "choose_input_transform", "confidence_statistics"]

SHARE_OF_STAGE = 0.05
"""Of what the stage's steps compute, the search may take about this share."""
PASSES_OF_A_STEP = 3.5
"""A step takes as long as about so many forward passes of its images: two more to go back, and the optimiser, the
average of the weights and the samples. Measured: 6 with `das3:small` and 2.9 with a SegFormer on a CPU, 6.5 with
DeepLabV2 on an H200."""
FULL_LOOKS = 6
"""So many transforms are looked at in full, the search expects."""
MAX_IMAGES_FOR_SEARCH = 48
"""Images that a promising transform is looked at on, at most."""
IMAGES_FOR_FIRST_LOOK = 8
"""Images on which a transform must not look hopeless before it is looked at on all of these."""
SHARE_AT_FIRST_LOOK = 0.5
"""On these few images it has to do this share of what is asked of it."""
MIN_IMAGES_FOR_STATISTICS = 4
"""A batch of so many images has norm statistics of its own that are good enough to judge a transform by."""
MIN_MUTUAL_INFORMATION_GAIN = 0.01
"""A colour transform has to raise the mutual information by more than this share of log C."""
MIN_ENTROPY_REDUCTION = 0.07
"""Even illumination or a larger image has to lower the mean entropy by this share."""
MAX_NORMALIZED_MI_DROP = 0.05
"""… while the normalised mutual information falls by less than this, as it does where one class takes all."""
MAX_COLOR_TRANSFORMS = 3
"""How many colour transforms may follow each other."""


class ConfidenceStatistics(NamedTuple):
    """How confident a model is on the target images.

    Attributes:
        mutual_information: of image and class, see `das3.losses.mutual_information`, as a share of log C.
        mean_entropy: in [0, 1].
    """

    mutual_information: float
    mean_entropy: float

    @property
    def normalized_mi(self) -> float:
        """Mutual information over the entropy of the mean prediction: a rare class makes the latter small."""
        return self.mutual_information / max(self.mutual_information + self.mean_entropy, 1e-9)

    def improves_on(self, other: ConfidenceStatistics, by: float) -> bool:
        """Whether the mutual information is larger by more than `by`, and the mean entropy smaller.

        A transform that turns background into objects may show more classes, but leaves the model uncertain.
        """
        return self.mutual_information > other.mutual_information + by and self.mean_entropy < other.mean_entropy

    def is_more_confident_than(self, other: ConfidenceStatistics) -> bool:
        """Whether the mean entropy is much smaller, and the normalised mutual information hardly smaller."""
        return (
            self.mean_entropy < (1 - MIN_ENTROPY_REDUCTION) * other.mean_entropy
            and self.normalized_mi > other.normalized_mi - MAX_NORMALIZED_MI_DROP
        )


Group = list[int]
"""Indices of images that are predicted together."""
Seen = Mapping[str, NDArray[Any]]
"""Mean prediction, C values, and mean entropy of one image."""


def confidence_of_images(context: StageContext, name: str, groups: Sequence[Group]) -> list[Seen]:
    """What the model, as it is now, says of some images; what is kept in the folder `name` is not predicted again."""

    def summary(probs: Tensor) -> dict[str, Tensor]:
        return {"mean": probs.mean(dim=(2, 3)), "entropy": entropy_of_probs(probs).mean(dim=(1, 2))}

    return list(context.summarize(name, summary, groups=groups, batched=True))


def confidence_statistics(seen: Sequence[Seen]) -> ConfidenceStatistics:
    """Statistics over images, of what `confidence_of_images` returned."""
    means, entropies = (torch.from_numpy(np.stack([one[key] for one in seen])) for key in ("mean", "entropy"))
    return ConfidenceStatistics(mutual_information(means, entropies), entropies.mean().item())


def choose_input_transform(
    context: StageContext, steps: int, *, color: bool = True, upscale: bool = True
) -> StageContext:
    """The context with the transform of the images on which the model is most confident; itself if there is none.

    First even illumination, if the model is much more confident under it. Then, up to three times, the colour transform
    that raises the mutual information most. Then larger images, as long as each size makes it much more confident.

    Most transforms are hopeless and seen to be so on 8 images. Of images larger than a training sample, the model sees
    a part of that size.

    Args:
        context: of the stage.
        steps: of the stage, which bound how many images are looked at.
        color: try even illumination, see `das3.input_transforms.estimate_illumination`, and `COLOR_TRANSFORMS`.
        upscale: try `das3.input_transforms.UPSCALE_FACTORS`.
    """
    if not (color or upscale):
        return context
    search = _Search(context, steps)
    if color:
        search.even_illumination()
        search.recolor()
    if upscale:
        search.enlarge()
    return context if search.best.name == IDENTITY else replace(context, transform=search.best)


class _Search:
    """The best transform so far, and what the model says of the images under those that were looked at.

    A first look is at few images; a full one at all; one at an enlarged image may be between them.
    """

    def __init__(self, context: StageContext, steps: int) -> None:
        # Without gradients a few images take no more memory than one does in training.
        self.context = replace(context, batch_size=max(context.batch_size, MIN_IMAGES_FOR_STATISTICS))
        self.best = InputTransform(rgb=context.rgb)
        self.seen: dict[str, list[Seen]] = {}
        self.left = SHARE_OF_STAGE * _passes(context, steps)
        self.looks = _looks(self.context, _affordable(context, steps))
        smallest = min(len(group) for look in self.looks for group in look)
        # Else statistics are re-estimated, which is another pass.
        self.one_pass = smallest >= MIN_IMAGES_FOR_STATISTICS
        self.normalizes = any(True for _ in batch_norms(context.segmenter))

    def even_illumination(self) -> None:
        """Divide out the illumination that all images share, if that helps."""
        even = replace(self.best, illumination=_illumination(self.context))
        if not self.is_promising(even):
            return
        recolored = self.recolored(COLOR_TRANSFORMS).values()
        first_looks = sum(self.cost(one, looks=1) for one in recolored)
        if self.cost(even) + self.cost(self.best) + first_looks + self.cost(even) > self.left:
            # There is not enough for a full look at a colour transform as well, so one that helps at first goes first.
            before = self.confidence(self.best, looks=1)
            if any(self.confidence(one, looks=1).improves_on(before, MIN_MUTUAL_INFORMATION_GAIN) for one in recolored):
                return
        if self.confidence(even).is_more_confident_than(self.confidence(self.best)):
            self.best = even

    def recolor(self) -> None:
        """Add colour transforms, as long as one helps and the search may go on.

        What looks hopeless on its own does not follow another.
        """
        names = list(COLOR_TRANSFORMS)
        while len(self.best.color_transforms) < MAX_COLOR_TRANSFORMS:
            tried = self.recolored(names)
            first_looks = sum(self.cost(one, looks=1) for one in tried.values())
            if self.best.name != IDENTITY and first_looks + self.cost(self.best) > self.left:
                break
            names = [name for name, one in tried.items() if self.is_promising(one)]
            names.sort(key=lambda name: self.confidence(tried[name], looks=1).mutual_information, reverse=True)
            better: dict[InputTransform, ConfidenceStatistics] = {}
            for one in (tried[name] for name in names):
                # If there is nothing left for a full look at the most promising one, the first look has to do.
                looks = None if self.cost(one) + self.cost(self.best) <= self.left else 1
                if looks is None or one == tried[names[0]]:
                    found = self.confidence(one, looks)
                    if found.improves_on(self.confidence(self.best, looks), MIN_MUTUAL_INFORMATION_GAIN):
                        better[one] = found
            if not better:
                break
            self.best = max(better, key=lambda one: better[one].mutual_information)

    def recolored(self, names: Iterable[str]) -> dict[str, InputTransform]:
        """The best transform followed by each of these."""
        return {name: replace(self.best, color_transforms=(*self.best.color_transforms, name)) for name in names}

    def enlarge(self) -> None:
        """Enlarge the images step by step, as long as each step helps and the search may go on."""
        for factor in UPSCALE_FACTORS:
            larger = replace(self.best, upscale=factor)
            if not self.context.segmenter.takes(*larger.size(self.context.images.size(0))):
                break
            if self.cost(larger, looks=1) > self.left or not self.is_promising(larger):
                break
            looks = self.most_looks(larger)
            if looks == 1 < len(self.looks):
                break
            if not self.confidence(larger, looks).is_more_confident_than(self.confidence(self.best, looks)):
                break
            self.best = larger

    def is_promising(self, tried: InputTransform) -> bool:
        """Whether a few images do not show already that a transform is no better than the best so far."""
        before, after = (self.confidence(one, looks=1) for one in (self.best, tried))
        if len(self.looks) == 1:
            return True
        gains = after.improves_on(before, by=SHARE_AT_FIRST_LOOK * MIN_MUTUAL_INFORMATION_GAIN)
        return gains or after.mean_entropy <= (1 - SHARE_AT_FIRST_LOOK * MIN_ENTROPY_REDUCTION) * before.mean_entropy

    def confidence(self, transform: InputTransform, looks: int | None = None) -> ConfidenceStatistics:
        """Of the model under a transform, on the images of the first so many looks; of all when None."""
        seen, missing = self.seen.setdefault(transform.name, []), self.missing(transform, looks)
        self.left -= self.cost(transform, looks)
        if missing:
            # Together, since statistics that are re-estimated are those of the images that are given.
            name = f"input_transforms/{transform.name}"
            seen += confidence_of_images(self.under(transform), name, missing)
        return confidence_statistics(seen[: sum(len(group) for look in self.looks[:looks] for group in look)])

    def missing(self, transform: InputTransform, looks: int | None = None) -> list[Group]:
        """Groups of these looks that the model has not seen under a transform."""
        known = len(self.seen.get(transform.name, []))
        groups = [group for look in self.looks[:looks] for group in look]
        ends = np.cumsum([len(group) for group in groups])
        return [group for group, end in zip(groups, ends, strict=True) if end > known]

    def cost(self, transform: InputTransform, looks: int | None = None) -> float:
        """Images, of the size they have unless enlarged, that the model would have to be shown for it."""
        estimates = self.normalizes and not self.in_one_pass(transform)
        return (1 + estimates) * transform.upscale**2 * sum(map(len, self.missing(transform, looks)))

    def most_looks(self, transform: InputTransform) -> int:
        """The largest number of looks that the search can afford, at least 1."""
        best = self.best
        affordable = [
            looks
            for looks in range(2, len(self.looks) + 1)
            if self.cost(transform, looks) + self.cost(best, looks) <= self.left
        ]
        return max(affordable, default=1)

    def in_one_pass(self, transform: InputTransform) -> bool:
        """Whether it is seen under each batch's own norm statistics.

        An enlarged batch is gone through in parts, which are too small for that.
        """
        return self.one_pass and transform.upscale == 1

    def under(self, transform: InputTransform) -> StageContext:
        """The context with a transform, where images are no larger than a training sample."""
        images, crop, one_pass = self.context.images, self.context.crop, self.in_one_pass(transform)
        if any(side > most for size in set(images.sizes()) for side, most in zip(size, crop, strict=True)):
            images = Windows(TransformedImages(images, replace(transform, upscale=1.0)), crop)
            transform = InputTransform(upscale=transform.upscale)
        return replace(self.context, images=images, transform=transform, own_statistics=one_pass)


_ILLUMINATIONS: WeakKeyDictionary[Images, dict[tuple[tuple[int, ...] | None, int], Tensor]] = WeakKeyDictionary()
"""Of images, by the bands that are RGB and the batch size: every stage of a run would find the same."""


def _illumination(context: StageContext) -> Tensor:
    """The illumination that the images share."""
    found = _ILLUMINATIONS.setdefault(context.images, {})
    key = context.rgb, context.batch_size
    if key not in found:
        batches = context.batches(context.subset_groups())
        colors = batches if context.rgb is None else (batch[:, list(context.rgb)] for batch in batches)
        found[key] = estimate_illumination(colors)
    return found[key]


def _passes(context: StageContext, steps: int) -> float:
    """Forward passes of an image that take as long as the stage's steps."""
    return PASSES_OF_A_STEP * context.draws(steps)


def _affordable(context: StageContext, steps: int) -> int:
    """How many images a promising transform may be looked at on."""
    share = round(SHARE_OF_STAGE * _passes(context, steps) / FULL_LOOKS)
    return min(MAX_IMAGES_FOR_SEARCH, max(2 * IMAGES_FOR_FIRST_LOOK, share))


def _looks(context: StageContext, images: int) -> list[list[Group]]:
    """Groups of evenly spaced images: those of the first look and, if they are not all, others, one group a look."""
    count = len(context.images)
    images = min(images, count)
    if images > context.batch_size:
        images -= images % context.batch_size  # the last batch would be too small for statistics of its own
    chosen = [n * count // images for n in range(images)]
    if images < 2 * IMAGES_FOR_FIRST_LOOK:
        return [context.groups_of(chosen)]
    first = chosen[:: images // IMAGES_FOR_FIRST_LOOK][:IMAGES_FOR_FIRST_LOOK]
    return [context.groups_of(first), *([group] for group in context.groups_of(i for i in chosen if i not in first))]
