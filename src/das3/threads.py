"""Work that threads do before it is asked for, or after it was handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["BYTES_AHEAD", "ahead", "behind"]

S = TypeVar("S")
T = TypeVar("T")

BYTES_AHEAD = 2**28
"""Of what waits to be asked for, at most."""


def ahead(
    work: Callable[[S], T], items: Iterable[S], threads: int, size: Callable[[S], int]
) -> Generator[T, None, None]:
    """`work` of item after item, begun before it is asked for: two for each thread, if they are small.

    Args:
        work: may run in several threads at once.
        items: in order.
        threads: how many; without any, nothing is begun before it is asked for.
        size: bytes of what work of an item gives, roughly. What does not fit beside the rest has to wait its turn.

    Raises:
        Exception: that of `work`, in its turn.
    """
    if threads < 1:
        yield from map(work, items)
        return
    waiting: deque[tuple[int, Future[T]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            needed = size(item)
            while waiting and (len(waiting) >= 2 * threads or needed + sum(n for n, _ in waiting) > BYTES_AHEAD):
                yield waiting.popleft()[1].result()
            waiting.append((needed, pool.submit(work, item)))
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def behind(threads: int, most: int) -> Iterator[Callable[..., None]]:
    """A function that has threads call another one; when the block ends all are done, or an error of one is raised.

    Args:
        threads: how many, at least 1.
        most: calls that may wait; a further one waits for the oldest.
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def begin(work: Callable[..., Any], *given: Any) -> None:
            while len(waiting) >= most:
                waiting.popleft().result()
            waiting.append(pool.submit(work, *given))

        yield begin
        while waiting:
            waiting.popleft().result()
