"""Hostile and odd input in bulk, each piece through the real command: see `__main__`."""
