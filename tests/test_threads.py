"""Work that threads do ahead of its use, and behind it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das3 import threads
from das3.threads import ahead, behind


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(0, 4), st.integers(1, 100))
def test_results_come_in_order_and_few_wait(sizes, workers, room):
    begun = []

    def work(n):
        begun.append(n)
        return -n

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threads, "BYTES_AHEAD", room)
        found = ahead(work, range(len(sizes)), workers, sizes.__getitem__)
        for n, result in enumerate(found):
            assert result == -n
            waiting = [i for i in begun if i > n]
            assert len(waiting) <= max(0, 2 * workers - 1)
            assert len(waiting) < 2 or sum(sizes[i] for i in waiting) <= room
    assert sorted(begun) == [*range(len(sizes))]


def test_the_next_is_begun_while_one_is_used():
    begun = {n: threading.Event() for n in range(3)}

    def work(n):
        begun[n].set()
        return n

    for n in ahead(work, range(3), 1, lambda n: 1):
        assert n == 2 or begun[n + 1].wait(10)


def test_what_is_larger_than_the_room_is_begun_alone():
    begun = []
    found = ahead(begun.append, range(3), 4, lambda n: threads.BYTES_AHEAD)
    next(found)
    found.close()
    assert begun == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn_and_ends_the_threads(workers):
    def work(n):
        if n == 2:
            raise OSError("the disk is gone")
        return n

    before, found = threading.active_count(), ahead(work, range(9), workers, lambda n: 1)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(found)
    assert threading.active_count() == before


def test_without_threads_nothing_is_begun_before_it_is_asked_for():
    used = []
    found = ahead(lambda n: used.append(threading.get_ident()), range(3), 0, lambda n: 1)
    next(found)
    assert used == [threading.get_ident()]


def test_all_that_was_handed_over_is_done_when_the_block_ends():
    done = []
    with behind(2, 3) as begin:
        for n in range(50):
            begin(done.append, n)
    assert sorted(done) == [*range(50)]


def test_few_wait_to_be_done():
    held, done = threading.Event(), []

    def wait(n):
        held.wait(10)
        done.append(n)

    def hand_over():
        with behind(1, 2) as begin:
            for n in range(4):
                begin(wait, n)
                handed.append(n)

    handed = []
    other = threading.Thread(target=hand_over)
    other.start()
    other.join(0.2)
    assert handed == [0, 1]
    held.set()
    other.join(10)
    assert handed == sorted(done) == [0, 1, 2, 3]


def test_an_error_behind_is_raised_at_the_latest_when_the_block_ends():
    def fails():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"), behind(1, 8) as begin:
        begin(fails)
