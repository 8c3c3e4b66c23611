"""`das3 convert`: a checkpoint of another codebase becomes a model folder."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from das3.cli.options import add_flags
from das3.models import save_segmenter
from das3.models.convert import STYLES, convert_checkpoint

__all__ = ["HELP", "add", "run"]

HELP = """
das3 convert CHECKPOINT --out MODEL

Reads DeepLabV2-ResNet of AdaptSegNet, ADVENT, URMA, SND and LDBE, and DeepLabV2, SegFormer and DAFormer with
mmsegmentation's keys. MODEL is what `das3 adapt --model` takes.
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("checkpoint", type=str, help="file with the weights: .pt, .pth or .safetensors")
    parser.add_argument("--out", type=str, required=True, help="folder for the model")
    parser.add_argument(
        "--style",
        type=str,
        default="auto",
        help=f"codebase it comes from, recognised by its keys if not given: {', '.join(STYLES)}",
    )
    parser.add_argument("--num-classes", type=int | None, default=None, help="fail if the number of classes is another")
    add_flags(parser, "state-dict")


def run(given: Namespace) -> None:
    """Convert, and print a description of the model."""
    segmenter = convert_checkpoint(given.checkpoint, style=given.style, num_classes=given.num_classes)
    folder = save_segmenter(segmenter, given.out, state_dict=given.state_dict)
    print(segmenter.describe())
    print(f"class names: {', '.join(segmenter.class_names)}")
    print(f"model:       {folder}")
