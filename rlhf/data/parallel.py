"""Work on a stream in several threads, its order kept and its memory bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(pool: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """`map(function, items)` in the pool's threads; at most `ahead` results are begun before they are asked for.

    Unlike `Executor.map`, it takes no more items than it works on, so that a long stream is never in memory whole.
    """
    pending: deque = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
