# SPDX-License-Identifier: Apache-2.0
"""Prepares batches ahead of the training loop, in a thread, and measures how long the loop waited for them."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Wanted = TypeVar("Wanted")
Made = TypeVar("Made")


class Loader(Generic[Wanted, Made]):
    """Yields (what was wanted, what was made of it) for one thing after the other, from a thread that runs ahead.

    The thread only calls the pure function `make`, so how far it runs ahead cannot change what it yields. An exception
    in it is raised by the iteration.

    Args:
      make: makes one batch.
      wanted: what to make, in order; the iteration ends where it does.
      ahead: how many batches are kept ready.

    Attributes:
      waited: seconds that the consumer has spent waiting so far.
    """

    def __init__(self, make: Callable[[Wanted], Made], wanted: Iterable[Wanted], *, ahead: int):
        self.waited = 0.0
        self._queue: queue.Queue[tuple[Wanted, Made] | BaseException] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, wanted), daemon=True, name="loader")
        self._thread.start()

    def _run(self, make: Callable[[Wanted], Made], wanted: Iterable[Wanted]) -> None:
        items = iter(wanted)
        while not self._stop.is_set():
            item: tuple[Wanted, Made] | BaseException
            try:
                want = next(items)
                item = want, make(want)
            except BaseException as e:  # handed to the consumer, which raises it; StopIteration ends its iteration
                item = e
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[tuple[Wanted, Made]]:
        while True:
            began = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - began
            if isinstance(item, BaseException):
                self._queue.put(item)  # the thread has ended: who asks again is told again, and does not wait forever
                if isinstance(item, StopIteration):
                    return
                raise item
            yield item

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join()
