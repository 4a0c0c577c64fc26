# SPDX-License-Identifier: Apache-2.0
"""What a run does between two changes of its shapes: a phase with its data, its rows a step and its compiled step."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from albert_jax.config import AlbertConfig
from albert_jax.data.rows import with_empty_rows
from albert_jax.data.stream import Batch
from albert_jax.errors import OutOfMemoryError, is_exhaustion
from albert_jax.training.data import Data, open_data, rows_of_step, rows_per_step
from albert_jax.training.distributed import by_first
from albert_jax.training.fitting import (
    Compiled,
    TooLarge,
    compile_within,
    device_memory,
    fit,
    gigabytes,
    remedy,
)
from albert_jax.training.phases import Phase, read_phases
from albert_jax.training.sharding import Rows, Split, row_shards
from albert_jax.training.step import (
    abstract_batch,
    abstract_parts,
    abstract_state,
    attention_of,
    make_eval_step,
    make_train_step,
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one step consumes: `rows` rows of the stream from `position` on, in the first `parts` micro-batches."""

    step: int
    position: int
    rows: int
    parts: int


def made_rows(make: Callable[[int, int], Batch], rows: Rows, start: int, count: int) -> Batch:
    """This process's part of rows `start` to `start + count`, each shard filled up with empty rows.

    Args:
      make: (start, count) -> rows.
      rows: the layout of a whole batch, and which of its shards this process makes.
      start: first row of the batch.
      count: rows that it has, at most those of the layout.
    """
    split, pieces = rows.split, []
    runs = itertools.groupby(enumerate(rows.mine), lambda pair: pair[1] - pair[0])
    for run in ([shard for _, shard in members] for _, members in runs):  # shards that follow each other
        bounds = [split.begin(shard, count) for shard in (*run, run[-1] + 1)]
        made = make(start + bounds[0], bounds[-1] - bounds[0])  # are made together
        for begin, end in itertools.pairwise(b - bounds[0] for b in bounds):
            pieces.append(with_empty_rows(Batch(*(x[begin:end] for x in made)), split.per_shard))
    return pieces[0] if len(pieces) == 1 else Batch(*map(np.concatenate, zip(*pieces, strict=True)))


class Leg:
    """A phase that is ready to be trained.

    Args:
      phase: steps and config.
      mesh: the devices.

    Attributes:
      config: the phase's, with the attention that these devices allow.
      data: what it trains on.
      rows_per_step: of a full batch.

    Raises:
      UserError: where the phase, the data and the devices do not fit together.
    """

    def __init__(self, phase: Phase, mesh: Mesh):
        self.phase, self._mesh = phase, mesh
        attention, self.why_attention = attention_of(phase.config, mesh)
        self.config = phase.config.copy_and_resolve_references()
        self.config.attention = attention
        self.data: Data = open_data(phase.config)
        self.rows_per_step = rows_per_step(phase.config, self.data.train)
        self._fitted: tuple[Rows, Any] | None = None

    @property
    def rows(self) -> Rows:
        """How a batch is laid out, and which of its rows this process makes."""
        return self._fit()[0]

    def compiled_step(self) -> Any:
        """The step, compiled before it is needed; see `make_train_step`."""
        return self._fit()[1]

    def draws(self, step: int, position: int, left_out: Sequence[tuple[int, int]] = ()) -> Iterator[Draw]:
        """What the steps after `step` consume, to the end of the phase.

        Args:
          step: steps done.
          position: rows of the stream consumed or passed over so far.
          left_out: ranges of rows, begin and end, ascending. A step that would reach into one begins after it.
        """
        for k in range(step, self.phase.end):
            rows = rows_of_step(self.config, self.rows_per_step, k)
            for begin, end in left_out:
                if position < end and begin < position + rows:
                    position = end
            draw = Draw(k, position, rows, self.rows.split.parts_of(rows))
            yield draw
            position += draw.rows

    def batch(self, draw: Draw) -> Batch:
        """This process's rows of a step."""
        return made_rows(self.data.train.batch, self.rows, draw.position, draw.rows)

    def flops(self, draw: Draw) -> float:
        """Matmul FLOPs of a step, by the formula of `AlbertConfig.train_flops_per_row`; empty rows do not count."""
        c = self.config
        model = AlbertConfig.from_dict(c.model.to_dict())
        return draw.rows * model.train_flops_per_row(c.data.sequence_length, c.masking.slots, c.data.examples_per_row)

    @contextlib.contextmanager
    def naming_exhaustion(self) -> Iterator[None]:
        """Makes a device's lack of memory one sentence.

        Raises:
          OutOfMemoryError: with the setting to try next.
        """
        try:
            yield
        except jax.errors.JaxRuntimeError as e:
            if not is_exhaustion(e):
                raise
            split = self._fitted and self._fitted[0].split
            raise OutOfMemoryError(
                f"a device's memory is exhausted ({str(e).splitlines()[0]}); {remedy(self.config, split)}."
            ) from e

    def _fit(self) -> tuple[Rows, Any]:
        """Decides how many rows a device takes at a time, and compiles the step; all processes do, and alike."""
        if self._fitted is None:
            shards, memory = row_shards(self._mesh), by_first(lambda: device_memory(self._mesh.devices.flat[0]))
            split, compiled = fit(self.config, shards, self.rows_per_step, memory, self._compile)
            self._describe(split, compiled.memory, memory)
            self._fitted = Rows(self._mesh, split), compiled.program
        return self._fitted

    def _compile(self, split: Split) -> Compiled | TooLarge:
        """The step; whether it fits is what process 0 sees."""
        found = compile_within(lower_step(self.config, self._mesh, split))
        too_large, memory = by_first(lambda: [isinstance(found, TooLarge), found.memory])
        if too_large or isinstance(found, Compiled):
            return TooLarge(memory) if too_large else found._replace(memory=memory)
        raise OutOfMemoryError(f"this process's compiler refuses what process 0's takes; {remedy(self.config, split)}.")

    def _describe(self, split: Split, needs: float, memory: float) -> None:
        _log.info("attention: %s, because %s.", self.config.attention, self.why_attention)
        _log.info(
            "a step: %s rows of %s slots on %s, each %s rows at a time (%s), %s time%s%s; %s of %s a device.",
            f"{split.rows:,}",
            self.config.data.sequence_length,
            f"{self._mesh.size} device" + "s" * (self._mesh.size > 1),
            split.each,
            "given" if self.config.batch.rows_per_device else "chosen",
            split.parts,
            "s" * (split.parts > 1),
            f", {1 - split.rows / split.held:.1%} of them empty" if split.held > split.rows else "",
            gigabytes(needs),
            gigabytes(memory),
        )


def lower_step(config: ml_collections.ConfigDict, mesh: Mesh, split: Split) -> jax.stages.Lowered:
    """The program of one optimizer step on a batch of this layout, for devices that need not be there."""
    batch = abstract_batch(config, mesh, split.held)
    step = make_train_step(config, mesh, split.parts)
    return step.lower(abstract_state(config, mesh), batch, abstract_parts(mesh))


def lower_eval_step(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> jax.stages.Lowered:
    """The program that evaluates `rows` rows."""
    return make_eval_step(config, mesh).lower(abstract_state(config, mesh).params, abstract_batch(config, mesh, rows))


def make_legs(config: ml_collections.ConfigDict, mesh: Mesh) -> list[Leg]:
    """The legs of a run, in order.

    Raises:
      UserError: where the phases, the data and the devices do not fit together.
    """
    return [Leg(phase, mesh) for phase in read_phases(config)]
