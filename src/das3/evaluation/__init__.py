"""Measuring a model, and predicting with it."""
