"""Other methods, as stages: the same model, images, loop and steps as das3's own."""

from __future__ import annotations

from typing import Any

from das3.rivals.atp import AtpAlign, AtpSelfTrain
from das3.rivals.bn_blend import BatchNormBlend
from das3.rivals.cbst import Cbst, Crst
from das3.rivals.hcl import Hcl
from das3.rivals.ld import Ld
from das3.rivals.maxsquare import MaxSquare
from das3.rivals.mean_teacher import MeanTeacher
from das3.rivals.minent import MinEnt
from das3.rivals.pseudo_label import PseudoLabel
from das3.rivals.sfda import Sfda
from das3.rivals.shot import Shot, ShotIm
from das3.rivals.tent import Tent
from das3.rivals.urma import Urma
from das3.stages.base import Stage

__all__ = ["RIVALS"]

RIVALS: tuple[type[Stage[Any]], ...] = (
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
