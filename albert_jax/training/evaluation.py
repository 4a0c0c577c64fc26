# SPDX-License-Identifier: Apache-2.0
"""Evaluation on a fixed masked validation set, beside the unigram baseline that any model must beat."""

import collections
import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from albert_jax.data.loader import Loader
from albert_jax.data.rows import with_empty_rows
from albert_jax.data.stream import IGNORED, Batch, Stream
from albert_jax.model import Parameters
from albert_jax.training.distributed import first
from albert_jax.training.legs import made_rows
from albert_jax.training.objective import Totals
from albert_jax.training.sharding import Rows, by_rows, replicated, row_shards, split_rows

EvalStep = Callable[[Parameters, Batch], Totals]
Results = dict[str, float]
_ORDER = (  # in which the results are told
    *("mlm_loss", "unigram_loss", "mlm_accuracy", "mlm_count"),
    *("sop_loss", "sop_accuracy", "sop_low", "sop_high", "sop_count"),
)
BATCHES_IN_FLIGHT = 2  # the host stays at most this far ahead


def unigram_loss(targets: np.ndarray, counts: np.ndarray) -> float:
    """Mean cross-entropy in nats of masked targets under a text's add-one unigrams: what knowing no context gives.

    Args:
      targets: int [V], how often each id is a target.
      counts: int [V], how often each id occurs in the training split.
    """
    logs = np.log((counts + 1.0) / (counts.sum() + len(counts)))
    return float(-(targets @ logs) / max(1, targets.sum()))


def make_count_targets(mesh: Mesh, vocab_size: int) -> Any:
    """A jitted function of labels, int32 [B, M] by rows, that gives how often each id is a target, int32 [V]."""

    def count(labels: jax.Array) -> jax.Array:
        ids = jnp.where(labels == IGNORED, vocab_size, labels)  # past the end, where nothing is counted
        return jnp.zeros(vocab_size, jnp.int32).at[ids].add(1, mode="drop")

    return jax.jit(count, in_shardings=by_rows(mesh), out_shardings=replicated(mesh))


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

    A batch holds rows of one source, so where there are several, each has its own figures beside those of all.

    Args:
      stream: of the validation split, unshuffled and with a seed that is no part of the config.
      rows: how many of its rows are evaluated, evenly spaced, as the order of rows is that of sources and of how full
        they are; 0 takes all.
      batch_rows: rows evaluated at a time; what remains is filled with empty rows, so that each row counts once.
      mask_slots: of a row.
      ahead: how many batches are prepared ahead.
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
        mask_slots: int,
        ahead: int,
        unigrams: np.ndarray,
        eval_step: EvalStep,
        mesh: Mesh,
    ):
        self._stream, self._step, self._ahead = stream, eval_step, ahead
        self._layout = Rows(mesh, split_rows(batch_rows, row_shards(mesh), batch_rows))
        self._order, self._sources = self._batches(rows)
        self._unigrams = unigrams
        labels = jax.ShapeDtypeStruct((self._layout.split.held, mask_slots), jnp.int32, sharding=by_rows(mesh))
        self._count_targets = make_count_targets(mesh, len(unigrams)).lower(labels).compile()

    def __call__(self, params: Parameters, proceed: Callable[[], bool] = lambda: True) -> Results | None:
        """Loss and accuracy of each objective that had targets, how many these were, and their unigram loss.

        Args:
          params: the parameters.
          proceed: asked before each batch is given to the devices, with the same answer in all processes. Where it is
            no, the evaluation ends and None is returned.

        Returns:
          The results in process 0, which prints them; in others an empty dict. Those of a source have its name behind
          theirs, as in 'mlm_loss/wiki'.
        """
        in_flight = collections.deque[tuple[str, tuple[Totals, jax.Array]]]()
        # Over a large split float32 could not count the targets, so batches are added in float64.
        sums = {name: np.zeros(len(Totals._fields)) for name in self._sources}
        targets = np.zeros(len(self._unigrams), np.int64)

        def read(most: int) -> None:
            """Waits for batches until so many are left that the devices work on."""
            nonlocal targets
            while len(in_flight) > most:
                source, figures = in_flight.popleft()
                totals, counted = jax.device_get(figures)
                sums[source], targets = sums[source] + np.array(totals, np.float64), targets + counted

        starts = range(0, len(self._order), self._layout.split.rows)
        with contextlib.closing(Loader(self._batch, starts, ahead=self._ahead)) as loader:
            for (_, local), source in zip(loader, self._sources, strict=True):
                batch = self._layout.place(local)  # while the devices work on the ones before
                read(BATCHES_IN_FLIGHT - 1)
                if not proceed():
                    return None
                in_flight.append((source, (self._step(params, batch), self._count_targets(batch.mlm_labels))))
        read(0)
        if not first():
            return {}
        results = _results(np.sum([*sums.values()], axis=0), unigram_loss(targets, self._unigrams))
        if len(sums) > 1:
            for source, values in sums.items():
                results |= {f"{name}/{source}": value for name, value in _results(values).items()}
        return results

    def _batches(self, rows: int) -> tuple[np.ndarray, list[str]]:
        """The rows of all batches, -1 for an empty one, and each batch's source."""
        size, all_rows = self._layout.split.rows, self._stream.rows
        chosen = np.arange(all_rows)
        if rows and rows < all_rows:
            chosen = np.arange(rows) * all_rows // rows
        ends = np.cumsum(list(self._stream.source_rows.values()))
        parts, sources = [], []
        for name, part in zip(
            self._stream.source_rows, np.split(chosen, np.searchsorted(chosen, ends[:-1])), strict=True
        ):
            parts.append(np.pad(part, (0, -len(part) % size), constant_values=-1))
            sources += [name] * (len(parts[-1]) // size)
        return np.concatenate(parts), sources

    def _batch(self, start: int) -> Batch:
        """This process's rows of a batch."""
        return made_rows(self._targets, self._layout, start, self._layout.split.rows)

    def _targets(self, start: int, count: int) -> Batch:
        """The rows that are evaluated, those that follow each other made together, then empty ones."""
        rows = self._order[start : start + count]
        rows = rows[rows >= 0]
        if not len(rows):
            return self._stream.fixed_rows(self._stream.rows, count)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        made = [self._stream.fixed_rows(int(run[0]), len(run)) for run in runs]
        return with_empty_rows(Batch(*map(np.concatenate, zip(*made, strict=True))), count)


def _results(sums: np.ndarray, unigram: float | None = None) -> Results:
    """Counts, and means over what was counted; a mean over nothing is left out."""
    t = dict(zip(Totals._fields, sums.tolist(), strict=True))
    results: Results = {"mlm_count": int(t["mlm_count"]), "sop_count": int(t["sop_count"])}
    if t["mlm_count"]:
        results |= {
            "mlm_loss": t["mlm_loss"] / t["mlm_count"],
            "mlm_accuracy": t["mlm_correct"] / t["mlm_count"],
        }
        if unigram is not None:
            results["unigram_loss"] = unigram
    if t["sop_count"]:
        low, high = wilson_interval(t["sop_correct"], t["sop_count"])
        results |= {
            "sop_loss": t["sop_loss"] / t["sop_count"],
            "sop_accuracy": t["sop_correct"] / t["sop_count"],
            "sop_low": low,
            "sop_high": high,
        }
    return {name: results[name] for name in _ORDER if name in results}
