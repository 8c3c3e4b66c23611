"""The stages of DAS3, and the interface that every method shares."""

from __future__ import annotations

from typing import Any

from das3.stages.align import Align
from das3.stages.base import Stage, StageTags
from das3.stages.bn import BatchNorm
from das3.stages.context import StageContext
from das3.stages.options import LoopOptions, StageOptions, option
from das3.stages.propagate import Propagate
from das3.stages.selftrain import SelfTrain

__all__ = [
    "DAS3_STAGES",
    "Align",
    "BatchNorm",
    "LoopOptions",
    "Propagate",
    "SelfTrain",
    "Stage",
    "StageContext",
    "StageOptions",
    "StageTags",
    "option",
]

DAS3_STAGES: tuple[type[Stage[Any]], ...] = (Align, SelfTrain, Propagate, BatchNorm)
"""Those that are neither baselines nor other packages'."""
