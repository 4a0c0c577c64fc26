# SPDX-License-Identifier: Apache-2.0
"""Profiles of a few steps of a running training, by configuration or on demand, for `xprof` or TensorBoard to show."""

import logging
import os
from collections.abc import Iterable
from typing import Any

import jax

from albert_jax.remote import Spool, directory, first_line

_log = logging.getLogger(__name__)


class Profiler:
    """Traces some steps into `directory/step-N`, where N is the first of them; make one in process 0.

    A profile that fails is warned of and costs no training. Two do not overlap: what is asked for during one is
    answered by it.

    Args:
      directory: where profiles go, a local directory or one in an object store.
      at: the first step of a profile, counted from 1; 0 takes none but on request.
      steps: how many steps a profile has.
    """

    def __init__(self, directory: str | os.PathLike[str], at: int, steps: int) -> None:
        self._directory, self._at, self._steps = directory, at, steps
        self._requested = False
        self._first: int | None = None  # step of the profile that is under way
        self._last = 0  # that it has so far
        self._spool: Spool | None = None
        self._mark: jax.profiler.StepTraceAnnotation | None = None

    def request(self) -> None:
        """Asks for a profile from the next step on; safe in a signal handler, and asking twice is asking once."""
        self._requested = True

    def before_step(self, step: int, in_flight: Iterable[Any] = ()) -> None:
        """Starts or ends a profile where it is time to; call it before each step.

        Args:
          step: number of the step that is about to run, counted from 1.
          in_flight: results of the steps before, which are waited for where a profile starts or ends, so that it holds
            the work of its steps and of no others.
        """
        self._end_mark()
        if self._first is not None and step >= self._first + self._steps:
            jax.block_until_ready(list(in_flight))
            self._stop()
        if self._first is None and (self._requested or step == self._at):
            jax.block_until_ready(list(in_flight))
            self._start(step)
        if self._first is not None:
            self._mark = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._mark.__enter__()
            self._last = step

    def close(self, in_flight: Iterable[Any] = ()) -> None:
        """Ends a profile that is under way, which has fewer steps then."""
        self._end_mark()
        if self._first is not None:
            jax.block_until_ready(list(in_flight))
            self._stop()

    def _end_mark(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _start(self, step: int) -> None:
        self._requested = False
        try:
            self._spool = Spool(directory(self._directory) / f"step-{step}")
            jax.profiler.start_trace(str(self._spool.local))
        except Exception as e:  # of the file system, of the store, and whatever the profiler's plugins raise
            self._warn(step, e)
        else:
            self._first = step

    def _stop(self) -> None:
        first, self._first, self._requested = self._first, None, False
        assert first is not None and self._spool is not None
        try:
            jax.profiler.stop_trace()
            self._spool.upload()
        except Exception as e:
            self._warn(first, e)
        else:
            _log.info("profiled steps %s to %s into %s/step-%s.", first, self._last, self._directory, first)
            self._spool.close()

    def _warn(self, step: int, error: Exception) -> None:
        _log.warning(
            "the profile from step %s on failed (%s); the training goes on without it.", step, first_line(error)
        )
        if self._spool is not None:
            self._spool.close()
