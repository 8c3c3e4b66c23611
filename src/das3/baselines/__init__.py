"""Other methods, as stages: the same model, images, loop and steps as das3's own."""

from __future__ import annotations

from typing import Any

from das3.baselines.atp import AtpAlign, AtpSelfTrain
from das3.baselines.bn_blend import BatchNormBlend
from das3.baselines.cbst import Cbst, Crst
from das3.baselines.hcl import Hcl
from das3.baselines.ld import Ld
from das3.baselines.maxsquare import MaxSquare
from das3.baselines.mean_teacher import MeanTeacher
from das3.baselines.minent import MinEnt
from das3.baselines.pseudo_label import PseudoLabel
from das3.baselines.sfda import Sfda
from das3.baselines.shot import Shot, ShotIm
from das3.baselines.tent import Tent
from das3.baselines.urma import Urma
from das3.stages.base import Stage

__all__ = ["BASELINES"]

BASELINES: tuple[type[Stage[Any]], ...] = (
    BatchNormBlend,
    MinEnt,
    MaxSquare,
    Tent,
    ShotIm,
    Shot,
    PseudoLabel,
    Cbst,
    Crst,
    Urma,
    Ld,
    Sfda,
    Hcl,
    MeanTeacher,
    AtpAlign,
    AtpSelfTrain,
)
