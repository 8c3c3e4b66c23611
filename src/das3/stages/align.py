"""Stage 1, implicit feature alignment: target features are moved to where the frozen classifier expects them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from das3.data.samples import Sample, Samples
from das3.losses import diversity_loss, entropy_and_mean_prediction, focal_entropy
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.stages.choose_transform import choose_input_transform
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option
from das3.stages.priors import class_priors

__all__ = ["Align"]


@dataclass(frozen=True)
class AlignOptions(StageOptions):
    """Options of stage 1.

    Attributes:
        alpha: weight of the focal entropy loss.
        gamma: its focusing exponent: the larger, the less uncertain pixels contribute.
        detach_focus: keep the factor (1 − H)^γ out of the gradient. With it in the gradient, as in the released code of
            ATP, pixels of entropy above 1 / (γ + 1) become less certain still.
        diversity_weight: weight of the diversity loss.
        entropy_weight: a, steepness of the pixel weights exp(−a H) in the diversity loss.
        prior: class distribution that the diversity loss pulls the mean prediction towards: equal shares ("uniform",
            the paper), or the mean prediction of the model that enters the stage ("model"), since classes are not
            equally frequent.
        class_balance: in [0, 1]; raises, in the prior "model", classes that win fewer pixels than their mean
            probability: q_c s_c^class_balance, see `das3.stages.priors.ClassPriors`.
        color_transforms: train on colour-transformed images (even illumination, grayscale, …) if the model is clearly
            more confident on them, see `das3.stages.choose_transform`.
    """

    steps: int = 60
    lr: float = 5e-5
    alpha: float = option(1.0, low=0)
    gamma: float = option(5.0, low=0)
    detach_focus: bool = True
    diversity_weight: float = option(1.0, low=0, old="diversity")
    entropy_weight: float = option(3.0, low=0, old="a")
    prior: Literal["uniform", "model"] = option("model", choices=("uniform", "model"))
    class_balance: float = option(0.5, low=0, high=1, old="balance")
    color_transforms: bool = option(True, old="tones")


class Align(Stage[AlignOptions]):
    """L_1 = L_fent + λ_div L_wdiv on f alone. Source: DAS3, stage 1."""

    name = "align"
    Options = AlignOptions

    def trainable(self, segmenter: Segmenter) -> Iterator[nn.Parameter]:
        """f alone: g stays bit-equal."""
        return segmenter.feature_parameters()

    def prepare(self, context: StageContext) -> Samples:
        """Choose the input transform, and compute the prior if it is the model's."""
        options = self.options
        # Fixed statistics are those of unchanged images, so images must not be transformed.
        context = choose_input_transform(
            context,
            options.steps,
            color=options.color_transforms and options.bn_mode in ("auto", "batch"),
            upscale=False,
        )
        self.input_transform = context.transform_name
        self.prior: Tensor | None = None
        if options.prior == "model":
            priors = class_priors(context)
            shares = priors.spatial_prior.mean(dim=(1, 2)) * priors.underprediction_ratio**options.class_balance
            self.prior = shares / shares.sum()
        return context.samples(options)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Focal entropy of every pixel, and diversity of the batch's mean prediction."""
        options, valid = self.options, batch["valid"]
        logits = segmenter(batch["image"])
        entropy, mean = entropy_and_mean_prediction(logits, entropy_weight=options.entropy_weight, valid=valid)
        focal = focal_entropy(
            entropy, gamma=options.gamma, alpha=options.alpha, valid=valid, detach_focus=options.detach_focus
        )
        return {"focal_entropy": focal, "diversity": options.diversity_weight * diversity_loss(mean, self.prior)}

    def finish(self, context: StageContext) -> None:
        """Norm statistics of whole images: those of the last batches of crops are a worse estimate of the same."""
        if self.options.bn_mode in ("auto", "batch"):
            context.reestimate_bn()
