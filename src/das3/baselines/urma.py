"""URMA: predictions should stay the same when features are dropped."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from das3.baselines.cbst import CbstOptions, ClassBalanced
from das3.baselines.features import features_and_logits
from das3.data.samples import Sample, Samples
from das3.errors import ModelError
from das3.losses import focal_entropy_loss, masked_mean, positive_loss
from das3.segmenter import Segmenter
from das3.stages.context import StageContext
from das3.stages.options import option

__all__ = ["Decoders", "Urma", "uncertainty_loss"]


@dataclass(frozen=True)
class UrmaOptions(CbstOptions):
    """Options of URMA.

    Attributes:
        decoders: number of auxiliary decoders.
        drop: probability that a feature channel is dropped before an auxiliary decoder.
        entropy_loss_weight: weight of the entropy loss.
        uncertainty_weight: weight of the uncertainty loss.
    """

    steps: int = 300
    rounds: int = 1
    decoders: int = option(4, low=1)
    drop: float = option(0.5, low=0, below=1)
    entropy_loss_weight: float = option(1.0, low=0, old="entropy")
    uncertainty_weight: float = option(0.1, low=0, old="uncertainty")


def uncertainty_loss(main: Tensor, others: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Σ_k mean (softmax(z_k) − softmax(z))², without a gradient through z.

    Args:
        main: z, logits B×C×H×W.
        others: z_k, the auxiliary decoders' logits.
        valid: boolean B×H×W.

    Source: URMA's uncertainty loss; as in the authors' code the mean is over pixels and classes.
    """
    target = main.detach().float().softmax(dim=1)
    terms = [masked_mean(((z.float().softmax(dim=1) - target) ** 2).mean(dim=1), valid) for z in others]
    return torch.stack(terms).sum()


class Decoders(nn.Module):
    """Copies of the classifier with weights of their own, drawn anew, each on features with dropped channels."""

    def __init__(self, segmenter: Segmenter, count: int, drop: float, seed: int) -> None:
        super().__init__()
        if len(segmenter.classifier) > 1:
            raise ModelError(
                f"urma copies the classifier, and this network has {len(segmenter.classifier)} of them "
                f"({', '.join(segmenter.classifier)}); choose another method"
            )
        classifier = segmenter.model.get_submodule(segmenter.classifier[0])
        self.copies = nn.ModuleList(copy.deepcopy(classifier) for _ in range(count)).requires_grad_(True)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.copies.cpu().apply(_draw_anew)
        self.drop = nn.Dropout2d(drop)
        self.sigmoid = segmenter.sigmoid

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits B×C×h×w of each, for features B×D×h×w."""
        logits = [decoder(self.drop(features)) for decoder in self.copies]
        return [torch.cat([torch.zeros_like(z), z], dim=1) if self.sigmoid else z for z in logits]


def _draw_anew(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


class Urma(ClassBalanced[UrmaOptions]):
    """L = CE(class-balanced labels) + L_ent + 0.1 L_unc.

    Source: Sivaprasad & Fleuret (CVPR 2021). Weights, four decoders with random weights and dropout 0.5, labels as in
    CBST and the tenfold rate of the decoders are the authors' code's.
    """

    name = "urma"
    Options = UrmaOptions
    own_lr_factor = 10.0

    def prepare(self, context: StageContext) -> Samples:
        """Labels, and the auxiliary decoders."""
        options = self.options
        decoders = Decoders(context.segmenter, options.decoders, options.drop, seed=context.random_seed())
        self.decoders = decoders.to(context.fabric.device)
        self.autocast = context.fabric.autocast
        return super().prepare(context)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy, entropy of all pixels, and what dropping features changes."""
        options, images, valid = self.options, batch["image"], batch["valid"]
        features, logits = features_and_logits(segmenter, images)
        with self.autocast():
            others = [cast(Segmenter, segmenter).upsample(z, images) for z in self.decoders(features)]
        return {
            "labels": positive_loss(logits, batch["labels"]),
            "entropy": options.entropy_loss_weight * focal_entropy_loss(logits, gamma=0.0, valid=valid),
            "uncertainty": options.uncertainty_weight * uncertainty_loss(logits, others, valid),
        }
