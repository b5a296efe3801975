"""A few threads that make requests ahead.

An executor of Python's library takes no work once the interpreter is exiting, when the last upload
can still be under way.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

# Requests at a time, each with one part in memory.
PARALLEL = 2


class Workers:
    """Threads that call a function for each of some items.

    Parameters
    ----------
    count : int
        How many threads, and how many items at a time.
    """

    def __init__(self, count: int = PARALLEL) -> None:
        self._count = count
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(
                target=_work, args=(self._tasks,), name=f"brain-ckpt-mirror-{number}", daemon=True
            ).start()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in order; the first error is raised, and the rest is not begun."""
        waiting: collections.deque[Future[R]] = collections.deque()
        try:
            for item in items:
                if len(waiting) == self._count:
                    yield waiting.popleft().result()
                future: Future[R] = Future()
                waiting.append(future)
                self._tasks.put((future, function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads once they are idle."""
        for _ in range(self._count):
            self._tasks.put(None)


@contextlib.contextmanager
def workers() -> Iterator[Workers]:
    """Yield workers, and end them."""
    made = Workers()
    try:
        yield made
    finally:
        made.close()


def _work(tasks: queue.SimpleQueue[Any]) -> None:
    while (task := tasks.get()) is not None:
        future, function, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)
        del task, future, function, item  # a part must not stay in memory
