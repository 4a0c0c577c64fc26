# SPDX-License-Identifier: Apache-2.0
"""Runs passes over the parts of a corpus, in this process or in several; `pretrain_data.beam` does it on a cluster."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol

from albert_jax.errors import UserError
from pretrain_data import passes
from pretrain_data.passes import Job
from pretrain_data.progress import Progress


class Workers(Protocol):
    """Whoever runs passes."""

    def run(self, job: Job, name: str, numbers: Sequence[int]) -> None:
        """Runs the pass `name` over the parts with these numbers; their results are in the workplace afterwards."""

    def close(self) -> None:
        """Lets the workers go."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


TASKS = {
    "scan": "choosing validation documents",
    "guard": "comparing with training documents",
    "tokenize": "tokenizing",
}


class Here:
    """Runs everything in this process, where SentencePiece has threads of its own."""

    def run(self, job: Job, name: str, numbers: Sequence[int]) -> None:
        """See `Workers`."""
        progress = Progress(TASKS[name], sum(job.parts[number][1].size for number in numbers))
        try:
            for number in numbers:
                passes.run(job, name, number)
                progress.add(job.parts[number][1].size)
        finally:
            progress.close()

    def close(self) -> None:
        """Nothing to let go."""


_STOPPING = (signal.SIGINT, signal.SIGTERM)
_job: Job | None = None  # the worker process's own copy


def _start(job: Job) -> None:
    """In a new worker: it takes the job, leaves Ctrl-C to its parent, and ends when its parent does."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _run(name: str, number: int) -> int:
    assert _job is not None
    return passes.run(_job, name, number)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back while processes start: one that is half started would tell at length.

    New processes inherit that these are held back, until `_start` has said what becomes of them there.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes:
    """Runs parts in processes of this machine.

    Args:
        job: what they work on.
        count: how many there are.
    """

    def __init__(self, job: Job, count: int) -> None:
        self._pool = ProcessPoolExecutor(
            count, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(job,)
        )

    def run(self, job: Job, name: str, numbers: Sequence[int]) -> None:
        """See `Workers`.

        Raises:
            UserError: what a worker met, or that a worker was killed.
        """
        progress = Progress(TASKS[name], sum(job.parts[number][1].size for number in numbers))
        with _uninterrupted():
            waiting: set[Future[int]] = {self._pool.submit(_run, name, number) for number in numbers}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    progress.add(job.parts[future.result()][1].size)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; the same command goes on from the finished "
                "parts, with fewer --workers if need be"
            ) from error
        finally:
            progress.close()

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        processes: dict[int, Any] = getattr(self._pool, "_processes", None) or {}
        for process in processes.values():
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
