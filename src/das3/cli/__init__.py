"""The `das3` command line."""

from das3.cli.main import main

__all__ = ["main"]
