# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a workdir: a lock that a killed holder does not leave behind.

On a disk it is `flock` on `<workdir>/.lock`, which the kernel lets go of when the process ends, however it ends. Over
NFS it holds between machines where the server supports locks (NFSv4 does); gcsfuse keeps it within one machine.

In an object store it is a lease: the object `<workdir>/.lock`, which its holder writes again every `RENEW` seconds,
each time on the condition that it is still the generation that he wrote before. Who finds one watches it: where it
changes for `LEASE` seconds, its holder lives on; where it stays the same for as long by the watcher's own clock, it is
taken over, on the same condition. No two machines' clocks have to agree, and a clock that is set changes nothing.
"""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from albert_jax.errors import UserError
from albert_jax.remote import directory, first_line, is_remote, named_refusals, refusal
from albert_jax.training.distributed import by_first, first

_log = logging.getLogger(__name__)

LEASE = 90.0  # seconds without a renewal after which a lease may be taken over
RENEW = 20.0  # seconds between renewals
_POLL = 2.0  # seconds between two looks at somebody else's lease
_REQUEST = 10.0  # seconds that one request of a renewal may take
_NAME = ".lock"


class LostWorkdirError(UserError):
    """The lease of a workdir in an object store has gone to another run."""


class WorkdirLock:
    """The right to write into a workdir; as a context manager it is acquired and released.

    In a run of several processes the first one holds it for all. `acquire` and `check` have to be called by all.

    Args:
      workdir: the run's, which need not exist; it may be in an object store.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self._workdir = workdir
        self._lock = _Lease(workdir) if is_remote(workdir) else _FileLock(pathlib.Path(directory(workdir)))

    def acquire(self) -> None:
        """Takes the lock, in a store after up to 2 * `LEASE` seconds, if its last holder ends or was killed.

        Raises:
          UserError: where another run has it, naming process and machine, or the workdir cannot be written.
        """
        with named_refusals(self._workdir):
            by_first(self._lock.acquire)

    def check(self) -> None:
        """To be called before the workdir is written to: on a disk it is free, in a store it costs a request.

        Raises:
          LostWorkdirError: where another run has taken a lease that was not renewed in time.
        """
        by_first(self._lock.check)

    def check_here(self) -> None:
        """`check` for the first process alone, which also raises what keeps it from reaching the store."""
        self._lock.verify()

    def release(self) -> None:
        """Gives the lock back; never fails, and does nothing where it is not held."""
        if first():
            self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class _Holder(NamedTuple):
    """Who holds a lock; `id` tells runs apart, the rest is for people."""

    id: str
    pid: int
    host: str
    since: str

    @classmethod
    def me(cls) -> "_Holder":
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(uuid.uuid4().hex, os.getpid(), socket.gethostname(), since)

    @classmethod
    def read(cls, content: bytes) -> "_Holder | None":
        """None where it is not written yet, or was not written by us."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def content(self) -> bytes:
        return json.dumps(self._asdict()).encode() + b"\n"


def _described(holder: _Holder | None) -> str:
    return f"process {holder.pid} on {holder.host} since {holder.since}" if holder else "another process"


def _in_use(workdir: str | os.PathLike[str], holder: _Holder | None) -> UserError:
    return UserError(
        f"{os.fspath(workdir)} is in use by {_described(holder)}; wait for it to end or choose another --workdir."
    )


# --- on a disk --------------------------------------------------------------------------------------------------------


class _FileLock:
    """`flock` on a file of the workdir, which is removed at the end."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir, self._descriptor = workdir, -1
        self._made = not workdir.exists()

    def acquire(self) -> None:
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            while self._descriptor < 0:
                self._try()
        except OSError as e:
            remedy = "make room there or " if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise UserError(
                f"the workdir {self._workdir} cannot be written ({e.strerror}); {remedy}choose another --workdir."
            ) from e

    def _try(self) -> None:
        path = self._workdir / _NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = _Holder.read(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise _in_use(self._workdir, holder) from e
        except OSError as e:
            _log.warning(
                "%s is on a file system without locks (%s): see to it that no second run uses it.",
                self._workdir,
                e.strerror,
            )
        # The last holder may have removed the file between our opening and locking it: then this is a lock on nothing.
        if not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
            os.close(descriptor)
            return
        with contextlib.suppress(OSError):  # on a full disk the lock counts, not its text
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _Holder.me().content(), 0)
        self._descriptor = descriptor

    def check(self) -> None:
        """The kernel takes it from nobody who lives."""

    verify = check

    def release(self) -> None:
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            (self._workdir / _NAME).unlink()
            if self._made:  # a run that was refused leaves no empty directory behind; one with anything in it stays
                self._workdir.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1


# --- in an object store -----------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A lease that stands in the store."""

    generation: int
    holder: _Holder | None


class _Lease:
    """An object that is written again and again; `generation` 0 is that there is none."""

    def __init__(self, workdir: str | os.PathLike[str]):
        directory(workdir)  # refuses what is no gs:// path
        self._workdir = os.fspath(workdir)
        bucket, _, folder = self._workdir.removeprefix("gs://").rstrip("/").partition("/")
        self._bucket_name, self._key = bucket, f"{folder}/{_NAME}".lstrip("/")
        self._me, self._generation, self._lost = _Holder.me(), 0, ""
        self._one_at_a_time, self._ended = threading.Lock(), threading.Event()
        self._renewal: threading.Thread | None = None
        self._renewed = 0.0  # on the monotonic clock

    # What the store is asked.

    def _read(self) -> _Found | None:
        import google.api_core.exceptions as refusals

        blob = self._bucket.get_blob(self._key, timeout=_REQUEST)
        if blob is None:
            return None
        try:
            content = blob.download_as_bytes(if_generation_match=blob.generation, timeout=_REQUEST)
        except (refusals.NotFound, refusals.PreconditionFailed):
            return _Found(0, None)  # it has changed meanwhile
        return _Found(int(blob.generation), _Holder.read(content))

    def _write(self, generation: int) -> bool:
        """Writes the lease in place of a generation; False where there is another one by now."""
        import google.api_core.exceptions as refusals

        blob = self._bucket.blob(self._key)
        try:
            blob.upload_from_string(
                self._me.content(), if_generation_match=generation, timeout=_REQUEST, retry=None, checksum=None
            )
        except refusals.PreconditionFailed:
            return False
        self._generation, self._renewed = int(blob.generation), time.monotonic()
        return True

    @functools.cached_property
    def _bucket(self) -> Any:
        import google.cloud.storage

        return google.cloud.storage.Client().bucket(self._bucket_name)

    # What its holder does.

    def acquire(self) -> None:
        watched: _Found | None = None
        began = changed = time.monotonic()
        while True:
            found, now = self._read(), time.monotonic()
            if found is None or (found.holder and found.holder.id == self._me.id):
                if self._write(found.generation if found else 0):
                    break
                continue
            if watched is None:
                began = changed = now
                _log.info(
                    "%s is in use by %s: waiting up to %.0f s for that to end, if it has not been killed already.",
                    self._workdir,
                    _described(found.holder),
                    2 * LEASE,
                )
            elif found.generation != watched.generation:
                changed = now
            # A run that was told to stop, and is saving, may take a while to end.
            if changed > began and now > began + LEASE and now < changed + 2 * RENEW:
                raise _in_use(self._workdir, found.holder or (watched and watched.holder))
            if now > changed + LEASE and self._write(found.generation):
                _log.info("%s was left behind by %s: going on.", self._workdir, _described(found.holder))
                break
            watched = found
            time.sleep(_POLL)
        self._renewal = threading.Thread(target=self._renew_until_ended, name="workdir lease", daemon=True)
        self._renewal.start()

    def _renew_until_ended(self) -> None:
        warned = False
        while not self._ended.wait(RENEW) and not self._lost:
            try:
                self._renew()
                warned = False
            except Exception as e:  # the store is asked again in a while
                age = time.monotonic() - self._renewed
                if age > LEASE and not warned:
                    warned = True
                    _log.warning(
                        "the lock of %s could not be renewed for %.0f s (%s): another run could take it.",
                        self._workdir,
                        age,
                        first_line(refusal(e) or e),
                    )

    def _renew(self) -> None:
        with self._one_at_a_time:
            if self._lost or self._ended.is_set() or self._write(self._generation):
                return
            # Either another run has it, or the store did our last renewal and its answer was lost.
            found = self._read()
            if found is None or (found.holder and found.holder.id == self._me.id):
                if self._write(found.generation if found else 0):
                    return
                found = self._read()
            self._lost = _described(found.holder if found else None)

    def verify(self) -> None:
        if not self._lost:
            self._renew()
        if self._lost:
            raise LostWorkdirError(
                f"{self._workdir} was taken over by {self._lost}, because this run did not renew its lock for "
                f"{LEASE:.0f} s (was it suspended?); nothing more is written, and one of the two has to end."
            )

    def check(self) -> None:
        try:
            self.verify()
        except Exception as e:
            # A store that does not answer takes the lease from nobody: what is written next will fail and say so.
            if isinstance(e, UserError) or refusal(e) is None:
                raise

    def release(self) -> None:
        self._ended.set()
        if self._renewal is None:
            return
        self._renewal.join()
        self._renewal = None
        if not self._lost:
            _quietly(
                lambda: self._bucket.blob(self._key).delete(
                    if_generation_match=self._generation, timeout=_REQUEST, retry=None
                )
            )


def _quietly(action: Callable[[], Any]) -> None:
    """Whatever goes wrong is left to the lease's end."""
    with contextlib.suppress(Exception):
        action()
