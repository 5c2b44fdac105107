"""The same work for many samples, in several threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")


def in_order(
    make: Callable[[Key], Made], keys: Iterable[Key], workers: int
) -> Generator[Made, None, None]:
    """Yield ``make(key)`` for every key, in order, made by `workers` threads.

    Results are those of a plain loop, and so is the first error, raised at its place in the order.
    When the caller stops early (an error, Ctrl-C, `close`), what was not begun is dropped and what
    was begun is waited for.

    Parameters
    ----------
    make
        Called from several threads at a time.
    keys
        Read no further than needed: at most ``2 * workers`` results wait, so memory stays bounded.
    workers
        At least 1.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="in-order")
    waiting: deque[Future[Made]] = deque()
    try:
        for key in keys:
            waiting.append(pool.submit(make, key))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
