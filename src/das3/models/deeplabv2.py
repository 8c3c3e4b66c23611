"""DeepLabV2-ResNet101 as the domain adaptation literature uses it, in the variants that its codebases differ in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from das3.models.extras import library
from das3.segmenter import Preprocess

__all__ = ["CAFFE", "DeepLabV2", "deeplabv2_resnet101"]

CAFFE = Preprocess((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), input_max=255, channels="bgr")
"""Images as networks converted from Caffe take them: BGR in [0, 255] without the mean."""


class DeepLabV2(nn.Module):
    """ResNet at output stride 8; the logits are the sum of dilated 3×3 convolutions (ASPP) on its last features.

    Source: Chen et al., DeepLab (TPAMI 2018), in the form of AdaptSegNet and ADVENT.

    Args:
        num_classes: C.
        layers: blocks per stage; (3, 4, 23, 3) is ResNet-101.
        dilations: one branch each. AdaptSegNet and much that came from it return from within the loop over the
            branches, so what they train has the first two only.
        caffe: as in networks converted from Caffe, strides on the first 1×1 convolution of a block, a max-pooling that
            rounds up, and batch-norm scales and shifts that stay fixed; else as in torchvision.
        contract_dilation: whether the first block of a dilated stage keeps the dilation of the stage before, as in
            torchvision; by default where not `caffe`.
        deep_stem: three 3×3 convolutions in place of the first 7×7 one, as in mmsegmentation's ResNetV1c.
    """

    def __init__(
        self,
        num_classes: int,
        layers: Sequence[int] = (3, 4, 23, 3),
        dilations: Sequence[int] = (6, 12, 18, 24),
        *,
        caffe: bool = True,
        contract_dilation: bool | None = None,
        deep_stem: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = _backbone(layers)
        if deep_stem:
            self.backbone.conv1, self.backbone.bn1 = _deep_stem(), nn.Identity()
        if not (contract_dilation if contract_dilation is not None else not caffe):
            _dilate_first_blocks(self.backbone)
        if caffe:
            _as_caffe(self.backbone)
        self.classifier = nn.ModuleList(nn.Conv2d(2048, num_classes, 3, padding=d, dilation=d) for d in dilations)
        for branch in self.classifier:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """B×3×H×W to logits B×C×~H/8×~W/8."""
        features = self.backbone(x)
        logits: Tensor = self.classifier[0](features)
        for branch in self.classifier[1:]:
            logits = logits + branch(features)
        return logits


def _backbone(layers: Sequence[int]) -> Any:
    """torchvision's ResNet at output stride 8, up to its last features."""
    resnet = library("torchvision.models.resnet", "torchvision")
    network = resnet.ResNet(resnet.Bottleneck, list(layers), replace_stride_with_dilation=[False, True, True])
    kept = list(network.named_children())[:-2]  # without pooling and ImageNet classes
    backbone = nn.Sequential()
    for name, module in kept:
        backbone.add_module(name, module)
    return backbone


def _deep_stem() -> nn.Sequential:
    stem = nn.Sequential()
    for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        stem.extend([nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)])
    return stem


def _dilate_first_blocks(backbone: Any) -> None:
    for stage, dilation in ((backbone.layer3, 2), (backbone.layer4, 4)):
        stage[0].conv2.dilation = stage[0].conv2.padding = (dilation, dilation)


def _as_caffe(backbone: Any) -> None:
    backbone.maxpool.ceil_mode = True
    block = backbone.layer2[0]
    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)


def deeplabv2_resnet101(
    num_classes: int,
    layers: Sequence[int] = (3, 4, 23, 3),
    dilations: Sequence[int] = (6, 12, 18, 24),
    *,
    caffe: bool = True,
    contract_dilation: bool | None = None,
    deep_stem: bool = False,
) -> DeepLabV2:
    """Build a `DeepLabV2` with random weights; see there."""
    return DeepLabV2(
        num_classes, layers, dilations, caffe=caffe, contract_dilation=contract_dilation, deep_stem=deep_stem
    )
