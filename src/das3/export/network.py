"""A segmenter as one function from images to labels or logits, without branches that an exporter can't follow."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.data.images import resized_shape
from das3.errors import ModelError, RecipeError
from das3.segmenter import Segmenter, main_logits

__all__ = ["InferenceNetwork", "Output", "Shape", "input_size"]

Output = Literal["labels", "logits", "native"]
"""What comes out: "labels" B×H×W uint8 and "logits" B×C×H×W float32 at the images' size, or "native", the logits
B×C×h×w on the network's own grid.
"""


@dataclass(frozen=True)
class Shape:
    """Which images an exported network takes; None where any.

    Attributes:
        batch: how many at once.
        size: (height, width).
    """

    batch: int | None = None
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        size = "any size" if self.size is None else f"{self.size[0]}×{self.size[1]} pixels"
        return f"{'any number of' if self.batch is None else self.batch} images of {size}"


class InferenceNetwork(nn.Module):
    """Images B×K×H×W float32 in [0, 1] to `Output`: what the model does in `das3 predict`, in one module.

    Inside are the resize to the model's own input size, bilinear and with antialiasing as Pillow does it, mean and std,
    padding, the network, the resize back, and the largest logit.

    Args:
        segmenter: is copied.
        output: what comes out.
        half: weights and computation in float16; images and logits stay float32.
        size: (height, width) of the images if all have one, needed where the model resizes to a shorter side.

    Raises:
        RecipeError: if the model needs the images' size and it was not given.
        ModelError: if the network takes one size only, and images would be larger.
    """

    def __init__(
        self, segmenter: Segmenter, output: Output, *, half: bool = False, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        model = copy.deepcopy(segmenter.model).cpu().eval().requires_grad_(False)
        self.model = model.half() if half else model
        self.output = output
        self.dtype = torch.float16 if half else torch.float32
        self.divisor, self.square = segmenter.divisor, segmenter.square
        self.align_corners, self.output_key = segmenter.align_corners, segmenter.output_key
        self.composed, self.sigmoid = segmenter.composed, segmenter.sigmoid
        self.resized = input_size(segmenter, size)
        seen = self.resized or size
        if segmenter.one_size and seen and max(seen) > segmenter.divisor:
            raise ModelError(
                f"the network takes {segmenter.divisor}×{segmenter.divisor} pixels only; das3 sees larger images in "
                f"windows, which an export does not hold: give --image-size {segmenter.divisor},{segmenter.divisor} "
                "and cut images yourself"
            )
        preprocess = segmenter.preprocess
        self.flipped = preprocess.channels == "bgr"
        self.register_buffer("scale", _per_channel(preprocess.std, preprocess.input_max), persistent=False)
        self.register_buffer("shift", _per_channel(preprocess.std, list(preprocess.mean)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Labels or logits of images B×K×H×W in [0, 1]."""
        size = images.shape[-2:]
        if self.resized is not None:
            images = F.interpolate(images, self.resized, mode="bilinear", align_corners=False, antialias=True)
        logits = self._native(self._padded(images))
        if self.output == "native":
            return logits
        logits = self._at_size(logits, images.shape[-2:])
        if self.resized is not None:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
        return logits if self.output == "logits" else logits.argmax(dim=1).to(torch.uint8)

    def _padded(self, images: Tensor) -> Tensor:
        height, width = self._sides(images.shape[-2:])
        is_traced = bool(torch._C._get_tracing_state())
        is_open = is_traced or any(isinstance(side, torch.SymInt) for side in images.shape[-2:])
        if not is_open and (height, width) == images.shape[-2:]:
            return images
        missing = (0, width - images.shape[-1], 0, height - images.shape[-2])
        return F.pad(images, missing, mode="replicate")

    def _sides(self, size: torch.Size | tuple[int, int]) -> tuple[int, int]:
        """Sides that the network takes; written so that exporters see that they are multiples of the divisor."""
        height, width = size
        if self.square:
            height = width = max(height, width)
        if self.divisor == 1:
            return height, width
        up = self.divisor - 1
        return (height + up) // self.divisor * self.divisor, (width + up) // self.divisor * self.divisor

    def _native(self, images: Tensor) -> Tensor:
        images = images.flip(1) if self.flipped else images
        inputs = images * cast(Tensor, self.scale) - cast(Tensor, self.shift)
        logits = main_logits(self.model(inputs.to(self.dtype)), self.output_key).float()
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if self.sigmoid else logits

    def _at_size(self, logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
        """Logits on the network's grid at the size of its images before padding."""
        if self.composed:
            logits = logits.softmax(dim=1)
        logits = F.interpolate(logits, self._sides(size), mode="bilinear", align_corners=self.align_corners)
        logits = logits[..., : size[0], : size[1]]
        return logits.log() if self.composed else logits


def input_size(segmenter: Segmenter, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """What images are resized to before the network, None if they are not."""
    wanted = segmenter.preprocess.size
    if isinstance(wanted, int):
        if size is None:
            raise RecipeError(
                f"the model resizes images to a shorter side of {wanted} pixels, which depends on their shape; "
                "give the images' height,width with --image-size"
            )
        return resized_shape(size, wanted)
    return wanted


def _per_channel(std: tuple[float, ...], values: float | list[float]) -> Tensor:
    """values / std as 1×K×1×1 float32."""
    return (
        (torch.tensor(values, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)).float().view(1, -1, 1, 1)
    )
