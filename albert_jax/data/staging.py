# SPDX-License-Identifier: Apache-2.0
"""A local copy of a data set that lies in an object store.

array_record reads gs:// itself, but sends a request for every record, so that a batch would wait for hundreds of them;
and NumPy cannot map an index that is not a file.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from albert_jax.data.store import read_manifest
from albert_jax.errors import UserError
from albert_jax.remote import MANIFEST, Stored, filesystem, in_parallel, is_remote, named_refusals, objects, stored

_log = logging.getLogger(__name__)

CACHE = "ALBERT_JAX_CACHE"  # the environment variable that names the directory of the copies
_RECORD = ".staged.json"  # name -> CRC32C of what was once compared with it


def staged(path: str | os.PathLike[str]) -> pathlib.Path:
    """A local directory with the files of the data set at `path`: itself, or a copy of what lies in an object store.

    Copies are kept in `ALBERT_JAX_CACHE`, or in ~/.cache/albert_jax, one for each address and manifest, until somebody
    deletes them. Every file is compared with the store's size and CRC32C when it is fetched; one that is whole already,
    from a staging that broke off, is not fetched again. A second process waits for the first.

    Raises:
      UserError: where there is no data set, the store cannot be reached, a file is damaged, or the disk is full.
    """
    path = os.fspath(path)
    if not is_remote(path):
        read_manifest(path)
        return pathlib.Path(path)
    path = path.rstrip("/")
    with named_refusals(path):
        store, wanted = filesystem(path), objects(path)
        if MANIFEST not in wanted:
            raise UserError(f"{path} holds no data set (no {MANIFEST}); make one with `python -m pretrain_data build`.")
        manifest = store.cat_file(f"{path}/{MANIFEST}")
        directory = _cache() / hashlib.sha256(path.encode() + b"\n" + manifest).hexdigest()[:24]
        try:
            _stage(store, path, wanted, directory)
        except OSError as e:
            if e.errno is None:  # the store's, not the disk's
                raise
            raise UserError(
                f"{directory} cannot be written ({e.strerror}); make room there, or set {CACHE} to another directory."
            ) from e
    read_manifest(directory)
    return directory


def _cache() -> pathlib.Path:
    root = os.environ.get(CACHE) or pathlib.Path.home() / ".cache" / "albert_jax"
    return pathlib.Path(root).absolute() / "data"


def _stage(store: Any, path: str, wanted: dict[str, Stored], directory: pathlib.Path) -> None:
    """Makes `directory` hold all of `wanted`."""
    began = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_suffix(".lock"), path):
        compared = _compared(directory / _RECORD)
        missing = [name for name in wanted if not _whole(directory / name, wanted[name], compared.get(name))]
        size = sum(wanted[name].size for name in missing)
        free = shutil.disk_usage(directory).free
        if size > free:
            raise UserError(
                f"the data set {path} takes {size / 1e9:,.2f} GB more and {directory} has room for "
                f"{free / 1e9:,.2f} GB; make room there, or set {CACHE} to another directory."
            )
        in_parallel(lambda name: _fetch(store, f"{path}/{name}", directory / name, wanted[name]), missing)
        _write(directory / _RECORD, json.dumps({name: wanted[name].crc32c for name in wanted}).encode())
    _log.info(
        "staged %s in %s: fetched %s of %s files, %.1f MB in %.1f s.",
        path,
        directory,
        len(missing),
        len(wanted),
        size / 1e6,
        time.perf_counter() - began,
    )


def _compared(record: pathlib.Path) -> dict[str, str]:
    """The checksums that files of a copy had when it was complete; none where it never was."""
    try:
        compared: dict[str, str] = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return compared


def _whole(file: pathlib.Path, wanted: Stored, compared: str | None) -> bool:
    """Whether a file need not be fetched. It is read only where that was not done yet."""
    if not file.is_file() or file.stat().st_size != wanted.size:
        return False
    return wanted.crc32c == (compared or stored(file).crc32c)


def _fetch(store: Any, path: str, file: pathlib.Path, wanted: Stored) -> None:
    """Downloads one object, which becomes `file` when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    try:
        store.get_file(path, str(partial))
        found = stored(partial)
        if found != wanted:
            raise UserError(
                f"{path} is damaged (size and CRC32C {tuple(found)}, not {tuple(wanted)}); publish the data set again."
            )
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: pathlib.Path, data: bytes) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(data)
    partial.replace(file)


@contextlib.contextmanager
def _locked(lock: pathlib.Path, path: str) -> Iterator[None]:
    """Keeps other processes from staging the same data set; the system lets go of a killed one's lock."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that stages %s.", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
