# SPDX-License-Identifier: Apache-2.0
"""The directory of a run's checkpoints, one folder a step: what is whole, what is left over, and how steps are removed.

Only one process of a run may change it, and only while it holds the workdir's lock.

On a disk a step is written under another name, and renamed when it is whole; it is removed by renaming it into `.trash`
first. So a kill at any moment leaves each step as a whole or not at all. In an object store nothing can be renamed at
once: there a step is whole while it has the object `commit_success.txt`, which is written last and deleted first.
"""

import contextlib
import os
import pathlib
import shutil

from etils import epath

from albert_jax.remote import directory, filesystem, is_remote

_TRASH = ".trash"
_COMMITTED = "commit_success.txt"
_TEMPORARY = ".orbax-checkpoint-tmp"
_DAMAGED = "damaged-"
_PROBE = 4096  # bytes


def absolute(workdir: str | os.PathLike[str]) -> epath.Path:
    """The workdir as Orbax wants it."""
    found = directory(workdir)
    return found if is_remote(found) else epath.Path(pathlib.Path(found).absolute())


class SavedSteps:
    """The folders of a directory, which need not exist.

    Args:
      directory: absolute, or in an object store.
    """

    def __init__(self, directory: epath.Path):
        self._directory, self._remote = directory, is_remote(directory)

    def path(self, step: int) -> epath.Path:
        """A step's folder."""
        return self._directory / str(step)

    def whole(self) -> list[int]:
        """Steps that were finished, ascending; whether their arrays are still what was saved, nobody knows yet."""
        return sorted(int(name) for name in self._names() if name.isdigit() and self._is_whole(name))

    def clean(self) -> None:
        """Removes what killed or failed saves and deletions left."""
        for name in self._names():
            if name == _TRASH or _TEMPORARY in name or (name.isdigit() and not self._is_whole(name)):
                self._remove(name)

    def try_to_write(self) -> None:
        """Writes a small file and removes it again.

        Raises:
          OSError, or what the store's client raises: where it cannot be written.
        """
        probe = self._directory / f"probe{_TEMPORARY}"
        try:
            probe.write_bytes(bytes(_PROBE))
        finally:
            with contextlib.suppress(Exception):
                probe.unlink(missing_ok=True)

    def discard(self, step: int) -> None:
        """Removes what a failed save of a step has left; a step that is whole stays."""
        self._remove(f"{step}{_TEMPORARY}")
        if self._remote and not self._is_whole(str(step)):
            self._remove(str(step))

    def delete(self, step: int) -> None:
        """Removes a step.

        Raises:
          OSError, or what the store's client raises: where it cannot be removed.
        """
        if self._remote:
            with contextlib.suppress(FileNotFoundError):
                filesystem(str(self._directory)).rm_file(f"{self.path(step)}/{_COMMITTED}")
            self._remove(str(step))
            return
        trash = self._directory / _TRASH
        trash.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.path(step).rename(trash / str(step))
        self._remove(_TRASH)

    def set_aside(self, step: int) -> None:
        """Gives a damaged step another name, so that the run can save that step again and people can look at it."""
        target = f"{_DAMAGED}{step}"
        self._remove(target)
        if self._remote:
            filesystem(str(self._directory)).mv(str(self.path(step)), f"{self._directory}/{target}", recursive=True)
        else:
            self.path(step).rename(self._directory / target)

    def forget_damaged(self, before: int) -> None:
        """Removes damaged steps before a step from which the run goes on: nobody will miss them any more."""
        for name in self._names():
            step = name.removeprefix(_DAMAGED)
            if step != name and step.isdigit() and int(step) < before:
                self._remove(name)

    def _names(self) -> list[str]:
        """The names in the directory; in a store others write too, so no listing is remembered."""
        if not self._remote:
            return [path.name for path in self._directory.iterdir()] if self._directory.is_dir() else []
        try:
            found = filesystem(str(self._directory)).ls(str(self._directory), detail=False)
        except FileNotFoundError:
            return []
        return [name.rstrip("/").rsplit("/", 1)[1] for name in found]

    def _is_whole(self, name: str) -> bool:
        if not self._remote:
            return (self._directory / name).is_dir()
        # Not `exists`, which takes a store that refuses for a no.
        try:
            filesystem(str(self._directory)).info(f"{self._directory}/{name}/{_COMMITTED}")
        except FileNotFoundError:
            return False
        return True

    def _remove(self, name: str) -> None:
        if not self._remote:
            path = self._directory / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
            return
        with contextlib.suppress(FileNotFoundError):
            filesystem(str(self._directory)).rm(f"{self._directory}/{name}", recursive=True)
