# SPDX-License-Identifier: Apache-2.0
"""The training run: data, mesh, state, then step, log, evaluate and save until the end or an interruption."""

import collections
import logging
import math
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from flax import traverse_util
from jax.sharding import Mesh

from albert_jax.config import AlbertConfig
from albert_jax.data.loader import Loader
from albert_jax.errors import UserError
from albert_jax.remote import directory
from albert_jax.training.checkpoint import Checkpoints, claim_workdir, versions
from albert_jax.training.data import Data, open_data, rows_per_step
from albert_jax.training.evaluation import Evaluator
from albert_jax.training.initialization import starting_parameters
from albert_jax.training.interruption import Interruption
from albert_jax.training.sharding import make_mesh, place_batch
from albert_jax.training.step import (
    TrainState,
    initial_parameters,
    initial_state,
    make_eval_step,
    make_read_sums,
    make_train_step,
)
from albert_jax.training.telemetry import Telemetry, last_evaluation

_log = logging.getLogger(__name__)
STEPS_IN_FLIGHT = 2
_LEAST = {
    "steps": 1,
    "data.prefetch": 1,
    "log.every": 1,
    "eval.every": 1,
    "eval.rows": 0,
    "checkpoint.every": 1,
    "optimizer.weight_decay": 0,
}
_POSITIVE = ("optimizer.learning_rate", "optimizer.decay_power", "optimizer.eps", "optimizer.clip_norm")


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers that are out of range and that nothing else would notice.

    Raises:
      UserError: naming the first one.
    """
    values = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, least in _LEAST.items():
        if not values[name] >= least:
            raise UserError(f"{name} must be at least {least}, not {values[name]}.")
    for name in _POSITIVE:
        if not 0 < values[name] < math.inf:
            raise UserError(f"{name} must be positive, not {values[name]}.")
    for name in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= values[name] < 1:
            raise UserError(f"{name} must lie in [0, 1), not {values[name]}.")


# --- the run ----------------------------------------------------------------------------------------------------------


def _identity(config: ml_collections.ConfigDict, data: Data, rows: int, mesh: Mesh) -> dict[str, Any]:
    """What makes this run this run; see `albert_jax.training.checkpoint`."""
    return {
        "config": config.to_dict(),
        "model": config.model.to_dict(),
        "data": data.manifest,
        "data_fingerprint": data.train.fingerprint,
        "vocabulary_sha256": data.vocabulary.sha256,
        "plan": data.train.digest,
        "rows_per_step": rows,
        "versions": versions(mesh),
    }


class Run:
    """A training run, in one process with any number of devices.

    Args:
      config: resolved, see `albert_jax.training.recipe`.
      workdir: receives everything that the run leaves behind, and is where it resumes from; it may be in an object
        store.

    Raises:
      UserError: where config, data and workdir do not fit together.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]):
        check_numbers(config)
        self.config, self.workdir = config, directory(workdir)
        self.data = open_data(config)
        self.mesh: Mesh = make_mesh(config.mesh.data)
        self.rows = rows_per_step(config, self.data.train, self.mesh.size)
        identity = _identity(config, self.data, self.rows, self.mesh)
        claim_workdir(workdir, identity)
        self._copy_vocabulary()
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep, identity)
        self.state, self.position = self._restore_or_start()
        self.step = int(self.state.step)
        self.telemetry = Telemetry(
            workdir, steps=config.steps, restored_step=self.step, flops_per_step=self._flops_per_step()
        )
        self.evaluator = Evaluator(
            self.data.validation,
            rows=config.eval.rows,
            batch_rows=self.rows // config.batch.accumulation,
            unigrams=self.data.unigrams,
            eval_step=make_eval_step(config, self.mesh),
            mesh=self.mesh,
        )
        self._train_step = make_train_step(config, self.mesh)
        self._read_sums = make_read_sums(config, self.mesh)

    def _copy_vocabulary(self) -> None:
        source, target = self.data.vocabulary_file, self.workdir / "spiece.model"
        if not target.is_file() or target.read_bytes() != source.read_bytes():  # a full disk must not cost the old one
            target.write_bytes(source.read_bytes())

    def _restore_or_start(self) -> tuple[TrainState, int]:
        shapes = jax.eval_shape(lambda: initial_state(self.config, initial_parameters(self.config), self.mesh))
        restored = self.checkpoints.restore(shapes, self.mesh)
        if restored is not None:
            _log.info("resumed from step %s in %s.", int(restored.state.step), self.workdir)
            return restored.state, restored.position
        params = starting_parameters(self.config)
        print(parameter_overview.get_parameter_overview(params, include_stats=False), flush=True)
        return initial_state(self.config, params, self.mesh), 0

    def _flops_per_step(self) -> float:
        c = self.config
        model = AlbertConfig.from_dict(c.model.to_dict())
        return self.rows * model.train_flops_per_row(c.data.sequence_length, c.masking.slots, c.data.examples_per_row)

    def train(self, interruption: Interruption) -> bool:
        """Trains until `config.steps` or an interruption, which is answered by a durable checkpoint.

        Returns:
          Whether the run is finished.
        """
        loader = Loader(
            lambda position: self.data.train.batch(position, self.rows),
            start=self.position,
            stride=self.rows,
            ahead=self.config.data.prefetch,
        )
        try:
            return self._loop(loader, interruption)
        finally:
            loader.close()

    def _loop(self, loader: Loader, interruption: Interruption) -> bool:
        c, saved = self.config, self.step
        evaluated = last_evaluation(self.telemetry.directory)
        tokens, waited, began = 0, loader.waited, time.perf_counter()
        batches, in_flight = iter(loader), collections.deque[jax.Array]()
        while True:
            done = self.step == c.steps
            if tokens and (done or self.step % c.log.every == 0):
                seconds, wait = time.perf_counter() - began, loader.waited - waited
                self._log(tokens, seconds, wait)
                tokens, waited, began = 0, loader.waited, time.perf_counter()
            if self.step and (done or self.step % c.eval.every == 0) and self.step != evaluated:
                pause = time.perf_counter()
                done = self._evaluate(interruption) and done
                evaluated = self.step
                began += time.perf_counter() - pause
            stop = done or interruption.requested
            if self.step != saved and (stop or self.step % c.checkpoint.every == 0):
                pause = time.perf_counter()
                self._save(block=stop)
                saved = self.step
                began += time.perf_counter() - pause
            if stop:
                self._finish(done, interruption)
                return done
            self.position, batch = next(batches)
            tokens += int(np.count_nonzero(batch.example_ids))
            placed = place_batch(batch, self.mesh)
            with jax.transfer_guard("disallow"):  # a step takes nothing from the host but its rows
                self.state, number = self._train_step(self.state, placed)
            # The host stays at most this far ahead: the device never runs dry, and rates and waits measure its pace.
            in_flight.append(number)
            if len(in_flight) > STEPS_IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            self.step, self.position = self.step + 1, self.position + self.rows

    def _log(self, tokens: int, seconds: float, wait: float) -> None:
        """Ends a log interval; what it measured is printed at the end of the next one."""
        means, self.state = self._read_sums(self.state)
        host = {
            "epoch": self.data.train.epoch(self.position),
            "position": self.position,
            "tokens": tokens,
            "seconds": seconds,
            "input_wait_seconds": wait,
        }
        if self.data.mixture is not None:
            host |= {f"epoch/{name}": e for name, e in self.data.mixture.source_epochs(self.position).items()}
        self.telemetry.log(self.step, means, host)

    def _evaluate(self, interruption: Interruption) -> bool:
        """Evaluates, unless the run is interrupted meanwhile; it is made good when the run goes on."""
        results = self.evaluator(self.state.params, lambda: interruption.requested)
        if results is not None:
            self.telemetry.evaluation(self.step, results)
        return results is not None

    def _save(self, *, block: bool) -> None:
        # First the records, then the checkpoint: a run that goes on from it finds every line up to it.
        self.telemetry.flush()
        self.checkpoints.save(self.state, self.position, block=block)

    def _finish(self, done: bool, interruption: Interruption) -> None:
        self.checkpoints.close()
        self.telemetry.close()
        if done:
            _log.info("finished: step %s is saved in %s.", self.step, self.workdir)
        elif not self.step:
            _log.info("interrupted by %s before the first step: nothing is saved.", interruption.name)
        else:
            _log.info(
                "interrupted by %s: step %s is saved in %s; the same command goes on from there.",
                interruption.name,
                self.step,
                self.workdir,
            )
