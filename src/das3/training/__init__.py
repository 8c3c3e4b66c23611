"""Training: a run from start to end, its stages, its loop, its folder."""
