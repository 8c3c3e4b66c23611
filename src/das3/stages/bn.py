"""BN re-estimation: no training at all, only the batch-norm statistics of the target images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from das3.data.samples import Sample, Samples
from das3.norms import BatchNormMode
from das3.stages.base import Stage
from das3.stages.context import StageContext
from das3.stages.options import StageOptions, option

__all__ = ["BatchNorm"]


@dataclass(frozen=True)
class BatchNormOptions(StageOptions):
    """Options of BN re-estimation.

    Attributes:
        target_weight: weight of the target's statistics; the source's have the rest.
    """

    steps: int = option(0, low=0, high=0)
    bn_mode: BatchNormMode = "frozen"
    target_weight: float = option(1.0, low=0, high=1, old="blend")


class BatchNorm(Stage[BatchNormOptions]):
    """Source: AdaBN (Li et al., 2016); the blend after Schneider et al. (NeurIPS 2020)."""

    name = "bn"
    Options = BatchNormOptions

    def prepare(self, context: StageContext) -> Samples:
        """Everything there is to do."""
        context.reestimate_bn(context.groups(), target_weight=self.options.target_weight)
        return context.samples(self.options)

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Never called: there are no steps."""
        raise NotImplementedError
