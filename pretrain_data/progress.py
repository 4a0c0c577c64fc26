# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from pretrain_data.sources.base import Document, ReadLog, Source

_LINE_SECONDS = 10.0


class Progress:
    """How far a task is.

    Args:
        task: what is being done, such as "reading".
        total: bytes.
    """

    def __init__(self, task: str, total: int) -> None:
        self._task, self._total, self._done = task, total, 0
        self._said = time.monotonic()
        self._interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=task,
            unit="B",
            unit_scale=True,
            disable=not self._interactive,
            leave=False,
            dynamic_ncols=True,
        )

    def add(self, size: int) -> None:
        """So many bytes more are done."""
        self._done += size
        self._bar.update(size)
        if not self._interactive and time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            print(f"{self._task}: {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()


def documents_of(sources: Sequence[Source], task: str, log: ReadLog) -> Iterator[tuple[Source, Document]]:
    """Yields the documents of all sources in order, each with its source, and shows how far they are read."""
    progress = Progress(task, sum(source.size for source in sources))
    try:
        for source in sources:
            for part in source.parts():
                for document in source.read(part, log):
                    yield source, document
                progress.add(part.size)
    finally:
        progress.close()
