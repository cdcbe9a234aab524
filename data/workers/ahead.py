"""Work done ahead of time in threads, its results in order.

Decoding and resizing release Python's global lock, so threads are enough, and unlike processes they
need nothing from the caller's `__main__`.
"""

import collections
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def concatenated(
    make: Callable[[Item], Iterable[Result]],
    items: Iterable[Item],
    *,
    num_threads: int,
    depth: int,
    patience: float | None = None,
) -> Iterator[Result]:
    """Yields what `make(item)` yields, for every item, in order.

    The next `num_threads` items are worked on at once, each in a thread of its own, and each at
    most `depth` results ahead, so memory is bounded by `num_threads * (depth + 1)` results.

    Args:
      make: called with one item, in a thread; returns an iterable of results.
      items: the items.
      num_threads: how many items are worked on at once, at least 1.
      depth: how many finished results may wait for each of them, at least 1.
      patience: how many seconds to wait for a result; None waits for ever.

    Yields:
      The results. An exception in a thread is raised when its turn comes.

    Raises:
      TimeoutError: if there is no result for `patience` seconds. The thread is left to itself.

    >>> list(concatenated(range, [2, 0, 3], num_threads=2, depth=1))
    [0, 1, 0, 1, 2]
    """
    stopped = threading.Event()
    waiting = collections.deque()
    items = iter(items)

    def start(item: Item) -> None:
        results = queue.Queue(depth)
        waiting.append(results)
        # A daemon, so that an iterator that was not closed does not keep Python from exiting.
        threading.Thread(
            target=_produce, args=(make, item, results, stopped), name="data-ahead", daemon=True
        ).start()

    try:
        for item in itertools.islice(items, num_threads):
            start(item)
        while waiting:
            try:
                kind, value = waiting[0].get(timeout=patience)
            except queue.Empty:
                raise TimeoutError(f"no result for {patience:g} s") from None
            if kind == "result":
                yield value
            elif kind == "error":
                raise value
            else:
                waiting.popleft()
                for item in itertools.islice(items, 1):
                    start(item)
    finally:
        stopped.set()


def _produce(
    make: Callable[[Item], Iterable[Result]],
    item: Item,
    results: queue.Queue,
    stopped: threading.Event,
) -> None:
    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                results.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    try:
        for value in make(item):
            if not put("result", value):
                return
        put("end", None)
    except BaseException as error:  # raised again in the consumer's thread
        put("error", error)
