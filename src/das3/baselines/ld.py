"""LD: positive labels of confident pixels, and a complementary (negative) label of every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from das3.baselines.cbst import CbstOptions
from das3.baselines.pseudo_label import SelfTraining
from das3.data.samples import Sample, Samples
from das3.distributed import from_first_process
from das3.losses import IGNORE_INDEX, focal_entropy_loss, negative_loss, positive_loss
from das3.stages.context import StageContext
from das3.stages.options import option
from das3.stages.thresholds import data_set_thresholds, label_above

__all__ = ["Ld", "complementary_labels"]


@dataclass(frozen=True)
class LdOptions(CbstOptions):
    """Options of LD.

    Attributes:
        width: how far from the middle of the ranking a complementary label is taken, at most.
        entropy_loss_weight: weight of the entropy loss.
        negative_weight: weight of the negative loss.
    """

    width: int = option(3, low=0)
    entropy_loss_weight: float = option(1.0, low=0, old="entropy")
    negative_weight: float = option(1.0, low=0, old="negative")


def complementary_labels(logits: Tensor, rank: int) -> Tensor:
    """Complementary label: the class of the given rank, as boolean B×C×H×W.

    Args:
        logits: B×C×H×W.
        rank: 1 is the most probable class, C the least probable.

    Source: LD, heuristic complementary label selection.
    """
    chosen = logits.detach().argsort(dim=1, descending=True)[:, rank - 1 : rank]
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, chosen, True)


class Ld(SelfTraining[LdOptions]):
    """L = L_pos + L_ent + L_neg.

    Source: You et al. (ACM MM 2021). The most confident 20 % of each class's pixels in the data set get a label,
    the entropy of the others is minimised, and every pixel has the class at a random rank around C / 2 as a negative
    label. As in the authors' code (LDBE) the rank is drawn per step, from C // 2 − 3 to C // 2 + 3; here it stays
    in 2…C, where C is small. Their code minimises the entropy of all pixels, adds the most confident pixels of each
    image to the labels, and raises the share by 0.05 a round.
    """

    name = "ld"
    Options = LdOptions

    def prepare(self, context: StageContext) -> Samples:
        """A pass for the thresholds, a pass for the labels."""
        self.thresholds = data_set_thresholds(context, self.options.top_fraction)
        return super().prepare(context)

    def label(self, context: StageContext, probs: Tensor) -> Tensor:
        """The most probable class where its confidence reaches the threshold."""
        return label_above(probs, self.thresholds)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Labelled pixels, entropy of the unlabelled ones, complementary labels of all."""
        options, valid, logits = self.options, batch["valid"], segmenter(batch["image"])
        classes = logits.shape[1]
        rank = classes // 2 + int(from_first_process(torch.randint(-options.width, options.width + 1, ())))
        negatives = complementary_labels(logits, min(max(rank, 2), classes))
        unlabelled = valid & (batch["labels"] == IGNORE_INDEX)
        return {
            "positive": positive_loss(logits, batch["labels"]),
            "entropy": options.entropy_loss_weight * focal_entropy_loss(logits, gamma=0.0, valid=unlabelled),
            "negative": options.negative_weight * negative_loss(logits, negatives, valid=valid),
        }
