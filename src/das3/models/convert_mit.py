"""SegFormer checkpoints with NVIDIA's, DAFormer's or mmsegmentation's keys, and DAFormer's own."""

from __future__ import annotations

import re
from typing import Any

import torch

from das3.errors import ModelError
from das3.models.renaming import MMSEG, Plan, Tensors, count, renamed
from das3.models.weights import Weights

__all__ = ["mmseg_mit", "nvidia_mit"]


def nvidia_mit(weights: Weights, tensors: Tensors, style: str) -> Plan:
    """SegFormer and DAFormer on NVIDIA's encoder, whose keys smp's has too.

    Raises:
        ModelError: if the head is another one.
    """
    del style
    rules: list[tuple[str, str]] = [(r"backbone\.head\.|auxiliary_head\.", ""), (r"backbone\.", "encoder.")]
    args: dict[str, Any] = {
        "encoder": _encoder_name(tensors, r"backbone\.block3\.(\d+)\.", "backbone.patch_embed1.proj.bias")
    }
    if "decode_head.fuse_layer.aspp_modules.0.conv.weight" in tensors:
        network, last = "daformer", "decode_head.conv_seg"
        rules += [
            (r"decode_head\.embed_layers\.(\d)\.proj\.", r"embed.\1."),
            *_ASPP,
            (rf"{re.escape(last)}\.", "classifier."),
        ]
    elif "decode_head.linear_pred.weight" in tensors:
        network, last = "segformer", "decode_head.linear_pred"
        tensors = _first_scale_first(tensors)
        rules += [
            (r"decode_head\.linear_c\.(\d)\.proj\.", r"embed.\1."),
            (r"decode_head\.linear_fuse\.conv\.", "fuse.0."),
            (r"decode_head\.linear_fuse\.bn\.", "fuse.1."),
            (rf"{re.escape(last)}\.", "classifier."),
            (r"decode_head\.conv_seg\.", ""),
        ]
    else:
        raise ModelError(f"{weights.source}: its decode_head is neither SegFormer's nor DAFormer's with separable ASPP")
    args["num_classes"], args["channels"] = tensors[f"{last}.weight"].shape[:2]
    state = {
        name: tensor[..., None, None] if name.startswith("embed.") and tensor.ndim == 2 else tensor
        for name, tensor in renamed(tensors, rules).items()
    }
    return Plan(network, args, state, MMSEG, align_corners=False)


_ASPP = [
    (r"decode_head\.fuse_layer\.aspp_modules\.(\d)\.conv\.", r"fuse.branches.\1.0."),
    (r"decode_head\.fuse_layer\.aspp_modules\.(\d)\.bn\.", r"fuse.branches.\1.1."),
    (r"decode_head\.fuse_layer\.aspp_modules\.(\d)\.depthwise_conv\.conv\.", r"fuse.branches.\1.0.0."),
    (r"decode_head\.fuse_layer\.aspp_modules\.(\d)\.depthwise_conv\.bn\.", r"fuse.branches.\1.0.1."),
    (r"decode_head\.fuse_layer\.aspp_modules\.(\d)\.pointwise_conv\.conv\.", r"fuse.branches.\1.1.0."),
    (r"decode_head\.fuse_layer\.aspp_modules\.(\d)\.pointwise_conv\.bn\.", r"fuse.branches.\1.1.1."),
    (r"decode_head\.fuse_layer\.bottleneck\.conv\.", "fuse.reduce.0."),
    (r"decode_head\.fuse_layer\.bottleneck\.bn\.", "fuse.reduce.1."),
]


def _first_scale_first(tensors: Tensors) -> Tensors:
    """NVIDIA's head (linear_c1…linear_c4) concatenates the last scale first; others (linear_c.0…3) the first one."""
    if "decode_head.linear_c1.proj.weight" not in tensors:
        return tensors
    rules = [(rf"decode_head\.linear_c{i + 1}\.", f"decode_head.linear_c.{i}.") for i in range(4)]
    fuse = "decode_head.linear_fuse.conv.weight"
    return renamed(tensors, rules) | {fuse: torch.cat(tensors[fuse].chunk(4, dim=1)[::-1], dim=1)}


def mmseg_mit(weights: Weights, tensors: Tensors, style: str) -> Plan:
    """mmsegmentation's own SegFormer: joint q, k, v projection, 1×1 convolutions as linear layers, eps 1e-6 throughout.

    Raises:
        ModelError: if the head is another one.
    """
    del style
    if "decode_head.fusion_conv.conv.weight" not in tensors:
        raise ModelError(f"{weights.source}: its decode_head is not SegFormer's")
    split: Tensors = {}
    for name, tensor in tensors.items():
        if "attn.attn.in_proj_" in name:
            width = tensor.shape[0] // 3
            split[name.replace("attn.attn.in_proj_", "attn.q.")] = tensor[:width]
            split[name.replace("attn.attn.in_proj_", "attn.kv.")] = tensor[width:]
        else:
            split[name] = tensor.flatten(1) if re.search(r"\.ffn\.layers\.[04]\.weight$", name) else tensor
    rules = [(r"auxiliary_head\.", "")]
    for i in range(4):
        layer, stage = rf"backbone\.layers\.{i}\.", i + 1
        rules += [
            (rf"{layer}0\.projection\.", f"encoder.patch_embed{stage}.proj."),
            (rf"{layer}0\.norm\.", f"encoder.patch_embed{stage}.norm."),
            (rf"{layer}1\.(\d+)\.attn\.attn\.out_proj\.", rf"encoder.block{stage}.\1.attn.proj."),
            (rf"{layer}1\.(\d+)\.ffn\.layers\.0\.", rf"encoder.block{stage}.\1.mlp.fc1."),
            (rf"{layer}1\.(\d+)\.ffn\.layers\.1\.", rf"encoder.block{stage}.\1.mlp.dwconv.dwconv."),
            (rf"{layer}1\.(\d+)\.ffn\.layers\.4\.", rf"encoder.block{stage}.\1.mlp.fc2."),
            (rf"{layer}1\.", f"encoder.block{stage}."),
            (rf"{layer}2\.", f"encoder.norm{stage}."),
        ]
    rules += [
        (r"decode_head\.convs\.(\d)\.conv\.", r"embed.\1.0."),
        (r"decode_head\.convs\.(\d)\.bn\.", r"embed.\1.1."),
        (r"decode_head\.fusion_conv\.conv\.", "fuse.0."),
        (r"decode_head\.fusion_conv\.bn\.", "fuse.1."),
        (r"decode_head\.conv_seg\.", "classifier."),
    ]
    classes, channels = tensors["decode_head.conv_seg.weight"].shape[:2]
    args = {
        "num_classes": classes,
        "encoder": _encoder_name(tensors, r"backbone\.layers\.2\.1\.(\d+)\.", "backbone.layers.0.0.projection.bias"),
        "channels": channels,
        "embed_norm": True,
        "norm_eps": 1e-6,
    }
    return Plan("segformer", args, renamed(split, rules), MMSEG, align_corners=False)


def _encoder_name(tensors: Tensors, third_stage: str, first_width: str) -> str:
    """MiT's size, told by the depth of the third stage; B0 and B1 differ in width."""
    depth = count(tensors, third_stage)
    if depth == 2:
        return "mit_b0" if tensors[first_width].shape[0] == 32 else "mit_b1"
    return f"mit_b{ {6: 2, 18: 3, 27: 4}.get(depth, 5) }"
