"""BN re-estimation: no training at all, only the batch-norm statistics of the target images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from das3.data.samples import Sample, Samples
from das3.norms import NormMode, reestimate
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions

__all__ = ["BatchNorm"]


@dataclass(frozen=True)
class BatchNormOptions(StageOptions):
    """Options of BN re-estimation.

    Attributes:
        blend: share of the target's statistics; the rest stays with the source's.
    """

    steps: int = 0
    bn_mode: NormMode = "frozen"
    blend: float = 1.0

    def checks(self) -> dict[str, bool]:
        """Ranges of this stage's own options."""
        return {"steps": self.steps == 0, "blend": 0 <= self.blend <= 1}


class BatchNorm(Stage[BatchNormOptions]):
    """Source: AdaBN (Li et al., 2016); the blend after Schneider et al. (NeurIPS 2020)."""

    name = "bn"
    Options = BatchNormOptions

    def prepare(self, context: StageContext) -> Samples:
        """Everything there is to do."""
        reestimate(context.segmenter, context.batches(), blend=self.options.blend)
        return context.samples(self.options)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Never called: there are no steps."""
        raise NotImplementedError
