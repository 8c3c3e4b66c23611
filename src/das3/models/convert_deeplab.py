"""DeepLabV2 checkpoints of AdaptSegNet and its descendants, ADVENT, LDBE, and mmsegmentation (DAFormer's release).

AdaptSegNet and what came from it (URMA, SND, BDL, MaxSquare, …) return from within the loop over the four ASPP
branches, so their networks sum the first two. ADVENT's sums all four, under the same keys. What tells them apart is
that the unused branches keep their initial values.
"""

from __future__ import annotations

from torch import Tensor

from das3.errors import ModelError
from das3.models.deeplabv2 import CAFFE
from das3.models.renaming import MMSEG, Plan, Tensors, count, metadata, renamed
from das3.models.weights import Weights

__all__ = ["caffe_deeplab", "mmseg_deeplab"]


def _layers(tensors: Tensors, prefix: str) -> list[int]:
    return [count(tensors, rf"{prefix}layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]


def caffe_deeplab(weights: Weights, tensors: Tensors, style: str) -> Plan:
    """ResNet keys at the top, `layer5.conv2d_list.*` or `layer6.conv2d_list.*` as head; Caffe's ResNet throughout.

    Raises:
        ModelError: if the head is another one, or the style has to be told.
    """
    head = _main_head(tensors, style)
    if f"{head}.conv2d_list.0.weight" not in tensors:
        raise ModelError(
            f"{weights.source}: has no {head}.conv2d_list.0.weight, so it is not a DeepLabV2 of --style {style}"
        )
    branches = _branches(weights, tensors, head, style)
    rules = [
        *((rf"{head}\.conv2d_list\.{i}\.", f"classifier.{i}.") for i in range(branches)),
        (r"(conv1|bn1|layer[1-4])\.", r"backbone.\1."),
        (r"layer[56]\.|aux_decoders\.|bn_pretrain\.", ""),
    ]
    args = {
        "num_classes": tensors[f"{head}.conv2d_list.0.weight"].shape[0],
        "layers": _layers(tensors, ""),
        "dilations": [6, 12, 18, 24][:branches],
        "caffe": True,
    }
    return Plan("deeplabv2_resnet101", args, renamed(tensors, rules), CAFFE, align_corners=True)


def _main_head(tensors: Tensors, style: str) -> str:
    """layer6, beside which layer5 is an auxiliary head on 1024 channels, or layer5 where it is on the last features."""
    fifth = tensors.get("layer5.conv2d_list.0.weight")
    on_last_features = fifth is not None and fifth.shape[1] == 2048
    return "layer5" if style == "ldbe" or on_last_features else "layer6"


def _branches(weights: Weights, tensors: Tensors, head: str, style: str) -> int:
    if style in ("adaptsegnet", "urma", "snd"):
        return 2
    only_advent_has = head == "layer6" and not any(n.startswith("layer5.") for n in tensors)
    only_ldbe_has = head == "layer5" and any(n.startswith("layer6.") for n in tensors)
    if style in ("advent", "ldbe") or only_advent_has or only_ldbe_has:
        return 4
    untouched = [_is_initial(tensors[f"{head}.conv2d_list.{i}.weight"]) for i in range(4)]
    if all(untouched):
        raise ModelError(
            f"{weights.source}: untrained, so nothing tells whether its network sums two ASPP branches (--style "
            "adaptsegnet) or four (--style advent); say which"
        )
    return 2 if untouched[2] and untouched[3] else 4


def _is_initial(weight: Tensor) -> bool:
    """Whether a weight still looks like N(0, 0.01²), which these codebases start from. Decay alone would shrink it."""
    error = 4 / weight.numel() ** 0.5
    mean, std = float(weight.mean()), float(weight.std())
    return bool(abs(std / 0.01 - 1) < max(0.01, error) and abs(mean) < 0.01 * error)


def mmseg_deeplab(weights: Weights, tensors: Tensors, style: str) -> Plan:
    """`backbone.*` of a ResNet (V1c with its deep stem, or V1), `decode_head.aspp_modules.*`.

    Raises:
        ModelError: if the head is another one.
    """
    del style
    if "decode_head.aspp_modules.0.conv.bias" not in tensors:
        raise ModelError(
            f"{weights.source}: its decode_head is not DeepLabV2's; das3 converts DeepLabV2, SegFormer, DAFormer"
        )
    deep_stem = "backbone.stem.0.weight" in tensors
    config = str(metadata(weights).get("config", "contract_dilation=True"))
    args = {
        "num_classes": tensors["decode_head.aspp_modules.0.conv.weight"].shape[0],
        "layers": _layers(tensors, r"backbone\."),
        "dilations": [6, 12, 18, 24][: count(tensors, r"decode_head\.aspp_modules\.(\d+)\.")],
        "caffe": False,
        "contract_dilation": "contract_dilation=True" in config.replace(" ", ""),
        "deep_stem": deep_stem,
    }
    rules = [
        (r"backbone\.stem\.", "backbone.conv1."),
        (r"decode_head\.aspp_modules\.(\d+)\.conv\.", r"classifier.\1."),
        (r"decode_head\.conv_seg\.|auxiliary_head\.", ""),
    ]
    return Plan("deeplabv2_resnet101", args, renamed(tensors, rules), MMSEG, align_corners=False)
