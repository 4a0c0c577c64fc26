# SPDX-License-Identifier: Apache-2.0
"""The training run: data, mesh, state, then step, log, evaluate and save until the end or an interruption.

All processes of a run go through the same loop and decide the same, because what they decide by is the outcome of a
step, which all of them read at the same place. Process 0 writes the records.
"""

import collections
import contextlib
import enum
import logging
import math
import os
import signal
from typing import Any

import jax
import ml_collections
from clu import parameter_overview
from flax import traverse_util
from jax.sharding import Mesh

from albert_jax.data.loader import Loader
from albert_jax.data.stream import Batch
from albert_jax.errors import UserError
from albert_jax.remote import directory
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.chips import chip_of
from albert_jax.training.distributed import by_first, first, meet
from albert_jax.training.evaluation import Evaluator
from albert_jax.training.guard import check_guard
from albert_jax.training.identity import check_processes, claim_workdir, versions
from albert_jax.training.initialization import starting_parameters
from albert_jax.training.interruption import Interruption
from albert_jax.training.interval import Interval
from albert_jax.training.legs import Draw, Leg, lower_eval_step, make_legs
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.profiling import Profiler
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import (
    Control,
    Outcome,
    TrainState,
    abstract_state,
    initial_state,
    make_control,
    make_read_sums,
)
from albert_jax.training.telemetry import Telemetry, last_evaluation
from albert_jax.training.watchdog import Watchdog

_log = logging.getLogger(__name__)
STEPS_IN_FLIGHT = (
    2  # the host stays at most this far ahead: the device never runs dry, and what is measured is its pace
)
MOST_ROLLBACKS = 3  # to the same checkpoint
_LEAST = {
    "steps": 1,
    "data.prefetch": 1,
    "log.every": 1,
    "eval.every": 1,
    "eval.rows": 0,
    "batch.warmup_steps": 0,
    "watchdog.seconds": 0,
    "profile.at": 0,
    "profile.steps": 1,
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
    check_guard(config.guard)


# --- the run ----------------------------------------------------------------------------------------------------------


class _Ending(enum.Enum):
    """Why the loop over a leg's steps ended."""

    FINISHED = enum.auto()
    INTERRUPTED = enum.auto()
    LEG_IS_OVER = enum.auto()
    ROLLED_BACK = enum.auto()


def _identity(config: ml_collections.ConfigDict, legs: list[Leg], mesh: Mesh) -> dict[str, Any]:
    """What makes this run this run; see `albert_jax.training.identity`."""
    data = legs[-1].data
    return {
        "config": config.to_dict(),
        "model": config.model.to_dict(),
        "data": data.manifest,
        "data_fingerprint": data.train.fingerprint,
        "vocabulary_sha256": data.vocabulary.sha256,
        "plan": " ".join(leg.data.train.digest for leg in legs),
        "rows_per_step": " ".join(str(leg.rows.count) for leg in legs),
        "versions": versions(mesh),
    }


class Run:
    """A training run, in one process or several, on any number of devices.

    Args:
      config: resolved, see `albert_jax.training.recipe`.
      workdir: receives everything that the run leaves behind, and is where it resumes from; it may be in an object
        store.
      lock: of the workdir, held.
      interruption: entered.

    Raises:
      UserError: where config, data, devices and workdir do not fit together.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: str | os.PathLike[str],
        lock: WorkdirLock,
        interruption: Interruption,
    ):
        check_numbers(config)
        self.config, self.workdir = config, directory(workdir)
        self._lock, self._interruption = lock, interruption
        self._profiler = Profiler(self.workdir / "profile", at=config.profile.at, steps=config.profile.steps)
        interruption.on(signal.SIGUSR1, self._profiler.request)
        interruption.phase = "data"
        self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        self.legs = make_legs(config, self.mesh)
        identity = _identity(config, self.legs, self.mesh)
        check_processes(identity)
        claim_workdir(workdir, identity)
        by_first(self._copy_vocabulary)
        interruption.phase = "restore"
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep, identity, lock)
        self.state, self.step, self.position = self._restore_or_start()
        self.telemetry = self._open_telemetry() if first() else None
        self._saved, self._evaluated = self.step, by_first(self._last_evaluation)
        self._stopping, self._due, self._skipped_in_a_row = False, False, 0
        self._rollbacks = collections.Counter[int]()
        self._controls: dict[tuple[bool, int], Control] = {}
        interruption.phase = "compile"
        self._read_sums = make_read_sums(config, self.mesh).lower(abstract_state(config, self.mesh)).compile()
        self.evaluator = self._make_evaluator()
        self.checkpoints.prepare(self.state)

    def _copy_vocabulary(self) -> None:
        source, target = self.legs[-1].data.vocabulary_file, self.workdir / "spiece.model"
        if not target.is_file() or target.read_bytes() != source.read_bytes():  # a full disk must not cost the old one
            target.write_bytes(source.read_bytes())

    def _restore_or_start(self) -> tuple[TrainState, int, int]:
        """State, steps done, and rows of the leg's stream consumed."""
        restored = self.checkpoints.restore(abstract_state(self.config, self.mesh))
        if restored is not None:
            step = int(restored.state.step)
            return restored.state, step, restored.position
        params = starting_parameters(self.config)
        if first():
            print(parameter_overview.get_parameter_overview(params, include_stats=False), flush=True)
        return initial_state(self.config, params, self.mesh), 0, 0

    def _leg_at(self, step: int) -> Leg:
        """The one that the step after `step` belongs to."""
        return next((leg for leg in self.legs if step < leg.phase.end), self.legs[-1])

    def _open_telemetry(self) -> Telemetry:
        if self.step:
            _log.info("resumed from step %s in %s.", self.step, self.workdir)
        chip = chip_of(jax.devices()[0].device_kind)
        peak = self.mesh.size * chip.peak if chip else None
        return Telemetry(self.workdir, steps=self.config.steps, restored_step=self.step, peak_flops=peak)

    def _last_evaluation(self) -> int:
        assert self.telemetry is not None
        return last_evaluation(self.telemetry.directory)

    def _make_evaluator(self) -> Evaluator:
        leg, rows = self.legs[-1], self.legs[-1].rows.count // self.config.batch.accumulation
        return Evaluator(
            leg.data.validation,
            rows=self.config.eval.rows,
            batch_rows=rows,
            unigrams=leg.data.unigrams,
            eval_step=lower_eval_step(self.config, self.mesh, rows).compile(),
            mesh=self.mesh,
        )

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains until `config.steps` or an interruption, which is answered by a durable checkpoint.

        Returns:
          Whether the run is finished.
        """
        c, ending = self.config, _Ending.LEG_IS_OVER
        self._watchdog = Watchdog(c.watchdog.seconds, leave=c.watchdog.exit, doing=lambda: self._interruption.phase)
        with contextlib.closing(self._profiler), self._watchdog:
            while ending in (_Ending.LEG_IS_OVER, _Ending.ROLLED_BACK):
                leg = self._leg_at(self.step)
                if ending is _Ending.LEG_IS_OVER:
                    self.position *= self.step != leg.phase.begin  # each leg has a stream of its own
                    self._prepare(leg)
                loader = Loader(leg.batch, leg.draws(self.step, self.position), ahead=c.data.prefetch)
                with contextlib.closing(loader), jax.transfer_guard("disallow"):
                    ending = self._loop(leg, loader)
        self._finish(done=ending is _Ending.FINISHED)
        return ending is _Ending.FINISHED

    def _prepare(self, leg: Leg) -> None:
        """Compiles what the leg needs, while nothing is newer than the last checkpoint."""
        self._enter("compile")
        self._interruption.prepare()
        leg.compiled_step()
        meet("compiled")
        self._interruption.begin()

    def _enter(self, phase: str) -> None:
        self._interruption.phase = phase
        self._watchdog.moved()

    def _loop(self, leg: Leg, loader: Loader[Draw, Batch]) -> _Ending:
        c, steps, batches, interval = self.config, leg.compiled_step(), iter(loader), Interval(leg, loader)
        in_flight, recent = collections.deque[tuple[Draw, Outcome]](), collections.deque[Draw](maxlen=c.guard.patience)
        while True:
            over = self.step == leg.phase.end
            self._due |= self.step != self._saved and self.step % c.checkpoint.every == 0
            while len(in_flight) > (0 if over or self._due else STEPS_IN_FLIGHT):
                draw, outcome = in_flight.popleft()
                recent.append(draw)
                if self._is_one_too_many(outcome):
                    self._roll_back(leg, list(recent))
                    return _Ending.ROLLED_BACK
            done = self.step == c.steps
            if interval.steps and (over or self.step % c.log.every == 0):
                self._log(leg, interval)
                interval = Interval(leg, loader)
            if self.step and (done or self.step % c.eval.every == 0) and self.step != self._evaluated:
                with interval.paused():
                    done = self._evaluate() and done
            stop = done or self._stopping
            # A checkpoint to go back to is none from the middle of updates that are left out: it waits for their end.
            if self.step != self._saved and (stop or over or (self._due and not self._skipped_in_a_row)):
                with interval.paused():
                    self._save(block=stop or over)
            if stop or over:
                return _Ending.FINISHED if done else _Ending.INTERRUPTED if stop else _Ending.LEG_IS_OVER
            draw, batch = next(batches)
            interval.add(draw, batch)
            in_flight.append((draw, self._take_step(steps, leg, draw, batch, in_flight)))

    def _take_step(self, compiled: Any, leg: Leg, draw: Draw, batch: Batch, in_flight: Any) -> Outcome:
        self._enter("step")
        if first():
            self._profiler.before_step(self.step + 1, [outcome.step for _, outcome in in_flight])
        placed = leg.rows.place(batch)
        self.state, outcome = compiled(self.state, placed, self._control(draw))
        self.step, self.position = self.step + 1, draw.position + draw.rows
        return outcome

    def _control(self, draw: Draw) -> Control:
        """On the devices already, but for its first use."""
        key = (self._interruption.requested, draw.parts)
        if key not in self._controls:
            self._controls[key] = make_control(self.mesh, stop=key[0], parts=draw.parts)
        return self._controls[key]

    def _is_one_too_many(self, outcome: Outcome) -> bool:
        """Reads a step's outcome, which waits for the step; says whether the guard has lost its patience."""
        self._stopping |= bool(outcome.stop)
        self._watchdog.moved()
        self._skipped_in_a_row = int(outcome.skipped_in_a_row)
        return 0 < self.config.guard.patience <= self._skipped_in_a_row

    def _log(self, leg: Leg, interval: Interval) -> None:
        """Ends a log interval; what it measured is printed at the end of the next one."""
        means, self.state = self._read_sums(self.state)
        if self.telemetry is None:
            return
        data = leg.data
        host = {"epoch": data.train.epoch(self.position), "position": self.position} | interval.measured()
        if data.mixture is not None:
            host |= {f"epoch/{name}": e for name, e in data.mixture.source_epochs(self.position).items()}
        self.telemetry.log(self.step, means, host)

    def _evaluate(self) -> bool:
        """Evaluates, unless the run is interrupted meanwhile; it is made good when the run goes on."""
        self._enter("evaluate")

        def wishes_to_stop() -> bool:
            self._watchdog.moved()
            return self._interruption.requested

        results = self.evaluator(self.state.params, wishes_to_stop)
        if results is None:
            self._stopping = True
            return False
        self._evaluated = self.step
        if self.telemetry is not None:
            self.telemetry.evaluation(self.step, results)
        return True

    def _save(self, *, block: bool) -> None:
        # First the records, then the checkpoint: a run that goes on from it finds every line up to it.
        self._enter("save")
        with jax.transfer_guard("allow"):
            self._lock.check()
            if self.telemetry is not None:
                self.telemetry.flush()
            self.checkpoints.save(self.state, self.position, block=block)
        self._saved, self._due = self.step, False
        self._watchdog.moved()

    def _roll_back(self, leg: Leg, skipped: list[Draw]) -> None:
        """Goes back to the last checkpoint and past the data of the updates that were left out.

        Raises:
          UserError: where this has helped nothing several times.
        """
        self._enter("restore")
        told, begin, end = skipped[-1].step + 1, skipped[0].position, skipped[-1].position + skipped[-1].rows
        del self.state  # two would not fit where one fills the memory
        with jax.transfer_guard("allow"):
            self.checkpoints.wait()
            self.state, self.step, self.position = self._restore_or_start()
        self._saved, self._due, self._skipped_in_a_row = self.step, False, 0
        if self._leg_at(self.step) is leg:
            self.position = end
        self._rollbacks[self.step] += 1
        if self._rollbacks[self.step] > MOST_ROLLBACKS:
            raise UserError(
                f"the run went back to step {self.step} {MOST_ROLLBACKS} times and loss or gradient went out of bounds "
                f"again, last at step {told}; look at the data of {self.workdir}/metrics.jsonl's records 'rollback', "
                "lower optimizer.learning_rate in a new run, or pass another --config.guard.norm_factor."
            )
        if self.telemetry is not None:
            self._record_rollback(told, len(skipped), begin, end, leg.data.train.examples(begin, end - begin))
        self._evaluated = by_first(self._last_evaluation)

    def _record_rollback(self, told: int, skipped: int, begin: int, end: int, examples: list[int | str]) -> None:
        assert self.telemetry is not None
        self.telemetry.rewind(self.step)
        values = {"from": told, "skipped": skipped, "rows": [begin, end], "examples": examples}
        self.telemetry.event(self.step, "rollback", values)
        _log.warning(
            "the updates of steps %s to %s were left out, as loss or gradient norm were out of bounds: back to step "
            "%s, and past rows %s to %s of the stream, examples %s ... (all in metrics.jsonl).",
            told - skipped + 1,
            told,
            self.step,
            begin,
            end,
            ", ".join(map(str, examples[:3])),
        )

    def _finish(self, *, done: bool) -> None:
        self._enter("finish")
        self.checkpoints.close()
        if self.telemetry is None:
            return
        self.telemetry.close()
        if done:
            _log.info("finished: step %s is saved in %s.", self.step, self.workdir)
        else:
            _log.info(
                "interrupted by %s: step %s is saved in %s; the same command goes on from there.",
                self._interruption.name or "a signal to another process",
                self.step,
                self.workdir,
            )
