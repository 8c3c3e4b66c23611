"""DeepLabV2-ResNet101 as the domain adaptation literature uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from das3.errors import ModelError

__all__ = ["DeepLabV2", "deeplabv2_resnet101"]

DILATIONS = (6, 12, 18, 24)


class DeepLabV2(nn.Module):
    """ResNet at output stride 8; the logits are the sum of four dilated 3×3 convolutions (ASPP).

    Source: Chen et al., DeepLab (TPAMI 2018), in the form of AdaptSegNet and ADVENT.

    Args:
        num_classes: C.
        layers: blocks per stage; (3, 4, 23, 3) is ResNet-101.
        caffe: strides on the blocks' first 1×1 convolution and a max-pooling that rounds up, as in networks converted
            from Caffe, instead of torchvision's.
    """

    def __init__(self, num_classes: int, layers: Sequence[int] = (3, 4, 23, 3), *, caffe: bool = False) -> None:
        super().__init__()
        self.backbone = _resnet(layers, caffe=caffe)
        self.classifier = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        for branch in self.classifier:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """B×3×H×W to logits B×C×H/8×W/8."""
        features = self.backbone(x)
        return torch.stack([branch(features) for branch in self.classifier]).sum(dim=0)


def _resnet(layers: Sequence[int], *, caffe: bool) -> nn.Sequential:
    try:
        from torchvision.models.resnet import Bottleneck, ResNet
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"das3:deeplabv2_resnet101 needs torchvision: pip install 'das3[torchvision]' ({error})"
        ) from error
    resnet: Any = ResNet(Bottleneck, list(layers), replace_stride_with_dilation=[False, True, True])
    if caffe:
        resnet.maxpool.ceil_mode = True
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            _move_stride(stage[0])
        # torchvision gives a dilated stage's first block the dilation of the stage before; Caffe's has its own.
        for stage, dilation in ((resnet.layer3, 2), (resnet.layer4, 4)):
            stage[0].conv2.dilation = stage[0].conv2.padding = (dilation, dilation)
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    backbone = nn.Sequential()
    for part in parts:
        backbone.add_module(part, getattr(resnet, part))
    return backbone


def _move_stride(block: Any) -> None:
    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def deeplabv2_resnet101(num_classes: int, layers: Sequence[int] = (3, 4, 23, 3), *, caffe: bool = False) -> DeepLabV2:
    """Build a `DeepLabV2` with random weights."""
    return DeepLabV2(num_classes, layers, caffe=caffe)
