"""Plain self-training: pixels above one threshold for all classes are labelled by the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from das3.data.samples import Sample, Samples
from das3.losses import IGNORE_INDEX, positive_loss
from das3.stages.base import OptionsT, Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option

__all__ = ["PseudoLabel", "SelfTraining", "SelfTrainingOptions"]


@dataclass(frozen=True)
class SelfTrainingOptions(StageOptions):
    """What self-training baselines share: rate and augmentation of our own self-training stage, three rounds of labels.

    Attributes:
        rounds: number of rounds; labels are made again before each.
    """

    steps: int = 100
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    rounds: int = option(3, low=1)


class SelfTraining(Stage[OptionsT]):
    """Cross-entropy on labels that the model makes before each round."""

    def label(self, context: StageContext, probs: Tensor) -> Tensor:
        """Labels B×H×W uint8, 255 for none, of probabilities B×C×H×W."""
        raise NotImplementedError

    def prepare(self, context: StageContext) -> Samples:
        """Label every image."""
        store = self.pseudo_labels = context.label_all(
            "labels", lambda probs: {"labels": self.label(context, probs)}, batched=True
        )
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

    threshold: float = option(0.9, low=0, below=1)


class PseudoLabel(SelfTraining[PseudoLabelOptions]):
    """ŷ = argmax p where max p ≥ 0.9.

    Source: Lee (2013); the threshold is that of BDL (Li et al., CVPR 2019), the usual one in adapting segmentation.
    """

    name = "pseudo-label"
    Options = PseudoLabelOptions

    def label(self, context: StageContext, probs: Tensor) -> Tensor:
        """The most probable class of the confident pixels."""
        confidence, label = probs.max(dim=1)
        return torch.where(confidence >= self.options.threshold, label, IGNORE_INDEX).to(torch.uint8)
