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
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, Parameters, parameters
from albert_jax.remote import check_bucket, first_line, is_remote, named_refusals, refusal
from albert_jax.training.agreement import agree
from albert_jax.training.digests import compile_digests, digests, start_digests
from albert_jax.training.distributed import by_first, first
from albert_jax.training.identity import check_same_run
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.saved_steps import SavedSteps, absolute
from albert_jax.training.step import TrainState
from albert_jax.training.writer import META, Writer

_log = logging.getLogger(__name__)

FORMAT = 2  # of what a checkpoint holds and how
ATTEMPTS = 3  # of a save that training waits for: the last one, or that of an interruption
PAUSE = 1.0  # seconds between them
NOTICED = 1.0  # seconds that training waits for a save before it says so
_restorations = itertools.count()  # all processes try to restore the same steps in the same order


# --- saving and restoring ---------------------------------------------------------------------------------------------


def _seal(meta: dict[str, Any]) -> str:
    """sha256 of everything in `meta` but the seal itself: a changed digit in the position would show nowhere else."""
    rest = {name: value for name, value in meta.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class Restored(NamedTuple):
    """A checkpoint: the state, and everything in `meta`, such as step, position (rows of the stream) and interval."""

    state: TrainState
    meta: dict[str, Any]


class _DamagedError(Exception):
    """A checkpoint whose arrays are not the ones that were saved."""


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
        for tree in self._items(like).values():
            compile_digests(tree)

    @staticmethod
    def _items(state: TrainState) -> dict[str, Any]:
        """What a checkpoint holds, in two parts: an export needs the parameters alone."""
        rest = state._asdict()
        return {"params": rest.pop("params"), "rest": rest}

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
        items = self._items(state)
        digests_of = {name: start_digests(tree) for name, tree in items.items()}

        def meta() -> dict[str, Any]:
            digests = {name: read() for name, read in digests_of.items()}
            content = self._identity | progress | {"format": FORMAT, "digests": digests}
            return content | {"seal": _seal(content)}

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
                restored = self._restore_step(step, like)
            except _DamagedError as e:
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

    def _restore_step(self, step: int, like: TrainState) -> Restored:
        """One step, exactly as it was saved.

        Raises:
          _DamagedError: in all processes, where a part of it is not what was saved.
        """
        meta = _judged(by_first(lambda: self._verdict(step, lambda: self._load_meta(step))))
        targets = self._items(like)
        loaded: dict[str, Any] = {}
        verdict = self._verdict(step, lambda: loaded.update(_load_items(self._saved.path(step), targets)))
        words = agree(f"albert_jax/restore/{next(_restorations)}", json.dumps(verdict))
        for other in sorted(map(json.loads, words), key=lambda other: "unreadable" not in other):
            _judged(other)
        _compare(loaded, meta)  # all processes come to the same result
        return Restored(TrainState(params=loaded["params"], **loaded["rest"]), meta)

    def _load_meta(self, step: int) -> dict[str, Any]:
        meta = _read_meta(self._saved.path(step))
        check_same_run(meta, self._identity, self.directory.parent)
        return meta

    def _verdict(self, step: int, load: Callable[[], Any]) -> dict[str, Any]:
        """What a load gives, or why it gives nothing: that is damage, as the run is the same, or the storage failed."""
        name = f"checkpoint {step} of {self.directory}"
        try:
            return {"loaded": load()}
        except UserError:
            raise
        except MemoryError:
            return {"unreadable": f"{name} does not fit into the memory of process {jax.process_index()}; use more."}
        except Exception as e:
            if not (unreadable := _unreadable(e, self.directory)):
                return {"damaged": first_line(e)}
            why = first_line(unreadable)
            return {"unreadable": f"{name} cannot be read ({why}); see to the storage and run the same command again."}


def _judged(verdict: dict[str, Any]) -> Any:
    if "unreadable" in verdict:
        raise UserError(verdict["unreadable"])
    if "damaged" in verdict:
        raise _DamagedError(verdict["damaged"])
    return verdict["loaded"]


def _read_meta(folder: epath.Path) -> dict[str, Any]:
    """A step's `meta`, compared with its seal."""
    meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
    if meta.get("seal") != _seal(meta):
        raise _DamagedError("its meta is not what was saved")
    return meta


def _load_items(folder: epath.Path, targets: dict[str, Any]) -> dict[str, Any]:
    """Restores a step's items, each process its part. No process waits for another here."""

    def load(name: str, tree: Any) -> Any:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
        return ocp.StandardCheckpointHandler().restore(folder / name, args=ocp.args.StandardRestore(target))

    return {name: load(name, tree) for name, tree in targets.items()}


def _compare(loaded: dict[str, Any], meta: dict[str, Any]) -> None:
    """Refuses arrays whose digests are not those that were saved."""
    for name, tree in loaded.items():
        expected, found = meta["digests"][name], digests(tree)
        wrong = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
        if wrong:
            raise _DamagedError(
                f"{len(wrong)} arrays of {name!r} are not those that were saved, e.g. {sorted(wrong)[0]}"
            )


def _unreadable(e: Exception, checkpoints: epath.Path) -> BaseException | None:
    """The error by which the storage as such failed; None where something in it is missing or damaged."""
    if (found := refusal(e)) or is_remote(checkpoints):
        return found
    return e if isinstance(e, OSError) and not isinstance(e, (FileNotFoundError, NotADirectoryError)) else None


# --- reading parameters alone -----------------------------------------------------------------------------------------


def load_parameters(workdir: str | os.PathLike[str], step: int | None = None) -> tuple[Parameters, dict[str, Any]]:
    """The parameters of a run, for export or as a start for another run; its lock is not needed.

    Args:
      workdir: a training workdir.
      step: which checkpoint; the newest where None.

    Returns:
      Nested dict of float32 NumPy arrays, and the checkpoint's `meta`.

    Raises:
      UserError: where there is no such checkpoint or it is damaged.
    """
    checkpoints = absolute(workdir) / "checkpoints"
    with named_refusals(checkpoints):
        steps = SavedSteps(checkpoints).whole()
        if not steps and not checkpoints.is_dir():
            raise UserError(f"{workdir} holds no checkpoints; give the --workdir of a training run.")
        if not steps or (step is not None and step not in steps):
            wanted = "" if step is None else f" {step}"
            raise UserError(f"{checkpoints} has no checkpoint{wanted}; it has {steps or 'none yet, so train first'}.")
        step = steps[-1] if step is None else step
        try:
            return _load_parameters(checkpoints / str(step))
        except UserError:
            raise
        except Exception as e:
            if is_remote(checkpoints) and refusal(e):
                raise
            raise UserError(
                f"checkpoint {step} of {checkpoints} is damaged ({first_line(e)}); choose another of {steps} with "
                "--step."
            ) from e


def _load_parameters(folder: epath.Path) -> tuple[Parameters, dict[str, Any]]:
    meta = _read_meta(folder)
    config = AlbertConfig.from_dict(meta["config"]["model"])
    shapes = nnx.eval_shape(lambda: parameters(FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0))))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    loaded = _load_items(folder, {"params": target})
    _compare(loaded, meta)
    return jax.tree.map(np.asarray, loaded["params"]), meta
