"""Plain self-training: pixels above one threshold for all classes are labelled by the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from das3.data.samples import Sample, Samples
from das3.losses import positive_loss
from das3.stages.base import OptionsT, Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions

__all__ = ["PseudoLabel", "SelfTraining", "SelfTrainingOptions"]


@dataclass(frozen=True)
class SelfTrainingOptions(StageOptions):
    """What all self-training baselines have: rate and augmentation of our own self-training stage, labels made three times.

    Attributes:
        rounds: how often the labels are made anew and the stage is run.
    """

    steps: int = 100
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    rounds: int = 3

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {"rounds": self.rounds >= 1}


class SelfTraining(Stage[OptionsT]):
    """Cross-entropy on labels that the model makes before each round."""

    def label(self, context: StageContext, probs: Tensor) -> Tensor:
        """Labels H×W uint8, 255 for none, of the probabilities C×H×W of one image."""
        raise NotImplementedError

    def prepare(self, context: StageContext) -> Samples:
        """Label every image."""
        store = self.pseudo_labels = context.label_all("labels", lambda probs: {"labels": self.label(context, probs)})
        return context.samples(self.options, maps=store.maps("labels"))

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Mean cross-entropy of the labelled pixels."""
        return {"labels": positive_loss(segmenter(batch["image"]), batch["labels"])}


@dataclass(frozen=True)
class PseudoLabelOptions(SelfTrainingOptions):
    """Options of plain self-training.

    Attributes:
        threshold: smallest probability of a label.
    """

    threshold: float = 0.9

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {**super().checks(), "threshold": 0 <= self.threshold < 1}


class PseudoLabel(SelfTraining[PseudoLabelOptions]):
    """ŷ = argmax p where max p ≥ 0.9.

    Source: Lee (2013); the threshold is that of BDL (Li et al., CVPR 2019), the usual one in adapting segmentation.
    """

    name = "pseudo-label"
    Options = PseudoLabelOptions

    def label(self, context: StageContext, probs: Tensor) -> Tensor:
        """The likeliest class of the sure pixels."""
        confidence, label = probs.max(dim=0)
        return torch.where(confidence >= self.options.threshold, label, 255).to(torch.uint8)
