# SPDX-License-Identifier: Apache-2.0
"""Prepares batches ahead of the loop that uses them, in threads, and measures how long the loop waited for them."""

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Wanted = TypeVar("Wanted")
Made = TypeVar("Made")


class Loader(Generic[Wanted, Made]):
    """Yields (what was wanted, what was made of it) for one thing after the other, from threads that run ahead.

    The threads only call the pure function `make`, so neither how far they run ahead nor which is done first can change
    what is yielded, or its order. Threads are enough: NumPy lets go of the interpreter's lock while it works. An
    exception in one is raised by the iteration where its batch would stand.

    Args:
      make: makes one batch; from several threads at once.
      wanted: what to make, in order; the iteration ends where it does.
      ahead: how many batches are ready or being made, each by a thread of its own; at least 1.

    Attributes:
      waited: seconds that the consumer has spent waiting so far.
    """

    def __init__(self, make: Callable[[Wanted], Made], wanted: Iterable[Wanted], *, ahead: int):
        self.waited = 0.0
        self._make, self._wanted, self._ahead = make, iter(wanted), ahead
        self._threads = ThreadPoolExecutor(ahead, "loader")
        self._coming = collections.deque[tuple[Wanted, Future[Made]]]()
        self._order()

    def _order(self) -> None:
        for want in itertools.islice(self._wanted, self._ahead - len(self._coming)):
            self._coming.append((want, self._threads.submit(self._make, want)))

    def __iter__(self) -> Iterator[tuple[Wanted, Made]]:
        while self._coming:
            want, making = self._coming[0]
            began = time.perf_counter()
            made = making.result()  # where this raises, the batch stays the next one: who asks again is told again
            self.waited += time.perf_counter() - began
            self._coming.popleft()
            self._order()
            yield want, made

    def close(self) -> None:
        """Ends the threads; one in the middle of a batch finishes it."""
        self._threads.shutdown(cancel_futures=True)
