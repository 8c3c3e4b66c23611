"""ATP's release: stages 1 and 2 with the losses and scales of the released code of DAS3's successor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from das3.data.samples import Sample
from das3.stages.align import Align, AlignOptions
from das3.stages.selftrain import SelfTrain, SelfTrainOptions

__all__ = ["AtpAlign", "AtpSelfTrain"]


@dataclass(frozen=True)
class AtpAlignOptions(AlignOptions):
    """Options of stage 1 as released."""

    steps: int = 150
    alpha: float = 1e-3
    detach_focus: bool = False
    diversity_weight: float = 1e-4
    prior: Literal["uniform", "model"] = "uniform"
    color_transforms: bool = False


class AtpAlign(Align):
    """Focal factor in the gradient, equal class shares, scales 1e-3 and 1e-4. Source: ATP's code, `EntropyLoss`."""

    name = "atp-align"
    Options = AtpAlignOptions


@dataclass(frozen=True)
class AtpSelfTrainOptions(SelfTrainOptions):
    """Options of stage 2 as released."""

    steps: int = 200
    negative_threshold: float = 0.04
    negative_form: Literal["separate", "pooled"] = "pooled"
    class_balance: float = 0.0
    spatial_prior_weight: float = 0.0
    color_transforms: bool = False
    upscale: bool = False
    source_weight: float = 0.0


class AtpSelfTrain(SelfTrain):
    """Classes are ruled out by the step's own prediction, and their probabilities pooled. Source: ATP's code."""

    name = "atp-selftrain"
    Options = AtpSelfTrainOptions

    def negatives(self, logits: Tensor, batch: Sample) -> Tensor:
        """The classes that are improbable now."""
        return logits.detach().softmax(dim=1) < self.options.negative_threshold
