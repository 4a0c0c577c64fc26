# SPDX-License-Identifier: Apache-2.0
"""Evaluation on a fixed masked validation set, beside the unigram baseline that any model must beat."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from albert_jax.data.stream import IGNORED, Batch, Stream
from albert_jax.model import Parameters
from albert_jax.training.legs import made_rows
from albert_jax.training.objective import Totals
from albert_jax.training.sharding import Rows, row_shards, split_rows

EvalStep = Callable[[Parameters, Batch], Totals]
Results = dict[str, float]
BATCHES_IN_FLIGHT = 2  # the host stays at most this far ahead


def unigram_loss(labels: np.ndarray, counts: np.ndarray) -> float:
    """Mean cross-entropy in nats of masked targets under a text's add-one unigrams: what knowing no context gives.

    Args:
      labels: int [...], ids, -100 where there is no target.
      counts: int [V], how often each id occurs in the training split.
    """
    logs = np.log((counts + 1.0) / (counts.sum() + len(counts)))
    return float(-np.mean(logs[labels[labels != IGNORED]]))


def wilson_interval(right: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927): (0, 1) where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


class Evaluator:
    """Evaluates parameters on the same masked rows each time; all processes of a run take part.

    Args:
      stream: of the validation split, unshuffled and with a seed that is no part of the config.
      rows: how many of its first rows are evaluated; 0 takes all.
      batch_rows: rows evaluated at a time; what remains is filled with empty rows, so that each row counts once.
      unigrams: int [V], token counts of the training split.
      eval_step: see `make_eval_step`.
      mesh: the devices.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        rows: int,
        batch_rows: int,
        unigrams: np.ndarray,
        eval_step: EvalStep,
        mesh: Mesh,
    ):
        self._stream, self._step = stream, eval_step
        self._layout = Rows(mesh, split_rows(batch_rows, row_shards(mesh), batch_rows))
        self._rows = min(rows, stream.rows) if rows else stream.rows
        self._unigrams, self._unigram_loss = unigrams, math.nan

    def __call__(self, params: Parameters, proceed: Callable[[], bool] = lambda: True) -> Results | None:
        """Loss and accuracy of both objectives, the unigram loss of the same targets, and how many there were.

        Args:
          params: the parameters.
          proceed: asked before each batch, with the same answer in all processes. Where it is no, the evaluation ends
            and None is returned.
        """
        totals: list[Totals] = []
        rows, count = self._layout, self._layout.split.rows
        for start in range(0, self._rows, count):
            if not proceed():
                return None
            batch = rows.place(made_rows(self._targets, rows, start, count))
            totals.append(self._step(params, batch))
            if len(totals) > BATCHES_IN_FLIGHT:
                jax.block_until_ready(totals[-1 - BATCHES_IN_FLIGHT])
        # Over a large split float32 could not count the targets, so batches are added in float64.
        sums = np.sum(np.array(jax.device_get(totals), np.float64), axis=0)
        return self._results(dict(zip(Totals._fields, map(float, sums), strict=True)))

    def _targets(self, start: int, count: int) -> Batch:
        """Rows of the split, without targets from `rows` on."""
        batch = self._stream.fixed_rows(start, count)
        kept = max(0, min(count, self._rows - start))
        batch.mlm_labels[kept:], batch.sop_labels[kept:] = IGNORED, IGNORED
        return batch

    def _unigram_baseline(self) -> float:
        """Computed once, from the labels of all rows, whichever process made them for evaluation."""
        if math.isnan(self._unigram_loss):
            count = self._layout.split.rows
            labels = [self._targets(start, count).mlm_labels for start in range(0, self._rows, count)]
            self._unigram_loss = unigram_loss(np.concatenate(labels), self._unigrams)
        return self._unigram_loss

    def _results(self, t: dict[str, float]) -> Results:
        low, high = wilson_interval(t["sop_correct"], t["sop_count"])
        mlm_count, sop_count = int(t["mlm_count"]), int(t["sop_count"])
        return {
            "mlm_loss": t["mlm_loss"] / max(1, mlm_count),
            "unigram_loss": self._unigram_baseline(),
            "mlm_accuracy": t["mlm_correct"] / max(1, mlm_count),
            "mlm_count": mlm_count,
            "sop_loss": t["sop_loss"] / max(1, sop_count),
            "sop_accuracy": t["sop_correct"] / max(1, sop_count),
            "sop_low": low,
            "sop_high": high,
            "sop_count": sop_count,
        }
