"""SIGTERM, by which Slurm and spot machines announce the end: the step is finished and saved before it takes effect."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from das3.distributed import is_first_process

__all__ = ["sigterm_postponed"]

GRACE = 20.0
"""Seconds that process 0 of several has to end the others; if SIGTERM came to one of these alone, it ends then."""


@contextmanager
def sigterm_postponed() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM is noted; afterwards it takes effect as if it came then. A second one takes effect at once.

    Yields:
        Whether it has come and this process is to save and stop; process 0 alone does, and the others end with it.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGTERM)
    noted: list[int] = []
    again = threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True

    def note(number: int, frame: object) -> None:
        noted.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if not is_first_process():
            again.start()

    signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(noted) and is_first_process()
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if noted:
            signal.raise_signal(signal.SIGTERM)
