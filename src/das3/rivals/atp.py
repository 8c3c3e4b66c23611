"""ATP's release: stages 1 and 2 with the losses and scales of the released code of DAS3's successor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from das3.data.samples import Sample
from das3.losses import negative_loss, positive_loss
from das3.stages.align import Align, AlignOptions
from das3.stages.selftrain import SelfTrain, SelfTrainOptions

__all__ = ["AtpAlign", "AtpSelfTrain"]


@dataclass(frozen=True)
class AtpAlignOptions(AlignOptions):
    """Options of stage 1 as released."""

    steps: int = 150
    alpha: float = 1e-3
    detach_focus: bool = False
    diversity: float = 1e-4
    prior: Literal["uniform", "model"] = "uniform"


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
    balance: float = 0.0
    layout: float = 0.0
    tones: bool = False
    zooms: bool = False


class AtpSelfTrain(SelfTrain):
    """Classes are ruled out by the step's own prediction, and their probabilities pooled. Source: ATP's code."""

    name = "atp-selftrain"
    Options = AtpSelfTrainOptions

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy on the positive labels, −log(1 − Σ p) over the classes that are improbable now."""
        options, logits = self.options, segmenter(batch["image"])
        where = batch["valid"]
        if options.negative_where == "unlabelled":
            where = where & (batch["labels"] == 255)
        with torch.no_grad():
            negatives = logits.softmax(dim=1) < options.negative_threshold
        return {
            "positive": positive_loss(logits, batch["labels"]),
            "negative": options.negative * negative_loss(logits, negatives, valid=where, form=options.negative_form),
        }
