"""Any user's segmentation network, seen as the paper sees it: a classifier g after a feature extractor f."""

from das3.segmenter.segmenter import (
    LARGEST_SIDE,
    Origin,
    Preprocess,
    Segmenter,
    evaluating,
    find_classifier,
    find_sides,
    main_logits,
)

__all__ = [
    "LARGEST_SIDE",
    "Origin",
    "Preprocess",
    "Segmenter",
    "evaluating",
    "find_classifier",
    "find_sides",
    "main_logits",
]
