"""Test-time augmentation: mean prediction over scaled and mirrored versions of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from das3.data.images import Size, resize_image, resized_shape
from das3.data.pixels import Pixel, to_unit
from das3.errors import ModelError, RecipeError
from das3.segmenter import Segmenter

__all__ = ["TestTimeAugmentation"]


_LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Versions of an image over which a model's probabilities are averaged.

    Attributes:
        segmenter: the model, on any device.
        size: what images are resized to before the network; the segmenter's own `preprocess.size` when None.
        flip: also use the mirrored image.
        scales: factors on the size of the network's input.

    Raises:
        RecipeError: if a scale is not positive, or above 100.
    """

    segmenter: Segmenter
    size: Size = None
    flip: bool = False
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= _LARGEST_SCALE for scale in self.scales):
            raise RecipeError(f"--scales must be positive numbers such as 0.75,1,1.25, got {list(self.scales)}")

    @property
    def device(self) -> torch.device:
        """The segmenter's."""
        return next(self.segmenter.parameters()).device

    def input_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of this shape has at scale 1 before the network."""
        return resized_shape(shape, self.size if self.size is not None else self.segmenter.preprocess.size)

    def logits(self, images: Sequence[Pixel], shape: tuple[int, int]) -> list[Tensor]:
        """Logits B×C×h×w of the images at every scale of `shape`, mirrored ones mirrored back."""
        found = []
        for scale in self.scales:
            zoomed = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
            batch = torch.from_numpy(np.stack([resize_image(image, zoomed) for image in images]))
            pixels = to_unit(batch.to(self.device).permute(0, 3, 1, 2))
            found.append(self.segmenter(pixels).float())
            if self.flip:
                found.append(self.segmenter(pixels.flip(-1)).float().flip(-1))
        return found

    def probs(self, logits: Sequence[Tensor], shape: tuple[int, int], top: int, bottom: int) -> Tensor:
        """Mean probabilities B×C×(bottom − top)×W of rows of images of this shape."""
        total: Tensor | None = None
        for view in logits:
            probs = _upsampled_rows(view, shape, top, bottom, self.segmenter.align_corners).softmax(dim=1)
            total = probs if total is None else total.add_(probs)
        assert total is not None
        if total.isnan().any():
            raise ModelError(
                f"the network {type(self.segmenter.model).__name__} returns NaN or infinite logits, of which no class "
                "can be told; use precision 32, and take weights from before the training broke"
            )
        return total if len(logits) == 1 else total.div_(len(logits))


def _upsampled_rows(logits: Tensor, shape: tuple[int, int], top: int, bottom: int, align_corners: bool) -> Tensor:
    """Rows `top` to `bottom` of B×C×h×w logits resized to `shape`, without making the others."""
    height, width = logits.shape[-2:]
    if height == shape[0]:
        rows = logits[..., top:bottom, :]
    else:
        place = torch.arange(top, bottom, dtype=torch.float64)
        if align_corners:
            place *= (height - 1) / max(1, shape[0] - 1)
        else:
            place = ((place + 0.5) * (height / shape[0]) - 0.5).clamp_(0, height - 1)
        above = place.long()
        share = (place - above).float().to(logits.device)[:, None]
        above = above.to(logits.device)
        rows = logits[..., above, :].lerp(logits[..., (above + 1).clamp(max=height - 1), :], share)
    if width == shape[1]:
        return rows
    return F.interpolate(rows, size=(bottom - top, shape[1]), mode="bilinear", align_corners=align_corners)
