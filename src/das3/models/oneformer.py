"""OneFormer asks for a task beside the image: it is always told "the task is semantic"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from das3.errors import ModelError

__all__ = ["SEMANTIC", "TaskInput", "give_task", "save_tokenizer"]

SEMANTIC = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""CLIP's byte-pair codes of "the task is semantic", between its start and end: what the tokenizer of every published
OneFormer makes of it, so that none has to be fetched. OneFormer's processor fills up with zeros."""

_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


class TaskInput:
    """A hook before the network's forward that adds `task_inputs` where the caller gave none.

    Args:
        codes: of the task's text.
        length: of the network's input, `task_seq_len` in its config.
        tokenizer: that made them, saved with the network; None if the folder had none.
    """

    def __init__(self, codes: Sequence[int], length: int, tokenizer: Any = None) -> None:
        self.codes = [*codes, *[0] * length][:length]
        self.tokenizer = tokenizer

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Add the task for as many images as there are."""
        if len(args) < 2 and kwargs.get("task_inputs") is None:
            images: Tensor = args[0] if args else kwargs["pixel_values"]
            task = torch.tensor(self.codes, device=images.device, dtype=torch.float32)
            kwargs = {**kwargs, "task_inputs": task.expand(len(images), -1)}
        return args, kwargs


def _hook(model: nn.Module) -> TaskInput | None:
    return next((h for h in model._forward_pre_hooks.values() if isinstance(h, TaskInput)), None)


def give_task(model: nn.Module, folder: Path | None = None) -> None:
    """Let a OneFormer network be called on images alone, in evaluation and in training; any other is left alone.

    Args:
        model: gets a hook; none of its weights and nothing of its config changes.
        folder: whose tokenizer makes the codes, if it has one.

    Raises:
        ModelError: if the folder's tokenizer can't be opened.
    """
    if getattr(getattr(model, "config", None), "model_type", None) != "oneformer" or _hook(model) is not None:
        return
    # Trained with texts that describe the labels, which only its own losses need.
    for module in model.modules():
        if getattr(module, "is_training", False):
            module.is_training = False  # type: ignore[assignment]
    length = int(model.config.task_seq_len)  # type: ignore[union-attr, arg-type]
    tokenizer = _tokenizer(folder) if folder is not None else None
    codes = _codes(tokenizer, length) if tokenizer is not None else SEMANTIC
    model.register_forward_pre_hook(TaskInput(codes, length, tokenizer), with_kwargs=True)


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt")):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises on damaged files
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"{folder}: OneFormer's tokenizer can't be opened ({type(error).__name__}: {reason}); "
            f"repair or remove {', '.join(_FILES)}; without them das3 uses CLIP's"
        ) from None


def _codes(tokenizer: Any, length: int) -> list[int]:
    """As OneFormer's processor does: filled up to `length` with zeros."""
    return list(tokenizer("the task is semantic", truncation=True, max_length=length)["input_ids"])


def save_tokenizer(model: nn.Module, folder: Path) -> None:
    """Write the tokenizer that came with a OneFormer network."""
    hook = _hook(model)
    if hook is not None and hook.tokenizer is not None:
        hook.tokenizer.save_pretrained(folder)
