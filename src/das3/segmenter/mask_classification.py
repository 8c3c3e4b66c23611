"""Mask classification: networks whose queries each predict one mask and the class of what it covers.

MaskFormer, Mask2Former, OneFormer and EoMT return no logits per pixel. Here they are composed, and it is said which
of their layers are the classifier g.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["mask_heads", "mask_queries", "semantic_logits"]

_EPS = 1e-6
"""Added to each class's score, so that its logarithm and gradient are finite: logits are never below about -14."""

# What transformers, and the networks' own codebases, call the two outputs.
_OUTPUTS = (("class_queries_logits", "masks_queries_logits"), ("pred_logits", "pred_masks"))

# Where transformers' networks, by model type, have the layers that read a query's class and its mask.
_HEADS = {
    "maskformer": ("class_predictor", "mask_embedder"),
    "mask2former": ("class_predictor", "model.transformer_module.decoder.mask_predictor"),
    "oneformer": (
        "model.transformer_module.decoder.class_embed",
        "model.transformer_module.decoder.mask_embed",
    ),
    "eomt": ("class_predictor", "mask_head"),
    "eomt_dinov3": ("class_predictor", "mask_head"),
}

TYPES = frozenset(_HEADS)
"""Model types of transformers that are opened as mask classification."""


def mask_queries(output: Any) -> tuple[Tensor, Tensor] | None:
    """Class logits B×Q×(C+1), "no object" last, and mask logits B×Q×h×w, if the output holds them."""
    for names in _OUTPUTS:
        classes, masks = (output.get(n) if isinstance(output, Mapping) else getattr(output, n, None) for n in names)
        if isinstance(classes, Tensor) and isinstance(masks, Tensor) and (classes.ndim, masks.ndim) == (3, 4):
            return classes, masks
    return None


def semantic_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Logits per pixel whose softmax is the share of each class in what the queries claim of the pixel.

    A class's score is Σ_q p_q(c) σ(m_q), with p_q the softmax over the classes and "no object", which is then left
    out. Scores of all classes together may be more than 1, where queries overlap, or less, where none claims the pixel.
    What is missing to 1 is doubt about the pixel and is spread over all classes alike; more than 1 is scaled down. The
    logits are the logarithms of that, so that softmax, entropy and cross-entropy mean what they mean for any network,
    and the class of the largest score stays the largest.

    Args:
        class_logits: B×Q×(C+1), "no object" last.
        mask_logits: B×Q×h×w.

    Returns:
        B×C×h×w float32 log-probabilities. For C = 1 the one logit of the score as a probability.

    Source: semantic inference of MaskFormer (Cheng et al., NeurIPS 2021, section 3.4), the same in Mask2Former (CVPR
    2022), OneFormer and EoMT; that a pixel which all queries reject is unknown: RbA (Nayal et al., ICCV 2023).
    """
    with torch.autocast(class_logits.device.type, enabled=False):  # half precision can't tell 0.999 from 1
        classes = class_logits.float().softmax(dim=-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", classes, mask_logits.float().sigmoid())
        if scores.shape[1] == 1:
            return torch.logit(scores.clamp(max=1.0), eps=_EPS)
        claimed = scores.sum(dim=1, keepdim=True)
        doubt = F.relu(1 - claimed)
        count = scores.shape[1]
        probs = (scores + doubt / count + _EPS) / (claimed + doubt + count * _EPS)
        return probs.log()


def mask_heads(model: nn.Module) -> tuple[str, ...] | None:
    """Names of g's layers in a known mask classification network, None for any other.

    g is what turns a query into a class and into the weights of a 1×1 convolution: the class predictor and the mask
    embedding. The queries and the pixels' embeddings, which both are applied to, are the features.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return _HEADS.get(kind) if isinstance(kind, str) else None
