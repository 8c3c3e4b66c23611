"""Stage 2, bidirectional self-training: f and g learn what the pixels are and what they surely are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from das3.data.rare_classes import RareClasses
from das3.data.samples import Sample, Samples
from das3.ema import copy_weights, interpolate_weights
from das3.losses import negative_loss, pairwise_loss, positive_loss
from das3.pseudo_labels import adjusted, negative_labels, pack_negatives, positive_labels, unpack_negatives
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions
from das3.stages.thresholds import data_set_thresholds, normalized_labels

__all__ = ["SelfTrain"]


@dataclass(frozen=True)
class SelfTrainOptions(StageOptions):
    """Options of stage 2.

    Attributes:
        top_fraction: K, the share of each class's pixels that get a positive label.
        thresholds: "image" keeps that share in each image, as the paper does; "data" keeps it over all images, and a
            pixel is of the class that improves_on its threshold most, as in class-balanced self-training (CBST).
        negative_threshold: a class below this probability is ruled out for the pixel.
        positive_weight: weight of the positive loss.
        smoothing: share of a positive label that all classes are given equally, in [0, 1).
        negative_weight: λ_neg, weight of the negative loss.
        negative_form: "separate" sums −log(1 − p) over the ruled-out classes, "pooled" takes −log(1 − Σ p).
        negative_where: "all" pixels, or those "unlabelled" by a positive label.
        class_balance: in [0, 1]; how much a class counts for more that wins too few pixels, where positive labels are made,
            see `das3.pseudo_labels.adjusted`; 0 is the paper's plain argmax.
        spatial_prior_weight: how much a class counts for more where in the images it is usually seen, see there; 0 is the paper's.
        color_transforms: show the model that labels the images evenly lit or in another tone, such as grey, if it clearly makes
            more of them then, see `das3.stages.context.StageContext.choose_input_transform`; often it does not.
        upscale: show it larger images, if it is much surer of them, see there; often it is not.
        pairwise_weight: weight of the pairwise loss, by which neighbouring pixels of nearly equal colour are of a class, see
            `das3.losses.pairwise_loss`; 0 is the paper's.
        rare_temperature: T of rare-class sampling, see `das3.data.rare_classes.RareClasses`; images that show classes of
            which there are few labels are shown more often. 0 is the paper's, all images equally often.
        source_weight: share, in [0, 1), of the weights that entered the stage in those that it hands on; 0 is the paper's.
        rounds: how often the labels are made anew and the stage is run.
    """

    steps: int = 250
    lr: float = 3e-4
    color: float = 0.3
    blur: float = 0.3
    top_fraction: float = 0.3
    thresholds: Literal["image", "data"] = "image"
    negative_threshold: float = 0.05
    positive_weight: float = 1.0
    smoothing: float = 0.0
    negative_weight: float = 1.0
    negative_form: Literal["separate", "pooled"] = "separate"
    negative_where: Literal["all", "unlabelled"] = "all"
    class_balance: float = 0.5
    spatial_prior_weight: float = 1.0
    color_transforms: bool = True
    upscale: bool = True
    pairwise_weight: float = 0.0
    rare_temperature: float = 0.0
    source_weight: float = 0.3
    rounds: int = 1

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {
            "top_fraction": 0 < self.top_fraction <= 1,
            "thresholds": self.thresholds in ("image", "data"),
            "negative_threshold": 0 < self.negative_threshold < 1,
            "positive_weight": self.positive_weight >= 0,
            "smoothing": 0 <= self.smoothing < 1,
            "negative_weight": self.negative_weight >= 0,
            "negative_form": self.negative_form in ("separate", "pooled"),
            "negative_where": self.negative_where in ("all", "unlabelled"),
            "class_balance": 0 <= self.class_balance <= 1,
            "spatial_prior_weight": self.spatial_prior_weight >= 0,
            "pairwise_weight": self.pairwise_weight >= 0,
            "rare_temperature": self.rare_temperature >= 0,
            "source_weight": 0 <= self.source_weight < 1,
            "rounds": self.rounds >= 1,
        }


class SelfTrain(Stage[SelfTrainOptions]):
    """L_2 = L_pos + λ_neg L_neg on labels made offline by the model that enters. Source: DAS3, stage 2."""

    name = "selftrain"
    Options = SelfTrainOptions

    def prepare(self, context: StageContext) -> Samples:
        """Label every image in both directions, once, in evaluation mode."""
        options = self.options
        self.num_classes = context.segmenter.num_classes
        self.entered = copy_weights(context.segmenter)
        shown = context.choose_input_transform(tones=options.color_transforms, zooms=options.upscale)
        self.look = shown.transform_name
        self.habits = shown.habits()
        if options.thresholds == "data":
            self.thresholds = data_set_thresholds(shown, options.top_fraction, adjust=self._likely)
        store = self.pseudo_labels = shown.label_all("labels", self._label)
        samples = context.samples(options, maps=store.maps("labels", "negatives"))
        if options.rare_temperature:
            samples.rare = RareClasses((one["labels"] for one in store), options.rare_temperature)
        return samples

    def _likely(self, probs: Tensor) -> Tensor:
        return adjusted(
            probs, *self.habits, balance=self.options.class_balance, place=self.options.spatial_prior_weight
        )

    def _label(self, probs: Tensor) -> dict[str, Tensor]:
        options, likely = self.options, self._likely(probs)
        if options.thresholds == "data":
            positives = normalized_labels(likely, self.thresholds)
        else:
            positives = positive_labels(likely, share=options.top_fraction)
        negatives = negative_labels(probs, threshold=options.negative_threshold)
        # A rare class may have won where it is below the threshold; a pixel's own label is never ruled out.
        negatives &= torch.arange(self.num_classes, device=probs.device).view(-1, 1, 1) != positives
        return {"labels": positives, "negatives": pack_negatives(negatives)}

    def finish(self, context: StageContext) -> None:
        """Some of what the model could do before stays."""
        interpolate_weights(context.segmenter, self.entered, self.options.source_weight)

    def ruled_out(self, logits: Tensor, batch: Sample) -> Tensor:
        """Boolean B×C×H×W, the batch's negative labels."""
        return unpack_negatives(batch["negatives"], self.num_classes)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Cross-entropy on the positive labels, −log(1 − p) on the negative ones."""
        logits = segmenter(batch["image"])
        positive = positive_loss(logits, batch["labels"], smoothing=self.options.smoothing)
        where = batch["valid"]
        if self.options.negative_where == "unlabelled":
            where = where & (batch["labels"] == 255)
        negatives = self.ruled_out(logits, batch)
        losses = {
            "positive_weight": self.options.positive_weight * positive,
            "negative_weight": self.options.negative_weight
            * negative_loss(logits, negatives, valid=where, form=self.options.negative_form),
        }
        if self.options.pairwise_weight:
            pairwise = pairwise_loss(logits, batch["image"], valid=batch["valid"])
            losses["pairwise"] = self.options.pairwise_weight * pairwise
        return losses
