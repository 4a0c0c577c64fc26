# SPDX-License-Identifier: Apache-2.0
"""What is measured between two log lines: means over steps, and what the host's clock saw of them."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from albert_jax.training.step import MEASURES, Outcome


class Interval:
    """Some steps in a row. Its clock runs while the run trains, and stands still while it evaluates and saves.

    Sums are kept in float64 and steps whose update was left out do not count, so that a run which is interrupted inside
    an interval records the same means as one that is not.

    Args:
      saved: `sums` of the same interval when the run was interrupted in it.

    Attributes:
      steps: how many it has so far, whether or not their updates were left out.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        self.steps = int(saved["steps"]) if saved else 0
        self._counted = int(saved["counted"]) if saved else 0
        self._sums = [float(saved["sums"][name]) for name in MEASURES] if saved else [0.0] * len(MEASURES)
        self._latest = {"learning_rate": float("nan"), "skipped": 0} | (saved["latest"] if saved else {})
        self._tokens, self._flops, self._waited, self._began = 0.0, 0.0, 0.0, time.perf_counter()

    def add(self, outcome: Outcome, *, tokens: float, flops: float, waited: float) -> None:
        """Counts a step.

        Args:
          outcome: read from the device.
          tokens, flops: of the whole batch.
          waited: seconds that the host waited for its rows.
        """
        self.steps += 1
        if not outcome.in_a_row:
            self._counted += 1
            self._sums = [total + float(value) for total, value in zip(self._sums, outcome.means, strict=True)]
        self._latest = {"learning_rate": float(outcome.learning_rate), "skipped": int(outcome.skipped)}
        self._tokens, self._flops, self._waited = self._tokens + tokens, self._flops + flops, self._waited + waited

    def sums(self) -> dict[str, Any]:
        """What a checkpoint keeps of an interval that is not over; JSON can hold it exactly."""
        sums = dict(zip(MEASURES, self._sums, strict=True))
        return {"steps": self.steps, "counted": self._counted, "sums": sums, "latest": self._latest}

    def means(self) -> dict[str, float]:
        """The means of `MEASURES`, NaN where every update was left out; rate and updates left out at the last step."""
        counted = self._counted or float("nan")
        return {name: total / counted for name, total in zip(MEASURES, self._sums, strict=True)} | self._latest

    def clocked(self) -> dict[str, float]:
        """As `Telemetry.log` takes it: seconds, of which waited for input, and tokens and FLOPs in them."""
        return {
            "tokens": self._tokens,
            "seconds": time.perf_counter() - self._began,
            "input_wait_seconds": self._waited,
            "flops": self._flops,
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began
