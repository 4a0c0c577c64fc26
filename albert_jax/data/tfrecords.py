# SPDX-License-Identifier: Apache-2.0
"""The TFRecord container without TensorFlow: writing, reading in order, reading by number.

A file is a sequence of records, each of them (tensorflow/core/lib/io/record_writer.h, integers little-endian)

    uint64 length | uint32 masked CRC32C of the length | the record | uint32 masked CRC32C of the record

and nothing else: no header, no count and no index. Compressed files are such a sequence within gzip. A record's number
counts from 0; its byte offset is where its length stands. As nothing says how many records there are, a file that was
cut between two of them cannot be told from a whole one.
"""

import array
import dataclasses
import gzip
import hashlib
import logging
import os
import pathlib
import struct
import tempfile
import tokenize
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import google_crc32c
import numpy as np

from albert_jax.errors import UserError

_log = logging.getLogger(__name__)

HEADER, FOOTER = 12, 4  # bytes before a record and after it
_GZIP = b"\x1f\x8b"
_PIECE = 2**24  # bytes asked for at once, so that a wrong length costs no memory
INDEX_FOLDER = "tfrecord_index"  # beside the files; no name that a search for *.tfrecord* finds
_VERSION = 1  # of the kept index
_INDEX_HEADER = 6  # int64 before the offsets: version, size, time of change, checksum, and two of digest


class _Place(NamedTuple):
    """Where a record stands."""

    path: pathlib.Path
    number: int
    offset: int

    def error(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: record {self.number} at byte {self.offset} {what}; copy the file again from where it is "
            "whole, or write it again."
        )


def masked_crc(data: bytes) -> int:
    """CRC32C of some bytes, rotated and shifted by a constant as TFRecords store it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- writing ----------------------------------------------------------------------------------------------------------


def write_record(file: IO[bytes] | gzip.GzipFile, record: bytes) -> None:
    """Appends a record to a file that is open for writing bytes (`gzip.open` makes a compressed one)."""
    length = struct.pack("<Q", len(record))
    file.write(length + struct.pack("<I", masked_crc(length)) + record + struct.pack("<I", masked_crc(record)))


# --- reading in order -------------------------------------------------------------------------------------------------


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The records of a file in order, gzip-compressed or not, each checked by both of its checksums.

    Args:
      path: a local file.

    Raises:
      UserError: where the file is missing, cut or damaged.
    """
    path = pathlib.Path(path)
    with _open(path) as plain, gzip.open(plain) if _is_gzip(plain) else plain as file:
        number = offset = 0
        while header := _read(file, HEADER, _Place(path, number, offset)):
            place = _Place(path, number, offset)
            length = _length(header, place)
            yield _checked(_read(file, length + FOOTER, place), length, place)
            number, offset = number + 1, offset + HEADER + length + FOOTER


def _open(path: pathlib.Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as e:
        raise UserError(f"the TFRecord file {path} cannot be opened ({e.strerror}); check the path.") from e


def _is_gzip(file: IO[bytes]) -> bool:
    """Whether a file that is open at its beginning is compressed; it is left there."""
    start = file.read(HEADER)
    file.seek(0)
    # A record of 35,615 bytes begins like gzip too, but has its checksum.
    return start.startswith(_GZIP) and not _header_fits(start)


def _read(file: IO[bytes] | gzip.GzipFile, size: int, place: _Place) -> bytes:
    """The next `size` bytes, or fewer where the file ends."""
    parts, left = [], size
    while left:
        try:
            part = file.read(min(left, _PIECE))
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise place.error(f"of the decompressed contents cannot be decompressed ({e})") from e
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _header_fits(header: bytes) -> bool:
    return len(header) == HEADER and masked_crc(header[:8]) == int.from_bytes(header[8:], "little")


def _length(header: bytes, place: _Place) -> int:
    """The length that a record's first bytes give."""
    if len(header) < HEADER:
        raise place.error(f"has {len(header)} of its first {HEADER} bytes, as the file is cut")
    if not _header_fits(header):
        least = "" if place.number else " (or the file is no TFRecord file)"
        raise place.error(f"has a length that does not match its checksum{least}")
    return int.from_bytes(header[:8], "little")


def _checked(data: bytes, length: int, place: _Place) -> bytes:
    """The record in the bytes that follow its length."""
    if len(data) < length + FOOTER:
        raise place.error(f"is cut: {len(data)} of its {length + FOOTER} bytes are there")
    record = data[:length]
    if masked_crc(record) != int.from_bytes(data[length:], "little"):
        raise place.error(f"of {length} bytes does not match its checksum")
    return record


# --- reading by number ------------------------------------------------------------------------------------------------


def read_span(path: pathlib.Path, begin: int, end: int, first: int) -> list[bytes]:
    """Consecutive records of an uncompressed file in one read, each checked by both of its checksums.

    Args:
      path: a local file.
      begin: byte offset of the first record.
      end: byte offset after the last record.
      first: number of the first record, for what an error says.

    Raises:
      UserError: where the file is missing, cut or damaged.
    """
    with _open(path) as file:
        file.seek(begin)
        data = file.read(end - begin)
    records: list[bytes] = []
    at = 0
    while begin + at < end:
        place = _Place(path, first + len(records), begin + at)
        length = _length(data[at : at + HEADER], place)
        at += HEADER
        records.append(_checked(data[at : at + length + FOOTER], length, place))
        at += length + FOOTER
    return records


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """Where the N records of an uncompressed TFRecord file stand.

    Attributes:
      path: the file.
      offsets: int64 [N + 1], the byte offset of each record, then the file's size.
      digest: 32 hex digits, BLAKE2b over the length and the stored checksum of each record in order. It identifies the
        file's contents as CRC32C does, record by record, and no name or time has a part in it.
    """

    path: pathlib.Path
    offsets: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, first: int, count: int = 1) -> list[bytes]:
        """Records `first` to `first + count`.

        Raises:
          IndexError: where the file has no such records.
          UserError: where the file is damaged or has changed.
        """
        if not 0 <= first <= first + count <= len(self):
            raise IndexError(f"{self.path} has {len(self)} records, not {first} to {first + count}")
        return read_span(self.path, int(self.offsets[first]), int(self.offsets[first + count]), first)

    @classmethod
    def scan(cls, path: pathlib.Path) -> "RecordIndex":
        """Finds the records of a file by its lengths; of the records themselves nothing is read.

        Raises:
          UserError: where the file is missing, compressed, cut, or a length in it is damaged.
        """
        with _open(path) as file:
            if _is_gzip(file):
                raise UserError(
                    f"{path} is compressed by gzip, and its records cannot be read by number; decompress it first, as "
                    "by gunzip."
                )
            descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
            offsets, digest = array.array("q", [0]), hashlib.blake2b(digest_size=16)
            header, at = os.pread(descriptor, HEADER, 0), 0
            while at < size:
                place = _Place(path, len(offsets) - 1, at)
                length = _length(header, place)
                following = at + HEADER + length + FOOTER
                if following > size:
                    raise place.error(f"is cut: {size - at - HEADER} of its {length + FOOTER} bytes are there")
                checksum_and_header = os.pread(descriptor, FOOTER + HEADER, following - FOOTER)
                digest.update(header[:8] + checksum_and_header[:FOOTER])
                header, at = checksum_and_header[FOOTER:], following
                offsets.append(at)
        return cls(path, np.frombuffer(offsets, np.int64), digest.hexdigest())

    @classmethod
    def open(cls, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> "RecordIndex":
        """The kept index of a file, or a scan's, which is then kept for the next time.

        It is kept as an .npy file and made anew where the file's size or time of change differ from the kept ones, or
        the kept index is damaged. Where it cannot be kept, the file is scanned each time, and the log says so.

        Args:
          path: the TFRecord file.
          folder: where indices are kept; by default `tfrecord_index` beside the file.

        Raises:
          UserError: as `scan`.
        """
        path = pathlib.Path(path)
        with _open(path) as file:
            status = os.fstat(file.fileno())
        kept = _index_file(path, folder)
        index = _load(kept, path, status)
        if index is None:
            index = cls.scan(path)
            try:
                _save(index, kept, status)
            except OSError as e:
                _log.warning(
                    "the index of %s cannot be kept in %s (%s); the file is scanned at every start.", path, kept, e
                )
        return index


def _index_file(path: pathlib.Path, folder: str | os.PathLike[str] | None) -> pathlib.Path:
    """Where the index of a file is kept."""
    if folder is None:
        return path.parent / INDEX_FOLDER / f"{path.name}.npy"
    # Files of one name in several folders share the indices' folder.
    parent = hashlib.blake2b(os.fsencode(path.resolve().parent), digest_size=8).hexdigest()
    return pathlib.Path(folder) / f"{path.name}.{parent}.npy"


def _checksum(digest_and_offsets: np.ndarray) -> int:
    return int(google_crc32c.value(np.ascontiguousarray(digest_and_offsets).tobytes()))


def _load(kept: pathlib.Path, path: pathlib.Path, status: os.stat_result) -> RecordIndex | None:
    """The kept index, or None where there is none, or it is another file's or damaged."""
    try:
        # Not mapped: each map would hold a file descriptor, and there may be thousands of files.
        values = np.load(kept)
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError):  # np.load raises all of them
        return None
    if values.dtype != np.int64 or values.ndim != 1 or len(values) <= _INDEX_HEADER:
        return None
    expected = [_VERSION, status.st_size, status.st_mtime_ns, _checksum(values[4:])]
    if values[:4].tolist() != expected:
        return None
    return RecordIndex(path, values[_INDEX_HEADER:], values[4:_INDEX_HEADER].astype("<i8").tobytes().hex())


def _save(index: RecordIndex, kept: pathlib.Path, status: os.stat_result) -> None:
    body = np.concatenate([np.frombuffer(bytes.fromhex(index.digest), "<i8"), index.offsets])
    values = np.concatenate([[_VERSION, status.st_size, status.st_mtime_ns, _checksum(body)], body])
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as private:
        temporary = pathlib.Path(private, "new.npy")  # which follows the umask, as a file of mkstemp does not
        np.save(temporary, values)
        os.replace(temporary, kept)
