"""Class priors: how often, and where in the images, a model predicts each class over all target images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from das3.losses import most_likely
from das3.stages.context import StageContext
from das3.stages.thresholds import counts_of_images

__all__ = ["ClassPriors", "class_priors"]

PRIOR_GRID = 8
"""Cells per side of the grid on which the spatial prior is kept."""
UNIFORM_PRIOR_IMAGES = 8
"""Weight of a uniform spatial prior, in images: few images are little evidence about locations."""
SHARE_SMOOTHING = 1e-3
"""Added to a class's shares before their ratio: below a thousandth of the pixels the ratio is unreliable."""


class ClassPriors(NamedTuple):
    """Class priors of a model on the target images.

    Attributes:
        spatial_prior: C×8×8 shares > 0 of the classes in each cell of a grid over the image; sum 1 in each cell.
        underprediction_ratio: C, above 0: the mean probability of a class over the share of pixels that the class wins.
    """

    spatial_prior: Tensor
    underprediction_ratio: Tensor


def class_priors(context: StageContext) -> ClassPriors:
    """The priors of the model that enters the stage, from its predictions for some images, on the device."""

    def summary(probs: Tensor) -> dict[str, Tensor]:
        won = counts_of_images(most_likely(probs, 1), probs.shape[1])
        return {"cells": F.adaptive_avg_pool2d(probs, PRIOR_GRID), "won": won.float() / probs[0, 0].numel()}

    found = list(context.summarize("priors", summary, groups=context.subset_groups(), batched=True))
    cells, won = (np.mean([one[key] for one in found], axis=0, dtype=np.float64) for key in ("cells", "won"))
    mean = cells.mean(axis=(1, 2))
    cells += UNIFORM_PRIOR_IMAGES / len(found) * mean[:, None, None]
    cells = np.maximum(cells, 1e-6)
    both = cells / cells.sum(axis=0), (mean + SHARE_SMOOTHING) / (won + SHARE_SMOOTHING)
    return ClassPriors(*(torch.tensor(values, dtype=torch.float32, device=context.fabric.device) for values in both))
