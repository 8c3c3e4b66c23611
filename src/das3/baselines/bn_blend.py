"""BN re-estimation that keeps a part of the source's statistics."""

from __future__ import annotations

from dataclasses import dataclass

from das3.stages.bn import BatchNorm, BatchNormOptions

__all__ = ["BatchNormBlend"]


@dataclass(frozen=True)
class BatchNormBlendOptions(BatchNormOptions):
    """Options of blended BN re-estimation; half and half is our choice."""

    target_weight: float = 0.5


class BatchNormBlend(BatchNorm):
    """Statistics between the source's and the target's.

    Source: Schneider et al. (NeurIPS 2020), whose share of the target's is n / (N + n) for n target images and a prior
    of N source images; here the share is given.
    """

    name = "bn-blend"
    Options = BatchNormBlendOptions
