"""What may come before stage 1: target features are matched to what the model remembers of the source's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from das3.baselines.bn_statistics import moments_loss, recorded_batch_statistics
from das3.data.samples import Sample, Samples
from das3.ema import copy_weights
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions

__all__ = ["Match"]


@dataclass(frozen=True)
class MatchOptions(StageOptions):
    """Options of moment matching.

    Attributes:
        gain: share of log C by which the model must make more of the target images afterwards, and be surer of them,
            see `das3.stages.choose_transform.ConfidenceStatistics`; if it does not, it is handed on as it came. Features of a target that shows its
            classes in other shares than the source should not have the source's moments.
    """

    steps: int = 150
    lr: float = 5e-5
    gain: float = 0.05

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {"gain": -1 <= self.gain <= 1}


class Match(Stage[MatchOptions]):
    """f is trained until its features have the moments that the batch-norm layers remember, if that tells more.

    Source: Ishii & Sugiyama (arXiv 2101.10842), there over the layers of the classifier of images and beside a loss of
    mutual information, by which we judge instead.
    """

    name = "match"
    Options = MatchOptions

    def trainable(self, segmenter: Segmenter) -> Iterator[nn.Parameter]:
        """f alone: g stays bit-equal."""
        return segmenter.feature_parameters()

    def prepare(self, context: StageContext) -> Samples:
        """What the model makes of the images as it comes; without batch norm there is nothing to match."""
        self.source_moments = context.source_moments
        if not self.source_moments:
            self.options = replace(self.options, steps=0)
        self.entered = copy_weights(context.segmenter)
        self.before = context.insight("before")
        return context.samples(self.options)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Distance of the batch's moments to those of the source."""
        with recorded_batch_statistics(segmenter) as now:
            segmenter(batch["image"])
        return {"moments": moments_loss(now, self.source_moments)}

    def finish(self, context: StageContext) -> None:
        """Norm statistics of whole images, and the verdict."""
        if self.options.bn_mode == "batch":
            context.reestimate_bn()
        if not context.insight("after").improves_on(self.before, by=self.options.gain):
            context.segmenter.load_state_dict(self.entered)
