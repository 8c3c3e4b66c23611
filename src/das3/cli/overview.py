"""The commands, and what `das3 --help` prints. Imports nothing, so that it answers at once."""

from __future__ import annotations

__all__ = ["COMMANDS", "overview"]

COMMANDS = {
    "demo": "watch a model fail, adapt and recover on rendered streets; needs no data",
    "train-source": "train a source model on labelled images, to have something to adapt",
    "adapt": "adapt a trained model to unlabelled images",
    "report": "write the report of a run again: what changed, in one HTML file",
    "compare": "put several runs side by side in one HTML file",
    "evaluate": "measure the mIoU of a model on labelled images, or its label-free signals without labels",
    "predict": "label images with a model",
    "export": "write a model as an ONNX, torch.export or TorchScript file, compared with PyTorch",
    "push": "publish an adapted model on the Hugging Face hub, with a model card",
    "convert": "turn a checkpoint of another codebase into a model",
    "data": "check a published data set on disk",
    "recipes": "list, show or copy the recipes that come with das3",
    "benchmark": "compare methods on a suite of domain shifts, over several seeds",
    "tables": "merge the results of several suites into one table",
    "completion": "print a script that completes commands, options and paths in your shell",
}
"""Command → what it does, in one line. A command's options are in the module of its name."""

_ABOUT = "Adapt a trained semantic segmentation model to new, unlabelled images, without its source data."


def overview() -> str:
    """What `das3 --help` prints."""
    width = max(map(len, COMMANDS))
    commands = (f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parts = ("usage: das3 COMMAND [options]", _ABOUT, "\n".join(("commands:", *commands)))
    return "\n\n".join((*parts, "`das3 COMMAND --help` shows a command's options; `das3 --version` the version."))
