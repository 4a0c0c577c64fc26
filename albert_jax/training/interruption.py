# SPDX-License-Identifier: Apache-2.0
"""Turns SIGTERM and SIGINT into a wish to stop, which the training loop grants between two steps, after saving."""

import signal
import types
from typing import Self

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again


class Interruption:
    """While it is entered, the first SIGTERM or SIGINT sets `requested`; further ones are passed over.

    A second signal must not break off the save that the first one led to: launchers repeat theirs.
    """

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if not self.requested:
            self.requested, self.name = True, signal.Signals(number).name
