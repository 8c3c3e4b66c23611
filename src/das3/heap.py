"""Memory that a process has freed, kept for its next batch."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

__all__ = ["keep_freed_memory"]

KEPT_BYTES = 2**29
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""
_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let the process keep up to `KEPT_BYTES` of what it frees, in place of giving it back to the system.

    A batch on a CPU asks for hundreds of megabytes and frees them, over and over. By default glibc gives large blocks
    back each time, and the system clears every page of the new ones (docs/decisions/0036). It holds for the whole
    process. Nothing changes where the C library is another one, or where the user has set how memory is given back.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OF_THE_USER):
        return
    with suppress(AttributeError, OSError):  # other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
