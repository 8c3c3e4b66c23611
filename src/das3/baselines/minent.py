"""MinEnt: make every pixel's prediction more confident."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from das3.data.samples import Sample
from das3.losses import focal_entropy_loss
from das3.stages.base import Stage
from das3.stages.options import StageOptions

__all__ = ["MinEnt"]


@dataclass(frozen=True)
class MinEntOptions(StageOptions):
    """Options of entropy minimisation."""

    steps: int = 300


class MinEnt(Stage[MinEntOptions]):
    """L = (1/N) Σ_i H(p_i), without a source term.

    Source: Vu et al., ADVENT (CVPR 2019), direct entropy minimisation. The authors add the loss, times 0.001, to
    the source images' cross-entropy, which is not to be had here.
    """

    name = "minent"
    Options = MinEntOptions

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Mean normalised entropy of the valid pixels."""
        return {"entropy": focal_entropy_loss(segmenter(batch["image"]), gamma=0.0, valid=batch["valid"])}
