"""Stage 1, implicit feature alignment: the classifier is frozen and target features come to where it expects them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from das3.data.samples import Sample, Samples
from das3.losses import diversity_loss, focal_entropy_loss, mean_prediction
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions

__all__ = ["Align"]


@dataclass(frozen=True)
class AlignOptions(StageOptions):
    """Options of stage 1.

    Attributes:
        alpha: scale of the focal entropic loss.
        gamma: its focus: the larger, the less unsure pixels contribute.
        detach_focus: keep the factor (1 − H)^γ out of the gradient. In the gradient, as released, it drives every pixel
            of entropy above 1 / (γ + 1) to be less sure still.
        diversity_weight: weight of the diversity loss.
        entropy_weight: steepness of the diversity loss's pixel weights exp(−a H).
        memory: share of the running mean prediction in the diversity loss's p̄; 0 uses each batch alone, which pushes
            every batch to show all classes equally.
        prior: what the diversity loss draws p̄ to: equal shares ("uniform", the paper's) or the mean prediction of the
            model that enters, its norm statistics re-estimated ("model"), since no street shows as many poles as road.
        class_balance: in [0, 1]; how much a class counts for more in that mean prediction q that wins too few pixels:
            q s^balance, s as in `das3.stages.priors.ClassPriors`, since a model in doubt predicts rare classes too rarely.
        color_transforms: train on the images evenly lit or in another tone, such as grey, if the model clearly makes more of them
            then, see `das3.stages.context.StageContext.choose_input_transform`; often it does not.
    """

    steps: int = 60
    lr: float = 5e-5
    alpha: float = 1.0
    gamma: float = 5.0
    detach_focus: bool = True
    diversity_weight: float = 1.0
    entropy_weight: float = 3.0
    memory: float = 0.0
    prior: Literal["uniform", "model"] = "model"
    class_balance: float = 0.5
    color_transforms: bool = True

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {
            "alpha": self.alpha >= 0,
            "gamma": self.gamma >= 0,
            "diversity_weight": self.diversity_weight >= 0,
            "entropy_weight": self.entropy_weight >= 0,
            "memory": 0 <= self.memory < 1,
            "prior": self.prior in ("uniform", "model"),
            "class_balance": 0 <= self.class_balance <= 1,
        }


class Align(Stage[AlignOptions]):
    """L_1 = L_fent + λ_div L_wdiv on f alone. Source: DAS3, stage 1."""

    name = "align"
    Options = AlignOptions
    running: Tensor

    def trainable(self, segmenter: Segmenter) -> Iterator[nn.Parameter]:
        """f alone: g stays bit-equal."""
        return segmenter.feature_parameters()

    def prepare(self, context: StageContext) -> Samples:
        """The prior, if it is the model's, and room for the running mean prediction."""
        options = self.options
        # Statistics that are held are those of the images as they are, so that is how they are shown.
        shown = context.choose_input_transform(
            tones=options.color_transforms and options.bn_mode == "batch", zooms=False
        )
        self.look = shown.transform_name
        classes = context.segmenter.num_classes
        self.register_buffer("running", torch.zeros(classes, device=context.fabric.device))
        self.prior = None
        if options.prior == "model":
            layout, underprediction_ratio = shown.habits()
            shares = layout.mean(dim=(1, 2)) * underprediction_ratio**options.class_balance
            self.prior = shares / shares.sum()
        return shown.samples(options)

    def finish(self, context: StageContext) -> None:
        """Norm statistics of whole images: those of the last batches of crops are a worse estimate of the same."""
        if self.options.bn_mode == "batch":
            context.reestimate_bn()

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Focal entropy of every pixel and diversity of the (running) mean prediction."""
        options = self.options
        logits = segmenter(batch["image"])
        mean = mean_prediction(logits, a=options.entropy_weight, valid=batch["valid"])
        if options.memory:
            past = self.running if self.running.any() else mean.detach()
            mean = options.memory * past + (1 - options.memory) * mean
            self.running.copy_(mean.detach())
        return {
            "focal_entropy": focal_entropy_loss(
                logits,
                gamma=options.gamma,
                alpha=options.alpha,
                valid=batch["valid"],
                detach_focus=options.detach_focus,
            ),
            "diversity": options.diversity_weight * diversity_loss(mean, self.prior),
        }
