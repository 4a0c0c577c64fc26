# SPDX-License-Identifier: Apache-2.0
"""Where a build keeps what it has finished, so that it can be interrupted anywhere and goes on from there.

A build's workplace is the folder ``.NAME.building`` beside its output, on this machine or in an object store. Each step
of the work leaves one folder in it, which appears whole or not at all.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from albert_jax.errors import UserError
from albert_jax.remote import exists, filesystem, is_remote

_DONE = "done"  # in an object store the last file of a finished folder; on disk a rename does the same
_SCRATCH = "scratch-"
# What is kept, by kind: what the three passes leave of each part, and what was joined of it.
KINDS = ("scan", "guard", "tokenize", "joined")


class Workplace:
    """The workplace of the build whose output is `out`.

    Args:
        out: the data set's folder, or its address in an object store.
    """

    def __init__(self, out: str) -> None:
        parent, slash, name = out.rstrip("/").rpartition("/")
        self.path = f"{parent if slash else '.'}/.{name}.building"
        self.remote = is_remote(out)

    def finished(self) -> set[str]:
        """The names of what is finished."""
        if self.remote:
            store = filesystem(self.path)
            found = [path for kind in KINDS for path in store.glob(f"{self.path}/{kind}/*/{_DONE}")]
            return {"/".join(path.split("/")[-3:-1]) for path in found}
        folders = [Path(self.path, kind) for kind in KINDS]
        return {f"{folder.name}/{path.name}" for folder in folders if folder.is_dir() for path in folder.iterdir()}

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """An empty local folder that becomes the finished `name` when the block ends well, and vanishes when not."""
        if not self.remote:
            Path(self.path).mkdir(parents=True, exist_ok=True)
        where = None if self.remote else self.path
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=where, ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch, "new")  # `scratch` itself is private, whatever the umask
            folder.mkdir()
            yield folder
            self._keep(folder, name)

    def _keep(self, folder: Path, name: str) -> None:
        if not self.remote:
            target = Path(self.path, name)
            target.parent.mkdir(exist_ok=True)
            try:
                os.rename(folder, target)
            except OSError:
                if not target.is_dir():  # a cluster may run a part twice, which leaves the same twice
                    raise
            return
        store = filesystem(self.path)
        for path in folder.iterdir():
            store.put_file(str(path), f"{self.path}/{name}/{path.name}")
        store.pipe_file(f"{self.path}/{name}/{_DONE}", b"done")

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A local folder with the files of a finished `name`, without its shards where it is in an object store."""
        if not self.remote:
            yield Path(self.path, name)
            return
        store = filesystem(self.path)
        with tempfile.TemporaryDirectory() as folder:
            for path in store.ls(f"{self.path}/{name}", detail=False):
                file = path.rsplit("/", 1)[-1]
                if not file.endswith(".array_record"):
                    store.get_file(path, f"{folder}/{file}")
            yield Path(folder)

    def claim(self, identity: dict[str, Any]) -> bool:
        """Takes the workplace for a build; what another build or version left there is removed.

        Args:
            identity: all that the finished work depends on.

        Returns:
            Whether there is work of this very build to go on from.
        """
        text = json.dumps(identity, sort_keys=True)
        name = f"{self.path}/identity.json"
        if self.remote:
            store = filesystem(self.path)
            if exists(name) and store.cat_file(name).decode() == text:
                return True
            self.remove()
            store.pipe_file(name, text.encode())
            return False
        if Path(name).is_file() and Path(name).read_text(encoding="utf-8") == text:
            for stale in Path(self.path).glob(f"{_SCRATCH}*"):
                shutil.rmtree(stale, ignore_errors=True)
            return True
        self.remove()
        Path(self.path).mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
        return False

    def begun(self) -> bool:
        """Whether a build has claimed the workplace and did not end."""
        name = f"{self.path}/identity.json"
        return exists(name) if self.remote else Path(name).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuses a second build of the same output on this machine while the block runs.

        Raises:
            UserError: there is one.
        """
        if self.remote:  # an object store has no lock: two builders would do the same work and write the same files
            yield
            return
        parent = Path(self.path).parent
        parent.mkdir(parents=True, exist_ok=True)
        with open(parent / f"{Path(self.path).name}.lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
                    raise BlockingIOError  # the build that held it has ended this instant, and another may have begun
            except OSError as error:
                raise UserError(
                    f"another build is writing to {self.path}; wait for it, or give another --out"
                ) from error
            try:
                yield
            finally:
                Path(file.name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the workplace and all in it."""
        if not self.remote:
            shutil.rmtree(self.path, ignore_errors=True)
        elif exists(self.path):
            filesystem(self.path).rm(self.path, recursive=True)
