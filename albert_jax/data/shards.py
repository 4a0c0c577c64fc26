# SPDX-License-Identifier: Apache-2.0
"""Records of a data set's shard files, of which as many are kept open as the system lets a process open."""

import collections
import errno
import os
import pathlib
import resource
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from albert_jax.errors import UserError

# Files that may still be opened when all shards are, for checkpoints and the like: half of them, and at least so many.
_SPARE = 64
# No reading ahead, as reads are random; a record is some KB.
_OPTIONS, _BUFFER = "readahead_buffer_size:0", 2**15
_all = weakref.WeakSet["Shards"]()


class Shards:
    """Reads records by their position in all shards, from several threads at once.

    A shard stays open after its first read. Where the system allows fewer open files than there are shards, those that
    were used last do.

    Args:
      records: file -> how many records it has, in order.

    Attributes:
      most_open: how many are kept open.
    """

    def __init__(self, records: Mapping[str, int]):
        self._files, self._ends = list(records), np.cumsum(list(records.values()), dtype=np.int64)
        self.most_open = _files_to_keep_open(len(records))
        _all.add(self)
        self._open = collections.OrderedDict[int, ArrayRecordReader]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def file_of(self, record: int) -> str:
        """The file that holds a record."""
        return self._files[int(np.searchsorted(self._ends, record, side="right"))]

    def read(self, records: np.ndarray) -> list[bytes]:
        """Reads records.

        Args:
          records: int [K], positions.

        Returns:
          The K records as they were written.

        Raises:
          UserError: where the system does not let the process open a file.
          RuntimeError, ValueError: where a file is damaged.
        """
        shard = np.searchsorted(self._ends, records, side="right")
        order = np.argsort(shard, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(shard[order])) + 1)
        found = [b""] * len(records)
        for places in runs if len(records) else ():
            number = int(shard[places[0]])
            before = self._ends[number - 1] if number else 0
            # Held here, a reader lives on where another thread has it dropped meanwhile.
            read = self._reader(number).read((records[places] - before).tolist())
            for place, record in zip(places, read, strict=True):
                found[place] = record
        return found

    def _reader(self, number: int) -> Any:
        with self._lock:
            reader = self._open.pop(number, None)
            while len(self._open) >= self.most_open:
                self._open.popitem(last=False)
            self._open[number] = _opened(self._files[number]) if reader is None else reader
            return self._open[number]


def _opened(file: str) -> Any:
    """Opens a shard.

    Raises:
      UserError: where the process may open no more files.
      OSError: where it cannot be opened for another reason.
    """
    try:
        with pathlib.Path(file).open("rb"):  # says by number what array_record says by some text
            pass
        return ArrayRecordReader(file, options=_OPTIONS, file_reader_buffer_size=_BUFFER)
    except OSError as e:
        if e.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The limit has been raised as far as the process may, unless something else has opened very many since.
        remedy = (
            f"raise that by `ulimit -n {hard}`"
            if soft < hard
            else "have an administrator raise the hard limit (limits.conf, LimitNOFILE=, a container's --ulimit nofile)"
        )
        raise UserError(
            f"{file} cannot be opened ({e.strerror}): a process may have {soft} files open at once here; {remedy}."
        ) from e


def _files_to_keep_open(wanted: int) -> int:
    """How many files can be kept open, `wanted` if possible; raises the process's limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = _open_files() + sum(shards.most_open for shards in _all)
    needed = taken + max(wanted + _SPARE, 2 * wanted)
    if resource.RLIM_INFINITY != soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = wanted if soft == resource.RLIM_INFINITY else min(soft - taken - _SPARE, (soft - taken) // 2)
    return max(2, min(wanted, room))


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 32
