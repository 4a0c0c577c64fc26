# SPDX-License-Identifier: Apache-2.0
"""Notices that a run stands still, and says where."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

EXIT_STUCK = 76  # EX_PROTOCOL of sysexits.h, the next after 75: start it again


class Watchdog:
    """While it is entered, prints the stack of every thread where nothing has moved for a while.

    It needs Python's interpreter lock: a library that hangs with the lock held is not noticed.

    Args:
      seconds: how long; 0 switches it off.
      leave: whether the process then ends, with status `EXIT_STUCK`, so that its launcher starts it again; without, it
        is told once and waited for.
      doing: gives what the run is doing, for the message.
    """

    def __init__(self, seconds: float, *, leave: bool, doing: Callable[[], str]) -> None:
        self._seconds, self._leave, self._doing = seconds, leave, doing
        self._moved, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def moved(self) -> None:
        """To be called with every step, evaluated batch and save."""
        self._moved = time.monotonic()

    def __enter__(self) -> Self:
        self.moved()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        told: float | None = None  # the standstill that was told of
        while not self._ended.wait(max(0.05, self._moved + self._seconds - time.monotonic())):
            if time.monotonic() - self._moved < self._seconds:
                continue
            if told != self._moved:
                self._tell()
                told = self._moved
            if self._leave:
                os._exit(EXIT_STUCK)
            self._ended.wait(self._seconds)

    def _tell(self) -> None:
        ending = "it ends" if self._leave else "it goes on waiting"
        print(
            f"warning: no step for {self._seconds:g} s, during '{self._doing()}'; {ending}. Where every thread stands:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
