"""Class mixing: paste the pixels of some classes of one image, with their labels, over another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["class_mix", "pick_classes"]


def pick_classes(
    labels: Tensor, rng: np.random.Generator, *, wanted: int | None = None, ignore_index: int = 255
) -> Tensor:
    """Half of the classes present (rounded up), at random.

    Args:
        labels: integer class ids of any shape.
        rng: source of randomness.
        wanted: a class that is among them, if it is present; None for none.
        ignore_index: id that is no class.

    Returns:
        The picked ids; empty where there are none.

    Source: ClassMix (Olsson et al., WACV 2021), as used in DAS3's stage 3.
    """
    counts = torch.bincount(labels.flatten())  # sorting all pixels, as unique() does, takes ten times as long
    present = counts.nonzero().squeeze(1)
    present = present[present != ignore_index]
    ids = present[torch.from_numpy(rng.permutation(len(present))).to(present.device)].tolist()
    ids.sort(key=lambda c: c != wanted)  # the others stay in their order
    return torch.tensor(ids[: (len(ids) + 1) // 2], dtype=labels.dtype, device=labels.device)


def class_mix(
    over: dict[str, Tensor],
    under: dict[str, Tensor],
    rng: np.random.Generator,
    *,
    wanted: int | None = None,
    ignore_index: int = 255,
) -> dict[str, Tensor]:
    """Paste random classes of the sample `over` on the sample `under`.

    Args:
        over, under: samples with a "labels" H×W map and any other maps …×H×W (image, valid, …) of equal shapes.
        rng: source of randomness.
        wanted: a class that is pasted if `over` shows it; None for none.
        ignore_index: label id that is never pasted.

    Returns:
        A new sample: every map taken from `over` where its label is picked, from `under` elsewhere.

    Source: DAS3, Mix(·, ·) of stage 3.
    """
    picked = pick_classes(over["labels"], rng, wanted=wanted, ignore_index=ignore_index)
    is_picked = torch.zeros(int(over["labels"].max()) + 1, dtype=torch.bool, device=picked.device)
    is_picked[picked.long()] = True
    # Four times as fast as is_picked[labels] on a CPU.
    mask = is_picked.index_select(0, over["labels"].int().flatten()).view_as(over["labels"])
    return {key: torch.where(mask, over[key], under[key]) for key in over}
