# SPDX-License-Identifier: Apache-2.0
"""Prepares batches ahead of the training loop, in a thread, and measures how long the loop waited for them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator

from albert_jax.data.stream import Batch

Item = tuple[int, Batch]


class Loader:
    """Yields (position, batch) for positions start, start + stride, ... from a thread that runs ahead.

    The thread only calls the pure function `make`, so how far it runs ahead cannot change what it yields. An exception
    in it is raised by the iteration.

    Args:
      make: builds the batch at a position.
      start: first position.
      stride: distance between batches.
      ahead: how many batches are kept ready.

    Attributes:
      waited: seconds that the consumer has spent waiting so far.
    """

    def __init__(self, make: Callable[[int], Batch], *, start: int, stride: int, ahead: int):
        self.waited = 0.0
        self._queue: queue.Queue[Item | BaseException] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, start, stride), daemon=True, name="loader")
        self._thread.start()

    def _run(self, make: Callable[[int], Batch], position: int, stride: int) -> None:
        item: Item | BaseException
        while not self._stop.is_set():
            try:
                item = position, make(position)
            except BaseException as e:  # handed to the consumer, which raises it
                item = e
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            position += stride

    def __iter__(self) -> Iterator[Item]:
        while True:
            began = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - began
            if isinstance(item, BaseException):
                self._queue.put(item)  # the thread has ended: who asks again is told again, and does not wait forever
                raise item
            yield item

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join()
