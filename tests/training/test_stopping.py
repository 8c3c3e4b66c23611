"""SIGTERM to one process of several, which process 0 does not know of."""

import os
import signal
import time

import pytest

from das3.training import stopping
from das3.training.stopping import sigterm_postponed


class Ended(Exception):
    """What the handler of the command line raises."""


@pytest.fixture
def handler(monkeypatch):
    def end(number, frame):
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    monkeypatch.setattr(stopping, "GRACE", 0.2)
    yield
    signal.signal(signal.SIGTERM, before)


def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def terminated(stops, seconds):
    """A stage that gets SIGTERM, and goes on for some seconds."""
    with sigterm_postponed() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait(seconds)
        assert stop() == stops


def test_process_0_finishes_its_step_first(handler):
    began = time.monotonic()
    with pytest.raises(Ended):
        terminated(True, 0.5)
    assert time.monotonic() - began > 0.4


def test_another_process_ends_by_itself_if_process_0_does_not_end_it(handler, monkeypatch):
    monkeypatch.setattr(stopping, "is_first_process", lambda: False)
    began = time.monotonic()
    with pytest.raises(Ended):
        terminated(False, 30)
    assert time.monotonic() - began < 20


def test_without_a_signal_nothing_comes_later(handler, monkeypatch):
    monkeypatch.setattr(stopping, "is_first_process", lambda: False)
    with sigterm_postponed() as stop:
        assert not stop()
    wait(0.4)
