# SPDX-License-Identifier: Apache-2.0
"""Writes a state as a step's folder, by Orbax, in the background and by all processes of the run together.

Orbax copies the arrays from the devices before `start` returns, and writes and commits in threads of its own. In
several processes each writes its part; then all say whether that went well, and process 0 commits only if it did for
all. So a step appears as a whole or not at all, and one process's full disk is known to the others at once, where Orbax
alone would let them wait for it until a timeout.
"""

import itertools
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from albert_jax.errors import UserError
from albert_jax.remote import first_line, is_remote
from albert_jax.training.agreement import agree, say
from albert_jax.training.distributed import LostPeerError, by_first, first, several
from albert_jax.training.saved_steps import SavedSteps

PATIENCE = 1800.0  # seconds for a save to end, on a monotonic clock
ITEMS = ("params", "rest")  # a step's folders of arrays
META = "meta/metadata"  # a step's file beside Orbax's
# Orbax measures its own timeout by the wall clock, which may be set while a save is under way.
_NEVER = 4_000_000_000
_PHASES = ("async_write_complete", "async_commit_complete")  # Orbax's names: all is written, process 0 has committed
_saves = itertools.count()  # all processes start the same saves in the same order


class _FailedElsewhereError(Exception):
    """Another process of the run could not do its part; the message is what it said."""


class _Save(threading.Thread):
    """One save: the thread copies the arrays, and waits until they are durable or have failed.

    Orbax's threads are daemons as this one is: a write that hangs does not keep a process from ending.

    Args:
      copy: copies the arrays and starts Orbax's threads.
      wait: waits for those.
      meta: gives what `META` will hold.
      done, failed: see `Writer.start`.

    Attributes:
      copied: set when the arrays may change, or the save has failed.
      word: why it failed; empty where it did not, or is still under way.
      lost: that another process is gone.
    """

    def __init__(
        self,
        copy: Callable[[], None],
        wait: Callable[[], None],
        meta: Callable[[], Mapping[str, Any]],
        done: Callable[[], None],
        failed: Callable[[str], None],
    ):
        super().__init__(name=f"albert_jax/save/{next(_saves)}", daemon=True)
        self.meta, self.word, self.copied = meta, "", threading.Event()
        self.lost: LostPeerError | None = None
        self._copy, self._wait, self._done, self._failed = copy, wait, done, failed

    def run(self) -> None:
        """In the thread."""
        try:
            with jax.transfer_guard("allow"):
                self._copy()
            self.copied.set()
            self._wait()
        except BaseException as e:
            self._fail(e)
        else:
            if first():
                self._done()
        finally:
            self.copied.set()

    def _fail(self, error: BaseException) -> None:
        """Keeps why it failed, and says it to the processes that wait for this one."""
        if isinstance(error, LostPeerError) or (several() and "DEADLINE_EXCEEDED" in str(error)):
            self.lost = LostPeerError(first_line(error))
            return
        self.word = first_line(error)
        if several() and not isinstance(error, _FailedElsewhereError):
            self.word = f"process {jax.process_index()}: {self.word}"
        for phase in _PHASES:
            say(f"{self.name}/{phase}", self.word)
        if first():
            self._failed(self.word)
        _end_stragglers()


def _end_stragglers() -> None:
    """Orbax gives up at the first error, while its other threads still write, into the folder of the next attempt.

    What tensorstore itself still writes then does no harm there: its files have random names, and nothing names them.
    A thread that waits for its folder has no event loop yet. Told to give up, it writes nothing when it wakes, so it
    need not be waited for, which would take minutes.
    """
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            waits = getattr(thread, "loop", None) is None
            if waits:
                thread.cancel()  # type: ignore[attr-defined]
            # Its own `join` measures by the wall clock and raises what it ended with.
            threading.Thread.join(thread, 1.0 if waits else None)


class Writer:
    """Writes one state at a time.

    Args:
      steps: where to.
      before_commit: called in process 0 when all is written; what it raises keeps the step from being committed.
    """

    def __init__(self, steps: SavedSteps, before_commit: Callable[[], None]):
        self._steps, self._before_commit = steps, before_commit
        self._save: _Save | None = None
        self._folder = epath.Path()
        together = ocp.options.MultiprocessingOptions(
            primary_host=0,
            # With all of them named, Orbax's barriers wait for 300 s at most; otherwise without end.
            active_processes=set(range(jax.process_count())),
        )
        asynchronous = ocp.options.AsyncOptions(
            timeout_secs=_NEVER,
            barrier_sync_fn=self._agree,
            post_finalization_callback=self._finish_folder,
        )
        composite = ocp.CompositeOptions(multiprocessing_options=together, async_options=asynchronous)
        # Compressed, weights would be 8 % smaller, and take several times as long to write and to read.
        handlers = {
            item: ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=together) for item in ITEMS
        }
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=composite, **handlers),
            multiprocessing_options=together,
            async_options=asynchronous,
        )

    def ends_within(self, seconds: float) -> bool:
        """Waits for the save that is under way, but no longer; whether there is none any more."""
        if self._save is not None:
            self._save.join(seconds)
        return self._save is None or not self._save.is_alive()

    def start(
        self,
        step: int,
        items: Mapping[str, Any],
        meta: Callable[[], Mapping[str, Any]],
        *,
        done: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        """Copies a state from the devices and begins to write it; `finish` has to be called before the next one.

        Args:
          step: the folder's name.
          items: trees of arrays, by the name in `ITEMS`.
          meta: called in a thread of process 0, gives what `META` holds.
          done: called in a thread of process 0 once the step is durable.
          failed: called in process 0, in this thread or another, once it is known to have failed, with the reason.

        Raises:
          LostPeerError: where another process does not answer.
        """
        folder = self._steps.path(step)
        self._folder = self._orbax.get_temporary_path(folder).get()
        args = ocp.args.Composite(**{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()})
        unwritable = by_first(self._why_not_writable)

        def copy() -> None:
            if unwritable:
                raise _FailedElsewhereError(unwritable)
            self._orbax.save(folder, args=args, force=True)

        self._save = _Save(copy, self._orbax.wait_until_finished, meta, done, failed)
        self._save.start()
        self._save.copied.wait()

    def _why_not_writable(self) -> str:
        """Tries to write: where Orbax could make no folder, its other threads would wait for it for minutes."""
        try:
            self._steps.try_to_write()
        except Exception as e:
            return f"{'process 0: ' if several() else ''}{first_line(e)}"
        return ""

    def _agree(self, *, key: str, timeout_ms: int) -> None:
        """In place of Orbax's barrier between writing, committing and going on."""
        del timeout_ms  # by the wall clock
        assert self._save is not None
        phase = next(phase for phase in _PHASES if phase in key)
        word = next(filter(None, agree(f"{self._save.name}/{phase}", "", PATIENCE)), "")
        if word:
            raise _FailedElsewhereError(word)

    def _finish_folder(self) -> None:
        """In process 0, when all parts are written and the folder is about to become a step."""
        assert self._save is not None
        self._before_commit()
        file, text = self._folder / META, json.dumps(self._save.meta())
        file.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(file):
            file.write_text(text)
            return
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> str:
        """Waits for the save that is under way, if any; why it failed, the same in all processes, empty if it did not.

        Raises:
          UserError: where it does not end.
          LostPeerError: where another process does not answer.
        """
        save = self._save
        if save is None:
            return ""
        save.join(PATIENCE)
        if save.lost:
            raise save.lost
        hung = f"it is not written after {PATIENCE:.0f} s" if save.is_alive() else ""
        word = next(filter(None, agree(f"{save.name}/ended", hung or save.word, PATIENCE)), "")
        if "it is not written after" in word:
            raise UserError(f"{self._folder} does not end ({word}): see to the storage and run the same command again.")
        self._save = None
        return word

    def close(self) -> None:
        """Lets go of Orbax's threads; `finish` has to be called before. A write that hangs is not waited for."""
        if self.ends_within(0):
            self._orbax.close()
