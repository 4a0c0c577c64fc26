# SPDX-License-Identifier: Apache-2.0
"""What is measured between two log lines: means over steps, and what the host's clock saw of them."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

from albert_jax.training.step import MEASURES, Outcome


class Interval:
    """Some steps in a row. Its clock runs while the run trains, and stands still while it evaluates and saves.

    Sums are kept in float64 and steps whose update was left out do not count, so that a run which is interrupted inside
    an interval records the same means as one that is not. A step that had nothing to measure, such as no row with a
    sentence order, does not count for that measure.

    Args:
      saved: `sums` of the same interval when the run was interrupted in it.

    Attributes:
      steps: how many it has so far, whether or not their updates were left out.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        self.steps = int(saved["steps"]) if saved else 0
        self._counted = int(saved["counted"]) if saved else 0
        # How many of these had each measure: all, where nothing is said.
        self._counts = [self._counted] * len(MEASURES)
        if saved and "counts" in saved:
            self._counts = [int(saved["counts"][name]) for name in MEASURES]
        self._sums = [float(saved["sums"][name]) for name in MEASURES] if saved else [0.0] * len(MEASURES)
        self._latest = {"learning_rate": float("nan"), "skipped": 0} | (saved["latest"] if saved else {})
        self._tokens, self._flops, self._waited, self._began = 0.0, 0.0, 0.0, time.perf_counter()
        self._timed = False

    def add(self, outcome: Outcome, *, tokens: float, flops: float, waited: float, timed: bool = True) -> None:
        """Counts a step.

        Args:
          outcome: read from the device.
          tokens, flops: of the whole batch.
          waited: seconds that the host waited for its rows.
          timed: False where the step was over before the host came to look, together with the one before.
        """
        self.steps, self._timed = self.steps + 1, self._timed or timed
        if not outcome.in_a_row:  # all that was measured is finite
            self._counted += 1
            found = [not math.isnan(value) for value in outcome.means]
            self._counts = [count + there for count, there in zip(self._counts, found, strict=True)]
            self._sums = [
                s + float(v) if there else s for s, v, there in zip(self._sums, outcome.means, found, strict=True)
            ]
        self._latest = {"learning_rate": float(outcome.learning_rate), "skipped": int(outcome.skipped)}
        self._tokens, self._flops, self._waited = self._tokens + tokens, self._flops + flops, self._waited + waited

    def sums(self) -> dict[str, Any]:
        """What a checkpoint keeps of an interval that is not over; JSON can hold it exactly."""
        sums = dict(zip(MEASURES, self._sums, strict=True))
        kept = {"steps": self.steps, "counted": self._counted, "sums": sums, "latest": self._latest}
        if min(self._counts) < self._counted:
            kept["counts"] = dict(zip(MEASURES, self._counts, strict=True))
        return kept

    def means(self) -> dict[str, float]:
        """The means of `MEASURES`, without those that no step had; rate and updates left out at the last step.

        Where every update was left out, all are NaN.
        """
        if not self._counted:
            return dict.fromkeys(MEASURES, float("nan")) | self._latest
        found = zip(MEASURES, self._sums, self._counts, strict=True)
        return {name: total / count for name, total, count in found if count} | self._latest

    def clocked(self) -> dict[str, float]:
        """As `Telemetry.log` takes it: seconds, and what was done in them unless nobody saw when that was."""
        seconds = {"seconds": time.perf_counter() - self._began}
        done = {"tokens": self._tokens, "input_wait_seconds": self._waited, "flops": self._flops}
        return seconds | done if self._timed else seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began
