"""Stage 2, bidirectional self-training: f and g learn from positive and negative pseudo labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from das3.data.rare_classes import RareClasses
from das3.data.samples import Sample, Samples
from das3.ema import copy_weights, interpolate_weights
from das3.losses import bidirectional_losses, pairwise_loss
from das3.pseudo_labels import adjust_posteriors, negative_labels, pack_negatives, positive_labels, unpack_negatives
from das3.stages.base import Stage
from das3.stages.choose_transform import choose_input_transform
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option
from das3.stages.priors import class_priors
from das3.stages.thresholds import data_set_thresholds, normalized_labels

__all__ = ["SelfTrain"]


@dataclass(frozen=True)
class SelfTrainOptions(StageOptions):
    """Options of stage 2.

    Attributes:
        top_fraction: K, fraction of each class's pixels that get a positive label, the most confident first.
        thresholds: apply that fraction within each image ("image", the paper), or over all images ("data"), where each
            pixel takes the class that exceeds its threshold most, as in class-balanced self-training (CBST).
        negative_threshold: a class below this probability is a negative label of the pixel.
        positive_weight: weight of the positive loss.
        negative_weight: λ_neg, weight of the negative loss.
        negative_form: "separate" sums −log(1 − p) over the negative classes, "pooled" takes −log(1 − Σ p).
        class_balance: in [0, 1]; raises classes that win too few pixels when positive labels are made, see
            `das3.pseudo_labels.adjust_posteriors`; 0 is the paper's plain argmax.
        spatial_prior_weight: raises each class in the part of the image where it usually occurs, see
            `das3.pseudo_labels.adjust_posteriors`; 0 is the paper.
        color_transforms: make the labels on colour-transformed images (even illumination, grayscale, …) if the model is
            clearly more confident on them, see `das3.stages.choose_transform`.
        upscale: make the labels on enlarged images if the model is much more confident on them.
        pairwise_weight: weight of the pairwise loss, which pulls neighbouring pixels of nearly equal colour to the same
            class, see `das3.losses.pairwise_loss`; 0 is the paper.
        rare_temperature: temperature of rare-class sampling, see `das3.data.rare_classes`: images with rare classes are
            drawn more often; 0 draws all images equally often, as in the paper.
        source_weight: weight interpolation: fraction, in [0, 1), of the incoming weights in those that the stage passes
            on; 0 is the paper.
    """

    steps: int = 250
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    top_fraction: float = option(0.3, above=0, high=1, old="share")
    thresholds: Literal["image", "data"] = option("image", choices=("image", "data"))
    negative_threshold: float = option(0.05, above=0, below=1)
    positive_weight: float = option(1.0, low=0, old="positive")
    negative_weight: float = option(1.0, low=0, old="negative")
    negative_form: Literal["separate", "pooled"] = option("separate", choices=("separate", "pooled"))
    class_balance: float = option(0.5, low=0, high=1, old="balance")
    spatial_prior_weight: float = option(1.0, low=0, old="layout")
    color_transforms: bool = option(True, old="tones")
    upscale: bool = option(True, old="zooms")
    pairwise_weight: float = option(0.0, low=0, old="pairwise")
    rare_temperature: float = option(0.0, low=0)
    source_weight: float = option(0.3, low=0, below=1, old="keep")


class SelfTrain(Stage[SelfTrainOptions]):
    """L_2 = L_pos + λ_neg L_neg on labels made offline by the incoming model. Source: DAS3, stage 2."""

    name = "selftrain"
    Options = SelfTrainOptions

    def prepare(self, context: StageContext) -> Samples:
        """Label every image in both directions, once, in evaluation mode."""
        options = self.options
        self.num_classes = context.segmenter.num_classes
        self.incoming_weights = copy_weights(context.segmenter)
        chosen = choose_input_transform(context, options.steps, color=options.color_transforms, upscale=options.upscale)
        self.input_transform = chosen.transform_name
        self.priors = class_priors(chosen)
        if options.thresholds == "data":
            self.thresholds = data_set_thresholds(chosen, options.top_fraction, adjust=self._adjusted)
        samples = context.samples(options)
        groups = None if options.rare_temperature else context.drawn_groups(samples, options.steps)
        store = self.pseudo_labels = chosen.label_all("labels", self._label, groups=groups, batched=True)
        samples.maps = store.maps("labels", "negatives")
        if options.rare_temperature:
            samples.rare = RareClasses((one["labels"] for one in store), options.rare_temperature)
        return samples

    def _adjusted(self, probs: Tensor) -> Tensor:
        options = self.options
        return adjust_posteriors(
            probs,
            *self.priors,
            class_balance=options.class_balance,
            spatial_prior_weight=options.spatial_prior_weight,
        )

    def _label(self, probs: Tensor) -> dict[str, Tensor]:
        options, adjusted = self.options, self._adjusted(probs)
        if options.thresholds == "data":
            positives = normalized_labels(adjusted, self.thresholds)
        else:
            positives = positive_labels(adjusted, top_fraction=options.top_fraction)
        negatives = negative_labels(probs, threshold=options.negative_threshold)
        # A rare class may have won where it is below the threshold; a pixel's positive label is never a negative one.
        classes = torch.arange(self.num_classes, dtype=positives.dtype, device=probs.device).view(-1, 1, 1)
        negatives &= classes != positives.unsqueeze(1)
        return {"labels": positives, "negatives": pack_negatives(negatives)}

    def finish(self, context: StageContext) -> None:
        """Interpolate between the incoming and the trained weights."""
        interpolate_weights(context.segmenter, self.incoming_weights, self.options.source_weight)

    def negatives(self, logits: Tensor, batch: Sample) -> Tensor:
        """Boolean B×C×H×W, the batch's negative labels."""
        return unpack_negatives(batch["negatives"], self.num_classes)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy on the positive labels, −log(1 − p) on the negative ones."""
        options, valid = self.options, batch["valid"]
        logits = segmenter(batch["image"])
        positive, negative = bidirectional_losses(
            logits, batch["labels"], self.negatives(logits, batch), valid=valid, form=options.negative_form
        )
        losses = {
            "positive": options.positive_weight * positive,
            "negative": options.negative_weight * negative,
        }
        if options.pairwise_weight:
            losses["pairwise"] = options.pairwise_weight * pairwise_loss(logits, batch["image"], valid=valid)
        return losses
