"""Files are read in order, with threads and without."""

import threading

import pytest

from das3 import many_files
from das3.many_files import map_files


@pytest.mark.parametrize("slow", [1e9, 0])
def test_order_and_threads(monkeypatch, slow):
    monkeypatch.setattr(many_files, "_PART", 4)
    monkeypatch.setattr(many_files, "_SLOW", slow)
    seen = list(map_files(lambda n: (n, threading.get_ident()), range(23)))
    assert [n for n, _ in seen] == list(range(23))
    here = [thread == threading.get_ident() for _, thread in seen]
    assert all(here[:4])
    assert all(here[4:]) if slow else not any(here[4:])
    assert list(map_files(str, [])) == []
