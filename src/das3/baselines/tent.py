"""TENT: minimise entropy by the norm layers' scales and shifts alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from das3.data.samples import Sample
from das3.errors import ModelError
from das3.losses import focal_entropy_loss
from das3.segmenter import Segmenter
from das3.stages.base import Stage
from das3.stages.options import StageOptions

__all__ = ["Tent"]


@dataclass(frozen=True)
class TentOptions(StageOptions):
    """Options of TENT; the learning rate is the paper's for Adam."""

    steps: int = 300
    lr: float = 1e-3


class Tent(Stage[TentOptions]):
    """Entropy minimisation on each batch's statistics, training γ and β of the norm layers.

    Source: Wang et al. (ICLR 2021). The authors' code takes BatchNorm2d only and adapts while it
    predicts; here it is trained on the target images first, as every method, and networks without batch norm train
    their group or layer norms.
    """

    name = "tent"
    Options = TentOptions

    def trainable(self, segmenter: Segmenter) -> Iterator[nn.Parameter]:
        """Scales and shifts of the batch-norm layers, else of the other norm layers."""
        for kinds in ((_BatchNorm,), (nn.GroupNorm, nn.LayerNorm)):
            found = [p for m in segmenter.model.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)]
            if found:
                return iter(found)
        raise ModelError("tent trains norm layers and the network has none; choose another method")

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Mean normalised entropy of the valid pixels."""
        return {"entropy": focal_entropy_loss(segmenter(batch["image"]), gamma=0.0, valid=batch["valid"])}
