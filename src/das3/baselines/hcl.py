"""HCL: contrast with a historical model's features, and labels weighted by the agreement of both models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.baselines.cbst import CbstOptions, ClassBalanced
from das3.baselines.features import features_and_logits, to_grid
from das3.baselines.weak_strong_views import WeakStrongViews
from das3.data.samples import Sample, Samples
from das3.distributed import from_first_process
from das3.ema import frozen_copy
from das3.losses import IGNORE_INDEX, masked_mean, normalized_entropy
from das3.segmenter import Segmenter
from das3.stages.context import StageContext
from das3.stages.options import option

__all__ = ["Hcl", "category_loss", "historical_consistency", "instance_loss"]


@dataclass(frozen=True)
class HclOptions(CbstOptions):
    """Options of HCL.

    Attributes:
        contrast_weight: weight of the instance loss, the released code's.
        temperature: τ of the instance loss.
        places: places of each image that are contrasted with each other.
    """

    contrast_weight: float = option(0.5, low=0, old="contrast")
    temperature: float = option(0.07, above=0)
    places: int = option(256, low=1)


def instance_loss(queries: Tensor, keys: Tensor, reliability: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """L_HisNCE = −log( r₊ exp(q·k₊/τ) / Σ_i r_i exp(q·k_i/τ) ), mean over the valid queries.

    Args:
        queries: B×S×D features of the current model; scaled to length 1 here.
        keys: B×S×D features of the historical model; the positive key of a query is the one of its place, the others of
            its image are its negatives.
        reliability: r > 0 of the keys, B×S.
        valid: boolean B×S; other places are neither queries nor keys.
        temperature: τ.

    Source: HCL, eq. 1.
    """
    similarity = F.normalize(queries, dim=2) @ F.normalize(keys, dim=2).transpose(1, 2) / temperature
    scores = similarity + reliability.log().unsqueeze(1)
    # Far below any score, but finite: in an image without a valid place log-softmax would be NaN.
    scores = scores.masked_fill(~valid.unsqueeze(1), -1e9)
    own = scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    return masked_mean(-own, valid)


def historical_consistency(now: Tensor, then: Tensor) -> Tensor:
    """h_con = 1 − sigmoid(Σ_c |p_c − p'_c|), B×H×W in (0, 0.5], of probabilities B×C×H×W. Source: HCL, §3.2."""
    return 1 - torch.sigmoid((now - then).abs().sum(dim=1))


def category_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """L_HisST: cross-entropy of the labelled pixels, each times its weight B×H×W; mean over them. Source: HCL, §3.2."""
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return masked_mean(weights * losses, labels != IGNORE_INDEX)


class Hcl(ClassBalanced[HclOptions]):
    """Historical contrastive instance discrimination (HCID) and category discrimination (HCCD).

    Source: Huang et al. (NeurIPS 2021). The historical model is the one that enters the round, frozen. An instance is a
    place of the feature map; the current model sees it with changed colours, the historical one without. Reliability is
    exp(−H), our choice: the paper says that it is estimated by entropy. Labels are CBST's. The authors' code differs: a
    moving average gives the keys, keys of one pseudo class are all positive, reliability is clamp(1.1 − H, 0.9, 1.1),
    and the consistency is exp(−KL) between the moving average and the source model.
    """

    name = "hcl"
    Options = HclOptions

    def prepare(self, context: StageContext) -> Samples:
        """Labels, and the historical model."""
        self.historical = frozen_copy(context.segmenter)
        self.autocast = context.fabric.autocast
        return WeakStrongViews(super().prepare(context))

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Weighted cross-entropy and the contrast of random places."""
        features, logits = features_and_logits(segmenter, batch["image"])
        with torch.no_grad(), self.autocast():
            old_features, old_logits = features_and_logits(self.historical, batch["weak"])
        agreement = historical_consistency(logits.detach().float().softmax(dim=1), old_logits.float().softmax(dim=1))
        inner = cast(Segmenter, segmenter)
        entropy = to_grid(inner, normalized_entropy(old_logits).unsqueeze(1), features)
        inside = to_grid(inner, batch["valid"].unsqueeze(1).float(), features) > 0.5
        drawn = from_first_process(torch.randperm(inside.numel() // len(inside)))
        chosen = drawn[: self.options.places].to(features.device)
        queries, keys, entropy, valid = (
            x.flatten(2).transpose(1, 2)[:, chosen] for x in (features, old_features, entropy, inside)
        )
        reliability = torch.exp(-entropy.squeeze(2))
        contrast = instance_loss(queries, keys, reliability, valid.squeeze(2), self.options.temperature)
        return {
            "category": category_loss(logits, batch["labels"], agreement),
            "instance": self.options.contrast_weight * contrast,
        }
