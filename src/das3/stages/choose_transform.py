"""Choose the input transform under which a model is most confident on the target images, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from das3.input_transforms import COLOR_TRANSFORMS, IDENTITY, UPSCALE_FACTORS, InputTransform, estimate_illumination
from das3.losses import entropy_of_probs, mutual_information
from das3.stages.context import StageContext
from das3.stages.image_views import TransformedImages, Windows

__all__ = ["ConfidenceStatistics", "choose_input_transform", "confidence_statistics"]

SHARE_OF_STAGE = 0.05
"""Of what the stage's steps compute, the search may take about this share."""
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


Groups = Sequence[Sequence[int]]


def confidence_statistics(context: StageContext, name: str, looks: Sequence[Groups]) -> ConfidenceStatistics:
    """Confidence of the model on some images, as it is now.

    Args:
        context: of the stage.
        name: of the folder that the predictions' means are kept in.
        looks: the images' groups, as they are kept together; those that are kept already are not predicted again.
    """

    def summary(probs: Tensor) -> dict[str, Tensor]:
        return {"mean": probs.mean(dim=(1, 2)), "entropy": entropy_of_probs(probs[None]).mean()}

    found = [one for groups in looks for one in context.summarize(name, summary, groups=groups)]
    means, entropies = (torch.from_numpy(np.stack([one[key] for one in found])) for key in ("mean", "entropy"))
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
    """The best transform so far, and what the model's confidence is under those that were looked at."""

    def __init__(self, context: StageContext, steps: int) -> None:
        # Without gradients a few images take no more memory than one does in training.
        self.context = replace(context, batch_size=max(context.batch_size, MIN_IMAGES_FOR_STATISTICS))
        self.best = InputTransform(rgb=context.rgb)
        self.found: dict[tuple[str, bool], ConfidenceStatistics] = {}
        self.first, self.rest = _looks(self.context, _affordable(context, steps))
        smallest = min(map(len, self.first + self.rest))
        # Else statistics are re-estimated, which is another pass.
        self.one_pass = smallest >= MIN_IMAGES_FOR_STATISTICS

    def even_illumination(self) -> None:
        """Divide out the illumination that all images share, if that helps."""
        context, rgb = self.context, self.best.rgb
        batches = context.batches(context.subset_groups())
        colors = batches if rgb is None else (batch[:, list(rgb)] for batch in batches)
        even = replace(self.best, illumination=estimate_illumination(colors))
        if self.is_promising(even) and self.confidence(even).is_more_confident_than(self.confidence(self.best)):
            self.best = even

    def recolor(self) -> None:
        """Add colour transforms, as long as one helps. What looks hopeless on its own does not follow another."""
        names = list(COLOR_TRANSFORMS)
        while len(self.best.color_transforms) < MAX_COLOR_TRANSFORMS:
            tried = {name: replace(self.best, color_transforms=(*self.best.color_transforms, name)) for name in names}
            names = [name for name, one in tried.items() if self.is_promising(one)]
            found = {tried[name]: self.confidence(tried[name]) for name in names}
            reached = self.confidence(self.best) if found else None
            better = [
                one for one, by in found.items() if reached and by.improves_on(reached, MIN_MUTUAL_INFORMATION_GAIN)
            ]
            if not better:
                break
            self.best = max(better, key=lambda one: found[one].mutual_information)

    def enlarge(self) -> None:
        """Enlarge the images step by step, as long as each step helps."""
        for factor in UPSCALE_FACTORS:
            larger = replace(self.best, upscale=factor)
            if not self.context.segmenter.takes(*larger.size(self.context.images.size(0))):
                break
            if not self.is_promising(larger):
                break
            if not self.confidence(larger).is_more_confident_than(self.confidence(self.best)):
                break
            self.best = larger

    def is_promising(self, tried: InputTransform) -> bool:
        """Whether a few images do not show already that a transform is no better than the best so far."""
        before, after = (self.confidence(one, at_first=True) for one in (self.best, tried))
        if not self.rest:
            return True
        gains = after.improves_on(before, by=SHARE_AT_FIRST_LOOK * MIN_MUTUAL_INFORMATION_GAIN)
        return gains or after.mean_entropy <= (1 - SHARE_AT_FIRST_LOOK * MIN_ENTROPY_REDUCTION) * before.mean_entropy

    def confidence(self, transform: InputTransform, *, at_first: bool = False) -> ConfidenceStatistics:
        """Of the model under a transform, on all images that are looked at or at the first few."""
        at_first = at_first or not self.rest
        if (transform.name, at_first) not in self.found:
            looks = [self.first] if at_first else [self.first, self.rest]
            found = confidence_statistics(self.under(transform), f"input_transforms/{transform.name}", looks)
            self.found[transform.name, at_first] = found
        return self.found[transform.name, at_first]

    def under(self, transform: InputTransform) -> StageContext:
        """The context with a transform, where images are no larger than a training sample."""
        images, crop = self.context.images, self.context.crop
        # An enlarged batch is gone through in parts, which are too small for statistics of their own.
        one_pass = self.one_pass and transform.upscale == 1
        if any(side > most for size in set(images.sizes()) for side, most in zip(size, crop, strict=True)):
            images = Windows(TransformedImages(images, replace(transform, upscale=1.0)), crop)
            transform = InputTransform(upscale=transform.upscale)
        return replace(self.context, images=images, transform=transform, own_statistics=one_pass)


def _affordable(context: StageContext, steps: int) -> int:
    """How many images a promising transform may be looked at on."""
    passes = 3 * context.draws(steps)  # a step is a forward pass, and a backward pass twice as long
    share = round(SHARE_OF_STAGE * passes / FULL_LOOKS)
    return min(MAX_IMAGES_FOR_SEARCH, max(2 * IMAGES_FOR_FIRST_LOOK, share))


def _looks(context: StageContext, images: int) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of evenly spaced images: those of the first look and, if they are not all, the others."""
    count = len(context.images)
    images = min(images, count)
    if images > context.batch_size:
        images -= images % context.batch_size  # the last batch would be too small for statistics of its own
    chosen = [n * count // images for n in range(images)]
    if images < 2 * IMAGES_FOR_FIRST_LOOK:
        return context.groups_of(chosen), []
    first = chosen[:: images // IMAGES_FOR_FIRST_LOOK][:IMAGES_FOR_FIRST_LOOK]
    return context.groups_of(first), context.groups_of(i for i in chosen if i not in first)
