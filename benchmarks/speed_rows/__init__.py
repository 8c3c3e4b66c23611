"""What `speed.py` measures, by kind of row."""
