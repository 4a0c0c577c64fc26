# SPDX-License-Identifier: Apache-2.0
"""What a run does between two changes of its shapes: a phase with its data, its rows a step and its compiled step."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from albert_jax.config import AlbertConfig
from albert_jax.data.rows import with_empty_rows
from albert_jax.data.stream import Batch
from albert_jax.training.data import Data, open_data, rows_per_step
from albert_jax.training.phases import Phase, read_phases
from albert_jax.training.sharding import Rows, row_shards
from albert_jax.training.step import abstract_batch, abstract_parts, abstract_state, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one step consumes: `rows` rows of the stream from `position` on, as the first `parts` micro-batches."""

    step: int
    position: int
    rows: int
    parts: int


def made_rows(make: Callable[[int, int], Batch], rows: Rows, start: int, count: int) -> Batch:
    """This process's part of rows `start` to `start + count`, each shard filled up with empty rows.

    Args:
      make: (start, count) -> rows.
      rows: of a whole batch, and which of its shards this process makes.
      start: first row of the batch.
      count: rows that it has; a multiple of the shards.
    """
    each, per_shard = count // rows.shards, rows.count // rows.shards
    if each < per_shard:
        pieces = [with_empty_rows(make(start + shard * each, each), per_shard) for shard in rows.mine]
    else:  # shards that follow each other are made together
        runs = itertools.groupby(enumerate(rows.mine), lambda pair: pair[1] - pair[0])
        members = [[shard for _, shard in run] for _, run in runs]
        pieces = [make(start + run[0] * each, len(run) * each) for run in members]
    return pieces[0] if len(pieces) == 1 else Batch(*map(np.concatenate, zip(*pieces, strict=True)))


class Leg:
    """A phase that is ready to be trained.

    Args:
      phase: steps and config.
      mesh: the devices.

    Attributes:
      data: what it trains on.
      rows: rows of a full batch, and which of them this process makes.
    """

    def __init__(self, phase: Phase, mesh: Mesh):
        self.phase, self.config, self._mesh = phase, phase.config, mesh
        self.data: Data = open_data(phase.config)
        self.rows = Rows(mesh, rows_per_step(phase.config, self.data.train, row_shards(mesh)))
        self._step: Any = None

    def draws(self, step: int, position: int, left_out: Sequence[tuple[int, int]] = ()) -> Iterator[Draw]:
        """What the steps after `step` consume, to the end of the phase.

        Args:
          step: steps done.
          position: rows of the stream consumed or passed over so far.
          left_out: ranges of rows, begin and end, ascending. A step that would reach into one begins after it.
        """
        most, warmup = self.config.batch.accumulation, self.config.batch.warmup_steps
        for k in range(step, self.phase.end):
            parts = most if k >= warmup else 1 + k * most // warmup
            rows = self.rows.count * parts // most
            for begin, end in left_out:
                if position < end and begin < position + rows:
                    position = end
            draw = Draw(k, position, rows, parts)
            yield draw
            position += draw.rows

    def batch(self, draw: Draw) -> Batch:
        """This process's rows of a step."""
        return made_rows(self.data.train.batch, self.rows, draw.position, draw.rows)

    def flops(self, draw: Draw) -> float:
        """Matmul FLOPs of a step, by the formula of `AlbertConfig.train_flops_per_row`."""
        c = self.config
        model = AlbertConfig.from_dict(c.model.to_dict())
        return draw.rows * model.train_flops_per_row(c.data.sequence_length, c.masking.slots, c.data.examples_per_row)

    def compiled_step(self) -> Any:
        """The step, compiled before it is needed; see `make_train_step`."""
        if self._step is None:
            self._step = lower_step(self.config, self._mesh, self.rows.count).compile()
        return self._step


def lower_step(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> jax.stages.Lowered:
    """The program of one optimizer step on `rows` rows, for devices that need not be there."""
    return make_train_step(config, mesh).lower(
        abstract_state(config, mesh), abstract_batch(config, mesh, rows), abstract_parts(mesh)
    )


def lower_eval_step(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> jax.stages.Lowered:
    """The program that evaluates `rows` rows."""
    return make_eval_step(config, mesh).lower(abstract_state(config, mesh).params, abstract_batch(config, mesh, rows))


def make_legs(config: ml_collections.ConfigDict, mesh: Mesh) -> list[Leg]:
    """The legs of a run, in order.

    Raises:
      UserError: where the phases, the data and the devices do not fit together.
    """
    return [Leg(phase, mesh) for phase in read_phases(config)]
