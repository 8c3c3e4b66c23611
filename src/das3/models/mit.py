"""SegFormer and DAFormer: a mix transformer (MiT) with a light decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from das3.models.extras import library

__all__ = ["MitSegmenter", "daformer", "segformer"]


class MitSegmenter(nn.Module):
    """MiT encoder, an embedding of each of its four scales, their fusion at stride 4, and a 1×1 classifier.

    Args:
        num_classes: C.
        encoder: "mit_b0" to "mit_b5".
        channels: width of the embeddings and of their fusion.
        fusion: "conv" is SegFormer's 1×1 convolution, "sepaspp" DAFormer's depthwise separable ASPP.
        embed_norm: whether embeddings have batch norm and ReLU, as in mmsegmentation's own SegFormer.
        norm_eps: eps of all layer norms; the published encoder has 1e-6 in its blocks and 1e-5 in between.

    Source: Xie et al., SegFormer (NeurIPS 2021); Hoyer et al., DAFormer (CVPR 2022).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "mit_b5",
        channels: int = 256,
        *,
        fusion: str = "conv",
        embed_norm: bool = False,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder = _encoder(encoder)
        if norm_eps is not None:
            for module in self.encoder.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = norm_eps
        widths = self.encoder.out_channels[-4:]
        embed = _conv if embed_norm else nn.Conv2d
        self.embed = nn.ModuleList(embed(width, channels, 1) for width in widths)
        self.fuse = SepASPP(4 * channels, channels) if fusion == "sepaspp" else _conv(4 * channels, channels, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B×3×H×W to logits B×C×⌈H/4⌉×⌈W/4⌉."""
        features = self.encoder(x)[-4:]
        size = features[0].shape[-2:]
        embedded = [embed(f) for embed, f in zip(self.embed, features, strict=True)]
        resized = [F.interpolate(e, size=size, mode="bilinear", align_corners=False) for e in embedded]
        return self.classifier(self.dropout(self.fuse(torch.cat(resized, dim=1))))  # type: ignore[no-any-return]


class SepASPP(nn.Module):
    """Parallel 1×1 and dilated depthwise separable 3×3 convolutions, concatenated and reduced by a 3×3 convolution."""

    def __init__(self, inputs: int, channels: int, dilations: Sequence[int] = (1, 6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _conv(inputs, channels, 1)
            if d == 1
            else nn.Sequential(_conv(inputs, inputs, 3, d, groups=inputs), _conv(inputs, channels, 1))
            for d in dilations
        )
        self.reduce = _conv(len(dilations) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """B×inputs×h×w to B×channels×h×w."""
        return self.reduce(torch.cat([branch(x) for branch in self.branches], dim=1))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _encoder(name: str) -> Any:
    return library("segmentation_models_pytorch.encoders", "smp").get_encoder(name, weights=None)


def segformer(
    num_classes: int,
    encoder: str = "mit_b5",
    channels: int = 768,
    *,
    embed_norm: bool = False,
    norm_eps: float | None = None,
) -> MitSegmenter:
    """Build a SegFormer with random weights; see `MitSegmenter`."""
    return MitSegmenter(num_classes, encoder, channels, embed_norm=embed_norm, norm_eps=norm_eps)


def daformer(num_classes: int, encoder: str = "mit_b5", channels: int = 256) -> MitSegmenter:
    """Build a DAFormer with random weights; see `MitSegmenter`."""
    return MitSegmenter(num_classes, encoder, channels, fusion="sepaspp")
