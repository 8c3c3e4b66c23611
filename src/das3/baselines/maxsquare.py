"""Maximum squares: more confident predictions, without a gradient dominated by pixels that are confident already."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from das3.data.samples import Sample
from das3.distributed import mean_over_processes
from das3.losses import most_likely
from das3.stages.base import Stage
from das3.stages.options import StageOptions, option

__all__ = ["MaxSquare", "max_square_loss"]


@dataclass(frozen=True)
class MaxSquareOptions(StageOptions):
    """Options of maximum squares.

    Attributes:
        ratio: exponent of the image-wise weight of each pixel's class, 0 for equal weights.
    """

    steps: int = 300
    ratio: float = option(0.2, low=0, high=1)


def max_square_loss(logits: Tensor, valid: Tensor, *, ratio: float) -> Tensor:
    """−(1/2B) Σ_i Σ_c p_ic² / (N_k^ratio N^(1−ratio)), N_k the pixels of i's image with i's predicted class.

    Args:
        logits: B×C×H×W.
        valid: boolean B×H×W, the pixels that count; N of them in an image.
        ratio: in [0, 1]; 0 weighs all pixels alike, −(1/2N) Σ p².

    Returns:
        Scalar in [−C/2, 0]; with ratio 0 in [−0.5, 0].

    Source: Chen et al. (ICCV 2019), maximum squares loss and its image-wise weighting. The authors' code weighs by the
    pixel's predicted class, as here, and divides by C instead of 2.
    """
    batch, classes = logits.shape[:2]
    probs = logits.float().softmax(dim=1)
    member = most_likely(probs, 1) + classes * torch.arange(batch, device=logits.device).view(-1, 1, 1)
    counts = torch.bincount(member[valid], minlength=batch * classes).view(batch, classes)
    sizes = counts.sum(dim=1, keepdim=True).clamp(min=1)
    weights = 1 / (counts.clamp(min=1) ** ratio * sizes ** (1 - ratio))
    squares: Tensor = (probs**2).sum(dim=1)
    return mean_over_processes(-torch.where(valid, squares * weights.flatten()[member], 0).sum(), 2 * batch)


class MaxSquare(Stage[MaxSquareOptions]):
    """Maximum squares with image-wise class weights. Source: Chen et al. (ICCV 2019), without their source term."""

    name = "maxsquare"
    Options = MaxSquareOptions

    def loss(self, segmenter: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """See `max_square_loss`."""
        loss = max_square_loss(segmenter(batch["image"]), batch["valid"], ratio=self.options.ratio)
        return {"maximum_squares": loss}
