"""Any user's segmentation network, seen as the paper sees it: a classifier g after a feature extractor f."""

from das3.segmenter.calling import evaluating, main_logits
from das3.segmenter.classifier import find_classifier
from das3.segmenter.preprocess import LARGEST_SIDE, Preprocess
from das3.segmenter.segmenter import Origin, Segmenter
from das3.segmenter.sides import find_sides

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
