"""CBST and CRST: class-balanced self-training, without and with a regulariser of its confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

from das3.baselines.pseudo_label import SelfTraining, SelfTrainingOptions
from das3.data.samples import Sample, Samples
from das3.losses import IGNORE_INDEX, masked_mean, positive_loss
from das3.stages.context import StageContext
from das3.stages.options import option
from das3.stages.thresholds import data_set_thresholds, normalized_labels

__all__ = ["Cbst", "CbstOptions", "ClassBalanced", "Crst", "confidence_regularizer"]


@dataclass(frozen=True)
class CbstOptions(SelfTrainingOptions):
    """Options of class-balanced self-training.

    Attributes:
        top_fraction: share of the pixels predicted as a class, over all images, whose confidences reach the threshold.
    """

    top_fraction: float = option(0.2, above=0, high=1, old="share")


CbstT = TypeVar("CbstT", bound=CbstOptions)


class ClassBalanced(SelfTraining[CbstT]):
    """Labels by the class-normalised argmax."""

    def prepare(self, context: StageContext) -> Samples:
        """A pass for the thresholds, a pass for the labels."""
        self.thresholds = data_set_thresholds(context, self.options.top_fraction)
        return super().prepare(context)

    def label(self, context: StageContext, probs: Tensor) -> Tensor:
        """See `normalized_labels`."""
        return normalized_labels(probs, self.thresholds)


class Cbst(ClassBalanced[CbstOptions]):
    """ŷ = argmax p_c / λ_c where that exceeds 1, λ_c the confidence of the top 20 % of class c in the data set.

    Source: Zou et al. (ECCV 2018), without source images. The authors raise the share by 0.05 a round, from 0.2 to 0.5,
    add spatial priors and zoom in on rare classes; here every round has the same share.
    """

    name = "cbst"
    Options = CbstOptions


@dataclass(frozen=True)
class CrstOptions(CbstOptions):
    """Options of confidence-regularised self-training.

    Attributes:
        regularizer: "kld" draws labelled pixels to equal probabilities, "ent" to high entropy.
        regularizer_weight: weight of the regulariser; the authors' 0.1 for "kld".
    """

    regularizer: Literal["kld", "ent"] = option("kld", choices=("kld", "ent"))
    regularizer_weight: float = option(0.1, low=0, old="weight")


def confidence_regularizer(logits: Tensor, labelled: Tensor, kind: Literal["kld", "ent"]) -> Tensor:
    """MRKLD, −(1/C) Σ_c log p_c, or MRENT, Σ_c p_c log p_c: mean over the labelled pixels.

    Args:
        logits: B×C×H×W.
        labelled: boolean B×H×W.
        kind: which one.

    Source: Zou et al. (ICCV 2019), model regularisation.
    """
    log_probs = logits.float().log_softmax(dim=1)
    values = -log_probs.mean(dim=1) if kind == "kld" else (log_probs.exp() * log_probs).sum(dim=1)
    return masked_mean(values, labelled)


class Crst(ClassBalanced[CrstOptions]):
    """CBST that is kept from overconfidence.

    Source: Zou et al. (ICCV 2019), model regularisation MRKLD and MRENT. The authors' code has MRKLD alone of the two,
    averaged per image.
    """

    name = "crst"
    Options = CrstOptions

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy of the labelled pixels and the regulariser on them."""
        logits = segmenter(batch["image"])
        spread = confidence_regularizer(logits, batch["labels"] != IGNORE_INDEX, self.options.regularizer)
        return {
            "labels": positive_loss(logits, batch["labels"]),
            "regularizer": self.options.regularizer_weight * spread,
        }
