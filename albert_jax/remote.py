# SPDX-License-Identifier: Apache-2.0
"""Paths in object stores (``gs://bucket/folder``), through fsspec.

In a store an object appears whole when its upload ends; nothing can be appended to it, and a folder cannot be renamed
at once. So a data set or checkpoint has a last object that says it is whole, and files that grow are kept here and
copied over (`Spool`).
"""

import base64
import concurrent.futures
import contextlib
import functools
import importlib.util
import logging
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import fsspec
import google_crc32c
from etils import epath

from albert_jax.errors import UserError

_log = logging.getLogger(__name__)

TRANSFERS = 8  # files under way at once
MANIFEST = "manifest.json"  # a data set's last object
_PLANS = "plans/"  # made anew wherever a data set is used
_NOTES = re.compile(r" \[(?:http_response_code|http_response_body|source locations|tensorstore_spec)=")
# How tensorstore's messages begin where a store was not reached or refused, and nothing is known of the object.
_STATUSES = (
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)


# --- paths ------------------------------------------------------------------------------------------------------------


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an object store (``gs://...``) and no local file."""
    return "://" in str(path)


def filesystem(path: str) -> Any:
    """The fsspec file system of a remote path.

    Raises:
      UserError: the package for this kind of store is not installed, or there is none.
    """
    _require_client(path)
    try:
        # Others write to the store too, tensorstore among them: a remembered listing would hide what they do.
        return fsspec.url_to_fs(path, use_listings_cache=False)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be opened ({error}); give a gs:// or a local path.") from error


def exists(path: str) -> bool:
    """Whether there is an object or a folder at a remote path. Fsspec's own takes a store that refuses for a no."""
    try:
        filesystem(path).info(path)
    except FileNotFoundError:
        return False
    return True


def directory(path: str | os.PathLike[str]) -> epath.Path:
    """A directory, local or in an object store, with the methods of `pathlib.Path`.

    Raises:
      UserError: the store is none of Google's, or the package for it is not installed.
    """
    path = os.fspath(path)
    if is_remote(path):
        if not path.startswith("gs://"):  # what tensorstore and etils call it
            raise UserError(f"{path} is in no store that can be written to; give a local directory or a gs:// path.")
        _require_client(path)
    return epath.Path(path)


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path on this machine, for what is read and written here alone.

    Raises:
      UserError: it is one of an object store, in which `pathlib` would see a folder called "gs:".
    """
    if is_remote(path):
        raise UserError(
            f"{os.fspath(path)} is in an object store, where this cannot be read or written; give a path on this "
            "machine and copy from it or to it by `gcloud storage cp`."
        )
    return pathlib.Path(path)


def _require_client(path: str) -> None:
    if path.split("://", 1)[0] in ("gs", "gcs"):
        if importlib.util.find_spec("gcsfs") is None:
            raise UserError(f"{path} needs the package gcsfs; pip install -e '.[gcs]' in the checkout.")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs with a traceback what it raises anyway


# --- refusals ---------------------------------------------------------------------------------------------------------


@functools.cache
def _refusals() -> tuple[type[BaseException], ...]:
    """What gcsfs and Google's clients raise; most of it is no OSError."""
    if importlib.util.find_spec("gcsfs") is None:
        return (ConnectionError, TimeoutError)
    import aiohttp
    import gcsfs.retry
    import google.api_core.exceptions
    import google.auth.exceptions
    import requests

    return (
        aiohttp.ClientError,
        gcsfs.retry.HttpError,
        google.api_core.exceptions.GoogleAPICallError,
        google.auth.exceptions.GoogleAuthError,
        requests.RequestException,
        ConnectionError,
        TimeoutError,
    )


def refusal(error: BaseException | None) -> BaseException | None:
    """The error, of those that led to `error`, by which an object store was not reached or refused a request.

    None where there is none: then what was asked for is missing or damaged, or the error is another.
    """
    while error is not None:
        if isinstance(error, _refusals()) or str(error).startswith(_STATUSES):
            return error
        if isinstance(error, OSError) and error.errno is None and not isinstance(error, FileNotFoundError):
            return error  # gcsfs's "Forbidden"
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def named_refusals(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes it one sentence that the store of a path cannot be reached, refuses, or lacks the bucket.

    Raises:
      UserError: then. Errors of local paths and all others pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if not is_remote(path):
            raise
        found = refusal(e) or (e if isinstance(e, FileNotFoundError) and e.errno is None else None)
        if found is None:
            raise
        raise UserError(
            f"{os.fspath(path)} cannot be reached ({type(found).__name__}: {first_line(found)}); check the bucket's "
            "name, the network and the access rights (`gcloud auth application-default login`), and run the same "
            "command again."
        ) from e


def check_bucket(path: str | os.PathLike[str]) -> None:
    """Asks for a bucket's metadata, as Orbax does before it deletes a checkpoint, so that a run does not end there.

    Raises:
      UserError: the bucket is missing, or its metadata may not be read (the permission storage.buckets.get).
    """
    import google.cloud.storage

    with named_refusals(path):
        google.cloud.storage.Client().get_bucket(os.fspath(path).split("/")[2])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, without tensorstore's notes on it; its type where
    it has none."""
    return _NOTES.split((str(error).strip() or type(error).__name__).splitlines()[0])[0][:200]


# --- data sets --------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """What a store says of an object: bytes, and its CRC32C in base64."""

    size: int
    crc32c: str


def objects(path: str) -> dict[str, Stored]:
    """The objects under a path, by their names below it; marks of empty folders are none.

    Raises:
      UserError: where a name would lead out of a directory, or the store keeps no checksums.
    """
    root = path.split("://", 1)[1].rstrip("/") + "/"
    found = {}
    for full, info in filesystem(path).find(path, detail=True).items():
        if "crc32c" not in info:
            raise UserError(f"{path} is in a store that gives no CRC32C; copy it to a gs:// path or a local directory.")
        name = full.removeprefix(root)
        if full.startswith(root) and not name.endswith("/"):
            if ".." in name.split("/") or name.startswith("/"):
                raise UserError(f"{path} holds an object named {name!r}, which is no file name; rename it.")
            found[name] = Stored(int(info["size"]), info["crc32c"])
    return found


def stored(file: pathlib.Path) -> Stored:
    """What a store would say of a local file."""
    checksum = google_crc32c.Checksum()
    with file.open("rb") as stream:
        size = sum(len(piece) for piece in checksum.consume(stream, 1 << 20))
    return Stored(size, base64.b64encode(checksum.digest()).decode())


def in_parallel(action: Callable[[str], Any], names: Iterable[str]) -> None:
    """Applies an action to several names at once; the first error ends it, once what is under way has ended."""
    with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as executor:
        under_way = [executor.submit(action, name) for name in names]
        try:
            for future in concurrent.futures.as_completed(under_way):
                future.result()
        finally:
            executor.shutdown(cancel_futures=True)


def publish(local: pathlib.Path, remote: str, *, replace: bool = False, copied: Mapping[str, str] | None = None) -> int:
    """Uploads a finished data set; its manifest goes last, so half of one is never taken for whole.

    An upload that broke off goes on when it is called again. Cached packing plans are left out.

    Args:
      local: the data set's directory.
      remote: where it goes, e.g. gs://bucket/data.
      replace: whether to replace what is there, which is no data set from the first deletion to the end.
      copied: files of the data set that are in the store already, and where.

    Returns:
      Bytes of the data set.

    Raises:
      UserError: where `local` is no finished data set, `remote` is taken or cannot be written, or the store's checksums
        afterwards are not those of the files.
    """
    files = [file.relative_to(local).as_posix() for file in sorted(local.rglob("*")) if file.is_file()]
    files = [name for name in files if not name.startswith(_PLANS)]
    if MANIFEST not in files:
        raise UserError(f"{local} holds no finished data set (no {MANIFEST}); build it first.")
    remote, began, copied = remote.rstrip("/"), time.perf_counter(), copied or {}
    with named_refusals(remote):
        store, there = filesystem(remote), objects(remote)
        _make_room(store, remote, there, [*files, *copied], replace)
        wanted = {name: _stored_at(store, copied[name]) for name in copied} | {n: stored(local / n) for n in files}
        data = [name for name in wanted if name != MANIFEST]
        missing = [name for name in data if there.get(name) != wanted[name]]

        def send(name: str) -> None:
            if name in copied:
                store.cp_file(copied[name], f"{remote}/{name}")
            else:
                store.put_file(str(local / name), f"{remote}/{name}")

        in_parallel(send, missing)
        _compare(remote, {name: wanted[name] for name in data})
        try:
            store.put_file(str(local / MANIFEST), f"{remote}/{MANIFEST}", mode="create")
        except FileExistsError as e:
            raise UserError(f"another process has just published a data set at {remote}; use that one.") from e
        _compare(remote, wanted)
    sent = sum(wanted[name].size for name in [*missing, MANIFEST])
    _log.info(
        "published %s at %s: %s of %s files, %.1f MB in %.1f s.",
        local,
        remote,
        len(missing) + 1,
        len(wanted),
        sent / 1e6,
        time.perf_counter() - began,
    )
    return sum(found.size for found in wanted.values())


def _make_room(store: Any, remote: str, there: dict[str, Stored], files: list[str], replace: bool) -> None:
    """Deletes what is in a data set's place and not of it, the manifest first, or refuses to."""
    foreign = sorted(there.keys() - set(files))
    taken = [MANIFEST] * (MANIFEST in there) + foreign
    if taken and not replace:
        raise UserError(f"{remote} is taken (it holds {taken[0]}); give another --out, or --overwrite to replace it.")
    for name in taken:
        store.rm_file(f"{remote}/{name}")


def _stored_at(store: Any, path: str) -> Stored:
    info = store.info(path)
    return Stored(int(info["size"]), info["crc32c"])


def _compare(remote: str, wanted: dict[str, Stored]) -> None:
    """Refuses objects that are not the files they were made from."""
    there = objects(remote)
    for name, expected in wanted.items():
        found = there.get(name)
        if found != expected:
            raise UserError(
                f"{remote}/{name} is not the file it was made from (size and CRC32C {found and tuple(found)}, not "
                f"{tuple(expected)}); run the same command again."
            )


# --- files that grow --------------------------------------------------------------------------------------------------


class Spool:
    """Growing files of a directory, which may be in an object store, where nothing can be appended.

    Args:
      path: the directory.

    Attributes:
      local: where the files are written: the directory itself, or a temporary one whose files `upload` copies over.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._directory = directory(path)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._sizes: dict[str, int] = {}  # of what was uploaded
        if is_remote(self._directory):
            self._temporary = tempfile.TemporaryDirectory(prefix="albert_jax-", ignore_cleanup_errors=True)
            self.local = pathlib.Path(self._temporary.name)
        else:
            self.local = pathlib.Path(self._directory)
            self.local.mkdir(parents=True, exist_ok=True)

    def fetch(self, name: str) -> None:
        """Copies a file of the directory to `local`, if there is one."""
        if self._temporary is not None:
            with named_refusals(self._directory), contextlib.suppress(FileNotFoundError):
                data = filesystem(str(self._directory)).cat_file(f"{self._directory}/{name}")
                (self.local / name).write_bytes(data)

    def upload(self) -> None:
        """Copies every file that has changed in size since the last time; they must not be written meanwhile.

        Raises:
          UserError: where the store cannot be reached.
        """
        if self._temporary is None:
            return
        with named_refusals(self._directory):
            store = filesystem(str(self._directory))
            for file in sorted(path for path in self.local.rglob("*") if path.is_file()):
                name, size = file.relative_to(self.local).as_posix(), file.stat().st_size
                if self._sizes.get(name) != size:
                    store.put_file(str(file), f"{self._directory}/{name}")
                    self._sizes[name] = size

    def close(self) -> None:
        """Removes the temporary directory."""
        if self._temporary is not None:
            self._temporary.cleanup()
