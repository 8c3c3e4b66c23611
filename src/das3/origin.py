"""Where a network came from: what is needed to build it again and to save it as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Origin"]


@dataclass(frozen=True)
class Origin:
    """Where a network came from.

    Attributes:
        kind: "huggingface" or "smp" (their own folder formats), "plain" (built by a function) or "object" (handed over
            in Python).
        spec: folder, the function's name or, for an object, its class.
        model_args: the function's arguments.
        nesting: keys under which the weights file held the state dict.
        prefix: what every key in the weights file began with, "module." for DataParallel.
        trained: False if the network is known to have random weights.
        processor: Hugging Face image processor, which is saved with the network.
    """

    kind: str
    spec: str
    model_args: dict[str, Any] = field(default_factory=dict)
    nesting: list[str] = field(default_factory=list)
    prefix: str = ""
    trained: bool = True
    processor: Any = None
