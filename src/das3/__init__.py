"""Adapt a trained semantic segmentation model to new, unlabelled images, without its source data."""

__version__ = "0.1.0"
