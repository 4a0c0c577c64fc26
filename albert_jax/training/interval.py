# SPDX-License-Identifier: Apache-2.0
"""What the host measures between two log lines."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from albert_jax.data.loader import Loader
from albert_jax.data.stream import Batch
from albert_jax.training.legs import Draw, Leg


class Interval:
    """A log interval: its clock runs while the run trains, and stands still while it evaluates and saves.

    Args:
      leg: whose steps are counted.
      loader: whose waits are counted.

    Attributes:
      steps: how many it has so far.
    """

    def __init__(self, leg: Leg, loader: Loader[Draw, Batch]):
        self._leg, self._loader, self._waited = leg, loader, loader.waited
        self.steps, self._tokens, self._flops, self._began = 0, 0, 0.0, time.perf_counter()

    def add(self, draw: Draw, batch: Batch) -> None:
        """Counts a step."""
        self.steps += 1
        self._tokens += int(np.count_nonzero(batch.example_ids))
        self._flops += self._leg.flops(draw)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def measured(self) -> dict[str, Any]:
        """As `Telemetry.log` takes it. Tokens are those of this process's rows, scaled to all rows."""
        rows = self._leg.rows
        return {
            "tokens": self._tokens * rows.shards / len(rows.mine),
            "seconds": time.perf_counter() - self._began,
            "input_wait_seconds": self._loader.waited - self._waited,
            "flops": self._flops,
        }
