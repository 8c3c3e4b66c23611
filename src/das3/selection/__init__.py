"""Choosing without labels: signals, which batch-norm statistics a model runs on, and which candidate is handed back."""
