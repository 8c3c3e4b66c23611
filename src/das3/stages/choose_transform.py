"""Choose the input transform under which a model is most confident on the target images, without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from das3.input_transforms import COLOR_TRANSFORMS, IDENTITY, UPSCALE_FACTORS, InputTransform, estimate_illumination
from das3.losses import entropy_of_probs, mutual_information
from das3.stages.context import StageContext

__all__ = ["ConfidenceStatistics", "choose_input_transform", "confidence_statistics"]

MAX_IMAGES_FOR_SEARCH = 50
"""Approximate number of images that each transform is tried on."""
MAX_IMAGES_FOR_FIRST_LOOK = 12
"""Approximate number of images on which a transform must not look hopeless, before it is tried on all of these."""
SHARE_AT_FIRST_LOOK = 0.5
"""On these few images it has to do this share of what is asked of it."""
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


def confidence_statistics(
    context: StageContext, name: str, images: int = MAX_IMAGES_FOR_SEARCH
) -> ConfidenceStatistics:
    """Confidence of the model on some images, as it is now.

    Args:
        context: of the stage.
        name: of the folder that the predictions' means are kept in.
        images: about how many.
    """

    def summary(probs: Tensor) -> dict[str, Tensor]:
        return {"mean": probs.mean(dim=(1, 2)), "entropy": entropy_of_probs(probs[None]).mean()}

    found = list(context.summarize(name, summary, groups=context.subset_groups(images)))
    means, entropies = (torch.from_numpy(np.stack([one[key] for one in found])) for key in ("mean", "entropy"))
    return ConfidenceStatistics(mutual_information(means, entropies), entropies.mean().item())


def choose_input_transform(context: StageContext, *, color: bool = True, upscale: bool = True) -> StageContext:
    """The context with the transform of the images on which the model is most confident; itself if there is none.

    First even illumination, if the model is much more confident under it. Then, up to three times, the colour transform
    that raises the mutual information most. Then larger images, as long as each size makes it much more confident.

    Args:
        context: of the stage.
        color: try even illumination, see `das3.input_transforms.estimate_illumination`, and `COLOR_TRANSFORMS`.
        upscale: try `das3.input_transforms.UPSCALE_FACTORS`.
    """
    if not (color or upscale):
        return context
    best = InputTransform(rgb=context.rgb)
    reached = _confidence_under(context, best)
    if color:
        best, reached = _with_even_illumination(context, best, reached)
        best, reached = _with_color_transforms(context, best, reached)
    if upscale:
        best = _with_upscaling(context, best, reached)
    return context if best.name == IDENTITY else replace(context, transform=best)


Choice = tuple[InputTransform, ConfidenceStatistics]


def _with_even_illumination(context: StageContext, best: InputTransform, reached: ConfidenceStatistics) -> Choice:
    batches = context.batches(context.subset_groups())
    colors = batches if best.rgb is None else (batch[:, list(best.rgb)] for batch in batches)
    even = replace(best, illumination=estimate_illumination(colors))
    found = _if_promising(context, best, even)
    return (even, found) if found and found.is_more_confident_than(reached) else (best, reached)


def _with_color_transforms(context: StageContext, best: InputTransform, reached: ConfidenceStatistics) -> Choice:
    while len(best.color_transforms) < MAX_COLOR_TRANSFORMS:
        tried = [replace(best, color_transforms=(*best.color_transforms, name)) for name in COLOR_TRANSFORMS]
        found = [(one, reached_by) for one in tried if (reached_by := _if_promising(context, best, one))]
        better = [pair for pair in found if pair[1].improves_on(reached, by=MIN_MUTUAL_INFORMATION_GAIN)]
        if not better:
            break
        best, reached = max(better, key=lambda pair: pair[1].mutual_information)
    return best, reached


def _with_upscaling(context: StageContext, best: InputTransform, reached: ConfidenceStatistics) -> InputTransform:
    for factor in UPSCALE_FACTORS:
        larger = replace(best, upscale=factor)
        if not context.segmenter.takes(*larger.size(context.images.size(0))):
            break
        found = _if_promising(context, best, larger)
        if found is None or not found.is_more_confident_than(reached):
            break
        best, reached = larger, found
    return best


def _if_promising(context: StageContext, best: InputTransform, tried: InputTransform) -> ConfidenceStatistics | None:
    """The confidence under a transform, unless a few images already show that it is no better than the best so far.

    Most transforms are not, and looking at all images under each would take longer than all other preparation.
    """
    if len(context.images) > 2 * MAX_IMAGES_FOR_FIRST_LOOK:
        before, after = (_confidence_under(context, one, MAX_IMAGES_FOR_FIRST_LOOK) for one in (best, tried))
        gains = after.improves_on(before, by=SHARE_AT_FIRST_LOOK * MIN_MUTUAL_INFORMATION_GAIN)
        if not gains and after.mean_entropy > (1 - SHARE_AT_FIRST_LOOK * MIN_ENTROPY_REDUCTION) * before.mean_entropy:
            return None
    return _confidence_under(context, tried)


def _confidence_under(
    context: StageContext, transform: InputTransform, images: int = MAX_IMAGES_FOR_SEARCH
) -> ConfidenceStatistics:
    under = replace(context, transform=transform)
    if images == MAX_IMAGES_FOR_SEARCH:
        return confidence_statistics(under, f"input_transforms/{transform.name}")
    return confidence_statistics(under, f"input_transforms_first/{transform.name}", images)
