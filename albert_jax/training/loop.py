# SPDX-License-Identifier: Apache-2.0
"""The training run: data, mesh, state, then step, log, evaluate and save until the end or an interruption.

All processes of a run go through the same loop and decide the same: by the step they are at, by the outcome of a step,
which all of them read at the same place, or by what `Interruption.granted` tells all of them before the same step.
Process 0 writes the records.
"""

import collections
import contextlib
import dataclasses
import enum
import logging
import math
import os
import shlex
import signal
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
from clu import parameter_overview
from jax.sharding import Mesh

from albert_jax.data.loader import Loader
from albert_jax.data.stream import Batch
from albert_jax.errors import UserError
from albert_jax.remote import directory, is_remote
from albert_jax.training.branching import branch
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.chips import chip_of
from albert_jax.training.compatibility import FORMAT
from albert_jax.training.distributed import by_first, first, meet
from albert_jax.training.evaluation import Evaluator
from albert_jax.training.identity import check_processes, claim_workdir, versions
from albert_jax.training.initialization import starting_parameters
from albert_jax.training.interruption import SAVE, STOP, Interruption
from albert_jax.training.interval import Interval
from albert_jax.training.left_out import LeftOut, merged, read_left_out
from albert_jax.training.legs import Draw, Leg, lower_eval_step, make_legs
from albert_jax.training.limits import check_fields
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.profiling import Profiler
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import MEASURES, Outcome, TrainState, abstract_state, initial_state, place_parts
from albert_jax.training.telemetry import Telemetry, last_evaluation
from albert_jax.training.watchdog import Watchdog

_log = logging.getLogger(__name__)
# How many steps the host starts ahead of the one whose outcome it reads: so many that the device never runs dry, but
# none where steps are long, as what has been started cannot be taken back when the run is told to stop.
STEPS_AHEAD = 2
LONG_STEP = 0.5  # seconds
LINE_SECONDS = 60.0  # after which a line is due, whatever `log.every` says
MOST_ROLLBACKS = 3  # to the same checkpoint

# --- the run ----------------------------------------------------------------------------------------------------------


class _Ending(enum.Enum):
    """Why the loop over a leg's steps ended."""

    FINISHED = enum.auto()
    INTERRUPTED = enum.auto()
    LEG_IS_OVER = enum.auto()


class _OutOfPatienceError(Exception):
    """The guard has left out too many updates in a row."""


class _Started(NamedTuple):
    """A step that the devices have been given.

    Attributes:
      draw: its rows.
      waited: seconds that the host waited for them.
      outcome: on the devices.
    """

    draw: Draw
    waited: float
    outcome: Outcome


class _Skipped(NamedTuple):
    """A step whose update was left out: the first step of its phase, and its rows of that phase's stream."""

    step: int
    phase: int
    begin: int
    end: int


def _identity(config: ml_collections.ConfigDict, legs: list[Leg], mesh: Mesh) -> dict[str, Any]:
    """What makes this run this run; see `albert_jax.training.identity`."""
    data = legs[-1].data
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "model": config.model.to_dict(),
        "data": data.manifest,
        "data_fingerprint": data.train.fingerprint,
        "vocabulary_sha256": data.vocabulary.sha256,
        "plan": " ".join(leg.data.train.digest for leg in legs),
        "packing": " ".join(leg.data.train.packing for leg in legs),
        "rows_per_step": " ".join(str(leg.rows_per_step) for leg in legs),
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
        self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        check_fields(config, self.mesh)
        self.config, self.workdir = config, directory(workdir)
        self._lock, self._interruption = lock, interruption
        self._profiler = Profiler(self.workdir / "profile", at=config.profile.at, steps=config.profile.steps)
        interruption.on(signal.SIGUSR1, self._profiler.request)
        interruption.phase = "data"
        self.legs = make_legs(config, self.mesh)
        identity = _identity(config, self.legs, self.mesh)
        check_processes(identity)
        self.identity = claim_workdir(workdir, identity)
        by_first(self._copy_vocabulary)
        interruption.phase = "restore"
        keeping = config.checkpoint
        self.checkpoints = Checkpoints(workdir, keeping.keep, self.identity, lock, keeping.keep_period)
        branch(self.identity, abstract_state(config, self.mesh), self.checkpoints)
        self._left_out = self._read_left_out()
        with self.legs[-1].naming_exhaustion():
            self.state, self.step, self.position, interval = self._restore_or_start()
        self.telemetry = self._open_telemetry() if first() else None
        self._saved, self._evaluated = self.step, by_first(self._last_evaluation)
        self._stopping, self._due = False, False
        self._in_flight = collections.deque[_Started]()
        self._pace = math.inf  # seconds of the last step
        self._parts: dict[int, jax.Array] = {}  # on the devices already
        interruption.phase = "compile"
        with self.legs[-1].naming_exhaustion():
            self.evaluator = self._make_evaluator()
        self.checkpoints.prepare(self.state)
        self._interval, self._progress = Interval(interval), Interval()  # whose clocks start now

    def _copy_vocabulary(self) -> None:
        source, target = self.legs[-1].data.vocabulary_file, self.workdir / "spiece.model"
        if not target.is_file() or target.read_bytes() != source.read_bytes():  # a full disk must not cost the old one
            target.write_bytes(source.read_bytes())

    def _read_left_out(self) -> LeftOut:
        """What the run leaves out; checkpoints that it had turned away from when it was killed are removed."""
        found = LeftOut.of(by_first(lambda: read_left_out(self.workdir)))
        if found.abandoned:
            self.checkpoints.abandon(found.abandoned)
            found = self._write_left_out(dataclasses.replace(found, abandoned=()))
        return found

    def _write_left_out(self, left_out: LeftOut) -> LeftOut:
        by_first(lambda: left_out.write(self.workdir))
        return left_out

    def _restore_or_start(self, steps: list[int] | None = None) -> tuple[TrainState, int, int, dict[str, Any] | None]:
        """State, steps done, rows of the leg's stream consumed, and the log interval that is under way.

        Args:
          steps: checkpoints to choose from, as `Checkpoints.restore` takes them.
        """
        restored = self.checkpoints.restore(abstract_state(self.config, self.mesh), steps)
        self._skipped: list[_Skipped] = []  # the last steps, as long as their updates are left out
        self._turning_back = False
        if restored is not None:
            meta = restored.meta
            self._skipped = [_Skipped(*numbers) for numbers in meta.get("skipped", [])]
            return restored.state, meta["step"], meta["position"], meta["interval"]
        params = starting_parameters(self.config)
        if first():
            print(parameter_overview.get_parameter_overview(params, include_stats=False), flush=True)
        return initial_state(self.config, params, self.mesh), 0, 0, None

    def _leg_at(self, step: int) -> Leg:
        """The one that the step after `step` belongs to."""
        return next((leg for leg in self.legs if step < leg.phase.end), self.legs[-1])

    def _open_telemetry(self) -> Telemetry:
        parent = self.identity.get("parent")
        if self.step and not (parent and parent["step"] == self.step):
            _log.info("resumed from step %s in %s.", self.step, self.workdir)
        chip = chip_of(jax.devices()[0].device_kind)
        peak = self.mesh.size * chip.peak if chip else None
        return Telemetry(
            self.workdir,
            steps=self.config.steps,
            restored_step=self.step,
            parent=parent,
            peak_flops=peak,
            sentence_order=self.config.data.sentence_order,
        )

    def _last_evaluation(self) -> int:
        assert self.telemetry is not None
        return last_evaluation(self.telemetry.directory)

    def _make_evaluator(self) -> Evaluator | None:
        """Evaluates as many rows at a time as the last leg trains on, so whether that leg fits shows at the start."""
        leg = self.legs[-1]
        rows = leg.rows.split.shards * leg.rows.split.each
        if leg.data.evaluated is None:
            _log.info("eval.every is 0: nothing is evaluated, after the last step neither.")
            return None
        without = leg.data.train.source_rows.keys() - leg.data.validation.source_rows.keys()
        if without:
            _log.warning("nothing of %s is held out for validation, so it has no figures.", ", ".join(sorted(without)))
        return Evaluator(
            leg.data.validation,
            rows=self.config.eval.rows,
            batch_rows=rows,
            mask_slots=leg.config.masking.slots,
            ahead=self.config.data.prefetch,
            unigrams=leg.data.unigrams,
            eval_step=lower_eval_step(leg.config, self.mesh, rows).compile(),
            mesh=self.mesh,
        )

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains until `config.steps` or an interruption, which is answered by a durable checkpoint.

        Returns:
          Whether the run is finished.
        """
        c, ready, ending = self.config, set[int](), _Ending.LEG_IS_OVER
        self._watchdog = Watchdog(c.watchdog.seconds, leave=c.watchdog.exit, doing=lambda: self._interruption.phase)
        with contextlib.closing(self._profiler), self._watchdog:
            while ending is _Ending.LEG_IS_OVER:
                leg = self._leg_at(self.step)
                if leg.phase.begin not in ready:
                    with self._paused():
                        self._prepare(leg)
                    ready.add(leg.phase.begin)
                try:
                    ending = self._train_leg(leg)
                except _OutOfPatienceError:
                    self._roll_back()
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

    def _train_leg(self, leg: Leg) -> _Ending:
        """The leg's steps, from where the run is.

        Raises:
          _OutOfPatienceError: where the run has to go back.
        """
        if self.step == leg.phase.begin:
            self.position = 0  # each leg has a stream of its own
        self._saved_at = self._line_at = self._outcome_at = time.monotonic()
        draws = leg.draws(self.step, self.position, self._left_out.of_phase(leg.phase.begin))
        loader = Loader(leg.batch, draws, ahead=self.config.data.prefetch)
        with contextlib.closing(loader), jax.transfer_guard("disallow"), leg.naming_exhaustion():
            waited = loader.waited
            for draw, batch in loader:
                rows, waited_before, waited = leg.rows.place(batch), waited, loader.waited
                if (ending := self._between_steps(leg)) is not None:
                    return ending
                outcome = self._take_step(leg, draw, rows)
                self._in_flight.append(_Started(draw, waited - waited_before, outcome))
            ending = self._between_steps(leg)
            assert ending is not None
            return ending

    def _take_step(self, leg: Leg, draw: Draw, rows: Batch) -> Outcome:
        """Gives the devices a step to do."""
        self._enter("step")
        if first():
            self._profiler.before_step(self.step + 1, [started.outcome for started in self._in_flight])
        if draw.parts not in self._parts:
            self._parts[draw.parts] = place_parts(draw.parts, self.mesh)
        self.state, outcome = leg.compiled_step()(self.state, rows, self._parts[draw.parts])
        self.step, self.position = self.step + 1, draw.position + draw.rows
        return outcome

    def _between_steps(self, leg: Leg) -> _Ending | None:
        """Reads outcomes; evaluates, saves and ends where it is time to. None where the next step is to follow."""
        c, over = self.config, self.step == leg.phase.end
        due = self.evaluator is not None and (self.step == c.steps or self.step % c.eval.every == 0)
        to_evaluate = due and 0 < self.step != self._evaluated
        self._due |= self.step != self._saved and any(
            every and self.step % every == 0 for every in (c.checkpoint.every, c.checkpoint.keep_period)
        )
        pause = over or to_evaluate or self._due or self._stopping
        self._read_outcomes(leg, 0 if pause or self._pace > LONG_STEP else STEPS_AHEAD)
        self._turn_back(now=pause)
        self._request_save_by_the_clock()
        if not over and self._is_granted():
            pause = True
            self._read_outcomes(leg, 0)
            self._turn_back(now=True)
        if not pause:
            return None
        if to_evaluate and not self._stopping:
            self._evaluate()
        done = self.step == c.steps and (self.evaluator is None or self._evaluated == self.step)
        stop = done or self._stopping
        # A checkpoint to go back to is none from the middle of updates that are left out: it waits for their end.
        if self.step != self._saved and (stop or over or (self._due and not self._skipped)):
            self._save(block=stop or over)
        if stop or over:
            return _Ending.FINISHED if done else _Ending.INTERRUPTED if stop else _Ending.LEG_IS_OVER
        return None

    def _request_save_by_the_clock(self) -> None:
        """The clock of process 0 decides for all."""
        minutes = self.config.checkpoint.minutes
        if first() and minutes and self.step != self._saved and time.monotonic() - self._saved_at > 60 * minutes:
            self._saved_at = time.monotonic()
            self._interruption.request(SAVE)

    def _is_granted(self) -> bool:
        """Whether this is the place where the processes do what one of them was asked for."""
        granted = self._interruption.granted()
        self._stopping |= STOP in granted
        self._due |= SAVE in granted and self.step != self._saved
        return bool(granted)

    def _read_outcomes(self, leg: Leg, ahead: int) -> None:
        """Reads outcomes, which waits for their steps, until so many steps are left that the devices work on."""
        before = len(self._in_flight)
        while len(self._in_flight) > ahead:
            # Of steps that are all over when the host comes to look, only the first one's end can be timed.
            draw, waited, on_device = self._in_flight.popleft()
            means: Any = on_device.means
            timed = len(self._in_flight) == before - 1 or not means.is_ready()
            outcome = jax.device_get(on_device)
            self._watchdog.moved()
            self._pace, self._outcome_at = time.monotonic() - self._outcome_at, time.monotonic()
            if self._turning_back:
                continue
            real = float(outcome.means[MEASURES.index("real_share")])
            tokens = real * draw.rows * leg.config.data.sequence_length
            for interval in (self._interval, self._progress):
                interval.add(outcome, tokens=tokens, flops=leg.flops(draw), waited=waited, timed=timed)
            skipped = _Skipped(draw.step + 1, leg.phase.begin, draw.position, draw.position + draw.rows)
            self._skipped = [*self._skipped, skipped] if outcome.in_a_row else []
            if 0 < self.config.guard.patience <= len(self._skipped):
                self._turning_back = True
                continue
            if (draw.step + 1) % self.config.log.every == 0 or draw.step + 1 == leg.phase.end:
                self._log(leg, draw)
            elif time.monotonic() - self._line_at > LINE_SECONDS:
                self._log(leg, draw, kind="progress")

    def _turn_back(self, *, now: bool) -> None:
        """Ends the leg's steps where the guard has left out too many updates in a row.

        How far a process reads behind the steps that it starts is its own affair. So all of them turn back before the
        same step: the one by which each has read the outcome, unless they pause before, where each has read all.

        Raises:
          _OutOfPatienceError: where it is so.
        """
        if self._turning_back and (now or self.step - self._skipped[-1].step >= STEPS_AHEAD):
            raise _OutOfPatienceError

    def _log(self, leg: Leg, draw: Draw, kind: str = "train") -> None:
        """Ends an interval with a step, and shows and records it."""
        interval, data, position = self._interval, leg.data, draw.position + draw.rows
        if kind == "progress":
            interval = self._progress
        else:
            self._interval = Interval()
        self._progress, self._line_at = Interval(), time.monotonic()
        if self.telemetry is None:
            return
        values = {"epoch": data.train.epoch(position), "position": position} | interval.means()
        if data.mixture is not None:
            values |= {f"epoch/{name}": e for name, e in data.mixture.source_epochs(position).items()}
        self.telemetry.log(draw.step + 1, values, interval.clocked(), kind=kind)

    def _evaluate(self) -> None:
        """Evaluates, unless the run is interrupted meanwhile; it is made good when the run goes on."""
        self._enter("evaluate")

        def proceed() -> bool:
            self._watchdog.moved()
            self._is_granted()
            return not self._stopping

        assert self.evaluator is not None
        began = time.monotonic()
        with self._paused():
            results = self.evaluator(self.state.params, proceed)
        if results is None:
            return
        self._evaluated = self.step
        if self.telemetry is not None:
            self.telemetry.evaluation(self.step, results, time.monotonic() - began)

    def _save(self, *, block: bool) -> None:
        # First the records, then the checkpoint: a run that goes on from it finds every line up to it.
        self._enter("save")
        progress = {"step": self.step, "position": self.position, "interval": self._interval.sums()}
        progress["skipped"] = self._skipped
        with self._paused(), jax.transfer_guard("allow"):
            self._lock.check()
            if self.telemetry is not None:
                self.telemetry.flush()
            self.checkpoints.save(self.state, progress, block=block)
        self._saved, self._saved_at, self._due = self.step, time.monotonic(), False
        self._watchdog.moved()

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Stops the clocks of the intervals, for what is no training."""
        with self._interval.paused(), self._progress.paused():
            yield
        self._outcome_at = time.monotonic()

    def _roll_back(self) -> None:
        """Goes back to a checkpoint, to train on from there without the rows of the updates that were left out.

        Raises:
          UserError: where this has helped nothing several times.
        """
        self._enter("restore")
        skipped, told = self._skipped, self._skipped[-1].step
        self._in_flight.clear()
        self.checkpoints.wait()
        left_out, candidates = self._left_out.going_back(
            [(each.phase, each.begin, each.end) for each in skipped], told=told, steps=self.checkpoints.steps
        )
        if left_out.times > MOST_ROLLBACKS:
            raise UserError(
                f"the run went back to step {left_out.restored} {MOST_ROLLBACKS} times and loss or gradient went out "
                f"of bounds again, last at step {told}; look at the data of {self.workdir}/metrics.jsonl's records "
                "'rollback', lower optimizer.learning_rate in a new run, or pass another --config.guard.norm_factor."
            )
        while True:
            del self.state  # two would not fit where one fills the memory
            with self.legs[-1].naming_exhaustion():
                self.state, self.step, self.position, interval = self._restore_or_start(candidates)
            candidates = [step for step in candidates if step < self.step]
            # One that an interruption has saved amid updates that were left out is only taken where there is no other.
            if not self._skipped or not candidates:
                break
        abandoned = tuple(step for step in self.checkpoints.steps if step > self.step)
        left_out = self._write_left_out(dataclasses.replace(left_out, restored=self.step, abandoned=abandoned))
        self.checkpoints.abandon(abandoned)
        self._left_out = self._write_left_out(dataclasses.replace(left_out, abandoned=()))
        self._saved, self._due = self.step, False
        self._interval, self._progress = Interval(interval), Interval()
        if self.telemetry is not None:
            self._record_rollback(skipped)
        self._evaluated = by_first(self._last_evaluation)

    def _record_rollback(self, skipped: list[_Skipped]) -> None:
        assert self.telemetry is not None
        self.telemetry.rewind(self.step)
        streams = {leg.phase.begin: leg.data.train for leg in self.legs}
        named = [name for s in skipped for name in streams[s.phase].examples(s.begin, s.end - s.begin)]
        rows = [span for begin in streams for span in merged((s.begin, s.end) for s in skipped if s.phase == begin)]
        values = {"from": skipped[-1].step, "skipped": len(skipped), "rows": rows, "examples": named}
        self.telemetry.event(self.step, "rollback", values)
        _log.warning(
            "the updates of steps %s to %s were left out, as loss or gradient norm were out of bounds: back to step "
            "%s, and on without their rows, %s of the stream, examples %s ... (all in metrics.jsonl).",
            skipped[0].step,
            skipped[-1].step,
            self.step,
            ", ".join(f"{begin} to {end}" for begin, end in rows),
            ", ".join(map(str, named[:3])),
        )

    def _finish(self, *, done: bool) -> None:
        self._enter("finish")
        self.checkpoints.close()
        if self.telemetry is None:
            return
        self.telemetry.close()
        if done:
            unshare = " --unshare" * (self.config.model.shared_across_groups != "nothing")
            out = f"{self.workdir.name if is_remote(self.workdir) else self.workdir}-export"
            places = f"--workdir={shlex.quote(str(self.workdir))} --out={shlex.quote(out)}"
            _log.info(
                "finished: step %s is saved in %s; for Hugging Face's format:\n  python scripts/export.py %s%s",
                *(self.step, self.workdir, places, unshare),
            )
        else:
            _log.info(
                "interrupted by %s: step %s is saved in %s; the same command goes on from there.",
                self._interruption.name or "a signal to another process",
                self.step,
                self.workdir,
            )
