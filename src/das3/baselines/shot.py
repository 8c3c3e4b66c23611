"""SHOT: features move to the frozen classifier, by information maximisation and by pseudo labels of class centroids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.baselines.features import features_and_logits, to_grid
from das3.data.samples import Sample, Samples
from das3.distributed import mean_over_processes
from das3.losses import masked_mean, most_likely, positive_loss
from das3.segmenter import Segmenter, evaluating
from das3.stages.base import OptionsT, Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option

__all__ = ["NearestCentroid", "Shot", "ShotIm", "class_centroids", "information_losses"]


def information_losses(logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """L_ent = mean_i H(p_i) and L_div = −H(mean_i p_i), in nats; their sum is minus the mutual information.

    Args:
        logits: B×C×H×W.
        valid: boolean B×H×W, the pixels that count.

    Source: SHOT, eq. 3.
    """
    log_probs = logits.float().log_softmax(dim=1)
    probs = log_probs.exp()
    entropy = masked_mean(-(probs * log_probs).sum(dim=1), valid)
    mean = mean_over_processes(torch.where(valid.unsqueeze(1), probs, 0).sum(dim=(0, 2, 3)), valid.sum())
    return entropy, torch.xlogy(mean, mean).sum()


class _Frozen(Stage[OptionsT]):
    """What both have: g is frozen and mutual information is maximised."""

    def trainable(self, segmenter: Segmenter) -> Iterator[nn.Parameter]:
        """f alone."""
        return segmenter.feature_parameters()

    def information(self, logits: Tensor, valid: Tensor) -> dict[str, Tensor]:
        entropy, diversity = information_losses(logits, valid)
        return {"entropy": entropy, "diversity": diversity}


@dataclass(frozen=True)
class ShotImOptions(StageOptions):
    """Options of information maximisation."""

    steps: int = 300


class ShotIm(_Frozen[ShotImOptions]):
    """Information maximisation alone. Source: Liang et al. (ICML 2020), SHOT-IM, with a pixel for an image."""

    name = "shot-im"
    Options = ShotImOptions

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """See `information_losses`."""
        return self.information(segmenter(batch["image"]), batch["valid"])


@dataclass(frozen=True)
class ShotOptions(StageOptions):
    """Options of SHOT.

    Attributes:
        beta: weight of the pseudo labels' cross-entropy.
        rounds: number of rounds; labels are made again before each.
    """

    steps: int = 100
    beta: float = option(0.3, low=0)
    rounds: int = option(3, low=1)


class Shot(_Frozen[ShotOptions]):
    """Information maximisation and pseudo labels of the nearest class centroid.

    Source: Liang et al. (ICML 2020), eq. 3 to 7, with a pixel for an image. As in the authors' code a 1 is appended to
    the features, they are compared by their cosine, and centroids are taken twice: of soft, then of nearest-centroid
    labels. The authors hold all features in memory; two passes over the images add the centroids up instead.
    """

    name = "shot"
    Options = ShotOptions

    def prepare(self, context: StageContext) -> Samples:
        """Label every pixel of every image by its nearest centroid."""
        network = NearestCentroid(context.segmenter)
        for hard in (False, True):
            network.fit(context, hard=hard)
        # What predicts in the segmenter's place is all that differs from labelling by the model itself.
        labeller = replace(context, segmenter=cast(Segmenter, network))
        store = self.pseudo_labels = labeller.label_all("labels", _nearest, batched=True)
        return context.samples(self.options, maps=store.maps("labels"))

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Mutual information of all pixels and cross-entropy with the centroids' labels."""
        logits = segmenter(batch["image"])
        labels = self.options.beta * positive_loss(logits, batch["labels"])
        return {**self.information(logits, batch["valid"]), "labels": labels}


def _nearest(probs: Tensor) -> dict[str, Tensor]:
    return {"labels": most_likely(probs, 1).to(torch.uint8)}


def class_centroids(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums C×(D+1) of the normalised features with a 1 appended, and the sums C of the weights.

    Args:
        features: B×D×h×w.
        weights: B×C×h×w, how much each place belongs to each class.
    """
    return torch.einsum("bchw,bdhw->cd", weights, _directions(features)), weights.sum(dim=(0, 2, 3))


def _directions(features: Tensor) -> Tensor:
    return F.normalize(torch.cat([features, torch.ones_like(features[:, :1])], dim=1), dim=1)


class NearestCentroid(nn.Module):
    """Calls each pixel after the class whose centroid its features are closest to by the cosine."""

    centroids: Tensor
    present: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.training = segmenter.training  # not train(), which would change the layers that have a mode of their own

    @torch.no_grad()
    def fit(self, context: StageContext, *, hard: bool) -> None:
        """Take the centroids over all images, of the classifier's probabilities or (hard) of the nearest centroid.

        A class that the classifier predicts nowhere gets no pixel.
        """
        total = torch.zeros((), dtype=torch.float64, device=context.fabric.device)
        with evaluating(self.segmenter):
            for images in context.batches():
                total = total + self._sums(context, images, hard=hard)
        sums, weights, counts = total[:, :-2], total[:, -2], total[:, -1]
        self.centroids = F.normalize(sums / weights.clamp(min=1e-8).unsqueeze(1), dim=1).float()
        self.present = counts > 0

    def _sums(self, context: StageContext, images: Tensor, *, hard: bool) -> Tensor:
        """Of each class, C×(D+3) float64: sums of features with a 1 appended, of weights, and the number of pixels."""
        with context.fabric.autocast():
            features, logits = features_and_logits(self.segmenter, images)
        scores = self._similarity(features, images) if hard else logits
        labels = F.one_hot(most_likely(scores, 1), logits.shape[1]).movedim(-1, 1).float()
        soft = labels if hard else logits.softmax(dim=1)
        sums, weights = class_centroids(features, to_grid(self.segmenter, soft, features))
        return torch.cat([sums, torch.stack([weights, labels.sum(dim=(0, 2, 3))], dim=1)], dim=1).double()

    def forward(self, images: Tensor) -> Tensor:
        """Similarities B×C×H×W in [−1, 1], minus infinity for absent classes."""
        features, _ = features_and_logits(self.segmenter, images)
        return self._similarity(features, images)

    def _similarity(self, features: Tensor, images: Tensor) -> Tensor:
        cosine = torch.einsum("cd,bdhw->bchw", self.centroids, _directions(features))
        cosine = self.segmenter.upsample(cosine, images)
        return cosine.masked_fill(~self.present.view(1, -1, 1, 1), -torch.inf)
