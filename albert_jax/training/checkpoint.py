# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written by Orbax in the background, sealed with a digest per array, refused to any other run.

A workdir holds `run.json`, which identifies the run (resolved config, data set, vocabulary, versions), and
`checkpoints/<step>/` with the items `params`, `rest` (optimizer state, step, guard) and `meta` (what `run.json` says,
the position in the data, the unfinished log interval, and the digests). Orbax makes a step appear whole or not at all,
but does not notice bytes that changed afterwards; the digests do.

The workdir may lie in an object store (gs://bucket/run): Orbax writes there itself, by tensorstore and gcsfs. There a
step is whole once it has its last object, `commit_success.txt`.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from albert_jax.errors import UserError
from albert_jax.remote import check_bucket, first_line, is_remote, named_refusals
from albert_jax.training.compatibility import check_same_run
from albert_jax.training.digests import compile_digests, start_digests
from albert_jax.training.distributed import by_first, first
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.restoring import DamagedError, Restored, items_of, restore_step, seal
from albert_jax.training.saved_steps import SavedSteps, absolute
from albert_jax.training.step import TrainState
from albert_jax.training.writer import Writer

_log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a save that training waits for: the last one, or that of an interruption
PAUSE = 1.0  # seconds between them
NOTICED = 1.0  # seconds that training waits for a save before it says so


class Checkpoints:
    """The checkpoints of one run; the workdir's lock has to be held.

    In several processes all of them call the same methods in the same order; the first one alone changes the directory.

    Args:
      workdir: the run's; checkpoints go into its directory `checkpoints`.
      keep: newest checkpoints kept.
      keep_period: multiples of so many steps are kept for good; 0: none.
      identity: what `run.json` holds; saved with every checkpoint.
      lock: the workdir's, looked at before anything is written; without it, it is taken for held.

    Raises:
      UserError: where `keep` is too small, or the directory cannot be read or written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep: int,
        identity: dict[str, Any],
        lock: WorkdirLock | None = None,
        keep_period: int = 0,
    ):
        if keep < 2:
            raise UserError(
                f"checkpoint.keep must be at least 2, not {keep}: a damaged checkpoint needs one before it."
            )
        self.directory = absolute(workdir) / "checkpoints"
        self._identity, self._keep, self._keep_period, self._lock = identity, keep, keep_period, lock
        self._saved = SavedSteps(self.directory)
        self._steps: list[int] = by_first(self._open)  # that are whole, ascending; the same in all processes
        self._durable = 0  # newest step that is known to be good
        self._failures = 0  # in a row; counted by the first process
        self._attempt = 0  # of the save that training waits for; 0 where it does not
        self._surplus: list[int] = []  # steps to be deleted that could not be
        self._half_written: list[int] = []  # steps of failed saves
        self._under_way: int | None = None  # the step that is being saved
        self._writer = Writer(self._saved, lock.check_here if lock else lambda: None)

    def _open(self) -> list[int]:
        """Makes the directory and removes what was left over; gives the steps that are there."""
        with named_refusals(self.directory):
            try:
                if is_remote(self.directory):
                    check_bucket(self.directory)
                else:
                    self.directory.mkdir(parents=True, exist_ok=True)
                self._saved.clean()
                return self._saved.whole()
            except OSError as e:
                if is_remote(self.directory):
                    raise
                raise UserError(f"{self.directory} cannot be written ({e.strerror}); choose another --workdir.") from e

    # Saving.

    def prepare(self, like: TrainState) -> None:
        """Compiles the digests of such states, so that no save has to; nothing is run now.

        What is left to the first save are the slices that Orbax takes of arrays that several devices hold.

        Args:
          like: shapes, dtypes and shardings, as `jax.ShapeDtypeStruct` or arrays.
        """
        for tree in items_of(like).values():
            compile_digests(tree)

    @property
    def steps(self) -> list[int]:
        """Those that there are, ascending, the one that is being saved left out; the same in all processes."""
        return list(self._steps)

    def save(self, state: TrainState, progress: dict[str, Any], *, block: bool) -> None:
        """Saves a state; a step that is there already is not written again.

        Without `block` it is written in the background, after the save before it has ended. Where that one failed, a
        sentence was said when it did, and training goes on: storage may fail for a while. With `block` it is tried
        `ATTEMPTS` times.

        Args:
          state: copied from the devices before this returns.
          progress: what is to be known of it on the host, for `meta`: `step`, `position`, `interval`.
          block: whether to wait until the checkpoint is durable.

        Raises:
          UserError: where `block` and it could not be saved, a save does not end, or the workdir's lock is lost.
          LostPeerError: where another process does not answer.
        """
        step = progress["step"]
        self._settle(None if block else step)
        if step in self._steps:
            return
        if not block:
            self._start(state, progress)
            return
        for attempt in range(1, ATTEMPTS + 1):
            self._attempt = attempt
            self._start(state, progress)
            if not (why := self._settle()):
                self._attempt = 0
                return
            if attempt < ATTEMPTS:
                time.sleep(PAUSE)
        raise self._lost_save(step, f" in {ATTEMPTS} attempts ({why})")

    def _start(self, state: TrainState, progress: dict[str, Any]) -> None:
        if self._lock is not None:
            self._lock.check()
        items = items_of(state)
        digests_of = {name: start_digests(tree) for name, tree in items.items()}

        def meta() -> dict[str, Any]:
            digests = {name: read() for name, read in digests_of.items()}
            content = self._identity | progress | {"digests": digests}
            return content | {"seal": seal(content)}

        step = self._under_way = progress["step"]
        old = self._no_longer_kept([*self._steps, step])
        self._writer.start(step, items, meta, done=lambda: self._retain(old), failed=lambda why: self._warn(step, why))

    def _no_longer_kept(self, steps: list[int]) -> list[int]:
        """Those of some ascending steps that are neither among the newest nor kept for good."""
        return [step for step in steps[: -self._keep] if not self._keep_period or step % self._keep_period]

    def _retain(self, old: list[int]) -> None:
        """In the background, once a newer step is durable: deletes old ones, and what failed saves left."""
        self._failures = 0
        while self._half_written:  # a second time: some write may have been under way at the first
            self._discard(self._half_written.pop())
        self._surplus += old
        try:
            while self._surplus:
                self._saved.delete(self._surplus[0])
                del self._surplus[0]
        except Exception as e:  # the next save tries it again
            step, why = self._surplus[0], first_line(e)
            _log.warning("old checkpoint %s of %s could not be deleted (%s).", step, self.directory, why)

    def _settle(self, next_step: int | None = None) -> str:
        """Waits for the save that is under way; why it failed, empty if it did not or there is none."""
        step, began = self._under_way, time.monotonic()
        slow = next_step is not None and not self._writer.ends_within(NOTICED)
        if slow and first():
            _log.warning(
                "the save of step %s was still under way when step %s was to be saved: training waits for it.",
                step,
                next_step,
            )
        why = self._writer.finish()
        if slow and first():
            _log.warning(
                "training waited %.1f s for the save of step %s: choose a larger checkpoint.every or faster storage.",
                time.monotonic() - began,
                step,
            )
        if step is None:
            return ""
        self._under_way = None
        if why:
            by_first(lambda: self._discard(step))
            self._half_written.append(step)
        else:
            steps = [*self._steps, step]
            old = self._no_longer_kept(steps)
            self._steps, self._durable = [kept for kept in steps if kept not in old], step
        return why

    def _discard(self, step: int) -> None:
        with contextlib.suppress(Exception):  # the next save of this step, or the next start, tries it again
            self._saved.discard(step)

    def _warn(self, step: int, why: str) -> None:
        """Says in process 0 that a save has failed, when it does."""
        self._failures += 1
        if self._attempt:
            what = f"attempt {self._attempt} of {ATTEMPTS}"
        else:
            what = f"failure {self._failures} in a row; training goes on and saves again after checkpoint.every steps"
        _log.warning(
            "the checkpoint of step %s could not be written to %s (%s): %s; the last good one is %s.",
            step,
            self.directory,
            why,
            what,
            self._last_good(),
        )

    def _last_good(self) -> str:
        return f"step {self._durable}" if self._durable else "none"

    def _lost_save(self, step: int | None, how: str) -> UserError:
        remedy = "see that the bucket can be written to" if is_remote(self.directory) else "make room"
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.directory}{how}; the last good one is "
            f"{self._last_good()}: {remedy} and run the same command again."
        )

    def wait(self) -> None:
        """Waits until the last save is durable or has failed, which was told when it did.

        Raises:
          UserError: where it does not end.
          LostPeerError: where another process does not answer.
        """
        self._settle()

    def close(self) -> None:
        """Waits for the last save and lets go of the directory.

        Raises:
          UserError: where the save failed or does not end.
          LostPeerError: where another process does not answer.
        """
        step = self._under_way
        try:
            if why := self._settle():
                raise self._lost_save(step, f" ({why})")
        finally:
            self._writer.close()

    # Restoring.

    def restore(self, like: TrainState, steps: Sequence[int] | None = None) -> Restored | None:
        """The newest checkpoint that is whole, or None where there is none to choose from.

        A damaged one is reported and set aside for the one before it; where all are damaged, nothing is touched. What
        one process finds damaged is damaged for all.

        Args:
          like: shapes, dtypes and shardings, as `jax.ShapeDtypeStruct` or arrays; they need not be those of the run
            that saved.
          steps: to choose from, the best first; all of them, the newest first, where None.

        Raises:
          UserError: where there are checkpoints and all are damaged, or the storage cannot be read now.
          LostPeerError: where another process does not answer.
        """
        self._settle()
        damaged: list[int] = []
        steps = self._steps[::-1] if steps is None else steps
        for step in steps:
            try:
                restored = restore_step(self._saved.path(step), like, self._check)
            except DamagedError as e:
                if first():
                    _log.warning("checkpoint %s of %s is damaged (%s); trying the one before.", step, self.directory, e)
                damaged.append(step)
                continue
            by_first(functools.partial(self._tidy, damaged, step))
            self._steps = [saved for saved in self._steps if saved not in damaged]
            self._durable = step
            return restored
        if steps:
            raise UserError(
                f"all checkpoints in {self.directory} are damaged (steps {', '.join(map(str, damaged))}); restore the "
                "directory from a backup, or choose another --workdir to start again."
            )
        return None

    def abandon(self, steps: Sequence[int]) -> None:
        """Removes steps that the run has turned away from."""
        self._settle()

        def delete() -> None:
            with named_refusals(self.directory):
                for step in steps:
                    self._saved.delete(step)

        by_first(delete)
        self._steps = [kept for kept in self._steps if kept not in steps]
        self._durable = max(self._steps, default=0)

    def _tidy(self, damaged: list[int], restored: int) -> None:
        """Sets damaged steps aside, and removes those that were and are older than the one that is gone on from."""
        with named_refusals(self.directory):
            for step in damaged:
                self._saved.set_aside(step)
            self._saved.forget_damaged(before=restored)

    def _check(self, meta: dict[str, Any]) -> None:
        check_same_run(meta, self._identity, self.directory.parent)
