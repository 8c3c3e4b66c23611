"""Checkpoints of domain adaptation codebases, read into das3's networks by renaming their keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from das3.errors import ModelError
from das3.models.convert_deeplab import caffe_deeplab, mmseg_deeplab
from das3.models.convert_mit import mmseg_mit, nvidia_mit
from das3.models.metadata import ModelMetadata
from das3.models.plain import build, builtin
from das3.models.renaming import Plan, Tensors, metadata
from das3.models.weights import Weights, fit, read_weights, wrong_classes
from das3.segmenter import Origin, Segmenter

__all__ = ["STYLES", "convert_checkpoint"]

STYLES = ("auto", "adaptsegnet", "urma", "snd", "advent", "ldbe", "mmseg")

# A key that only one kind of checkpoint has, and how that kind is converted; looked for in this order.
_KINDS: dict[str, Callable[[Weights, Tensors, str], Plan]] = {
    "backbone.patch_embed1.proj.weight": nvidia_mit,
    "backbone.layers.0.0.projection.weight": mmseg_mit,
    "backbone.layer4.0.downsample.0.weight": mmseg_deeplab,
    "layer4.0.downsample.0.weight": caffe_deeplab,
}

_CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
# Which of them SYNTHIA's protocols leave out.
_LEFT_OUT: dict[int, tuple[int, ...]] = {19: (), 16: (9, 14, 16), 13: (3, 4, 5, 9, 14, 16)}


def convert_checkpoint(path: str | Path, *, style: str = "auto", num_classes: int | None = None) -> Segmenter:
    """Read a checkpoint of another codebase; `save_segmenter` then writes it as a das3 model folder.

    Auxiliary heads are left out, and so are the teacher and the ImageNet copy in DAFormer's checkpoints.

    Args:
        path: DeepLabV2-ResNet in the style of AdaptSegNet (also URMA, SND), ADVENT or LDBE; DeepLabV2 of DAFormer's
            mmsegmentation; SegFormer with NVIDIA's, DAFormer's or mmsegmentation's keys; DAFormer.
        style: one of `STYLES`; "auto" tells from the keys.
        num_classes: how many classes are expected; as many as the checkpoint has when None.

    Returns:
        The network, with the preprocessing and the upsampling of that codebase.

    Raises:
        ModelError: if the checkpoint can't be read, is of no known style or not of this one, or has other classes.
    """
    if style not in STYLES:
        raise ModelError(f"--style {style}: no such style; there are: {', '.join(STYLES)}")
    weights = read_weights(path)
    plan = _plan(weights, style)
    network, args = build(builtin(plan.network, plan.args), None, None)
    fit(network, replace(weights, tensors=plan.tensors))
    classes = int(args["num_classes"])
    if num_classes is not None and num_classes != classes:
        raise wrong_classes(path, classes, num_classes)
    origin = Origin("plain", f"das3:{plan.network}", args, preprocess="its codebase's")
    card = ModelMetadata(
        plan.preprocess, _class_names(weights, classes), align_corners=plan.align_corners, origin=origin
    )
    return card.segmenter(network).eval()


def _plan(weights: Weights, style: str) -> Plan:
    names = weights.tensors
    for key, convert in _KINDS.items():
        prefixes = [n.removesuffix(key) for n in names if n.endswith(key)]
        if not prefixes:
            continue
        prefix = min(prefixes, key=len)  # "model." rather than the teacher's "ema_model."
        if style != "auto" and (style == "mmseg") != key.startswith("backbone."):
            raise ModelError(f"{weights.source}: its keys are not of --style {style}; leave the option out")
        return convert(weights, {n.removeprefix(prefix): t for n, t in names.items() if n.startswith(prefix)}, style)
    raise ModelError(
        f"{weights.source}: of no codebase that das3 knows (first keys: {', '.join(list(names)[:3])}); if you have its "
        "code, use it as it is with --model package.module:function --weights"
    )


def _class_names(weights: Weights, num_classes: int) -> tuple[str, ...] | None:
    """Names in mmsegmentation's metadata; else those of Cityscapes, if as many as the field's protocols have."""
    names = metadata(weights).get("CLASSES")
    if isinstance(names, list | tuple) and len(names) == num_classes:
        return tuple(map(str, names))
    if num_classes not in _LEFT_OUT:
        return None
    return tuple(name for i, name in enumerate(_CITYSCAPES) if i not in _LEFT_OUT[num_classes])
