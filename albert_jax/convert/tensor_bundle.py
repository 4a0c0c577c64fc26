# SPDX-License-Identifier: Apache-2.0
"""Reads and writes TensorFlow's checkpoint format (TensorBundle, "V2") without TensorFlow.

A checkpoint PREFIX is `PREFIX.index` and one or more `PREFIX.data-00000-of-00001`. The index is a LevelDB table: ""
maps to a BundleHeaderProto, a name to a BundleEntryProto that says where in which data file its bytes are. The
formats are those of tensorflow/core/util/tensor_bundle, core/lib/io/table_format.txt and core/protobuf/
tensor_bundle.proto. Six of the messages' fields matter here, so they are taken apart by hand.

Nothing in a file is trusted: every length is held against the bytes that are there before anything is made of it, and
every checksum is verified.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import google_crc32c
import ml_dtypes
import numpy as np

from albert_jax.errors import UserError

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # two block handles, padded to 40 bytes, and the magic number
_TRAILER = 5  # of a block: how it is compressed, and its checksum
_SNAPPY = 1
# Far above what the largest ALBERT needs (1,200 variables make 0.1 MB), and low enough to be held in memory.
_MAX_INDEX = 4 << 20
_MAX_NAME = 1024
_VERSION = 1  # of the bundle format; TensorFlow has had no other
# tensorflow/core/framework/types.proto. The first table is what we read and write; the second only gives a name to
# what is refused.
_DTYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    9: np.dtype(np.int64),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype(np.float16),
}
_OTHER_DTYPES = {7: "string", 8: "complex64", 10: "bool", 17: "uint16", 18: "complex128", 20: "resource", 21: "variant"}
# Protocol buffers' wire types.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _DamagedError(Exception):
    """What is wrong with the bytes of an index; `TensorBundle` turns it into a sentence."""


class _Entry(NamedTuple):
    """Where a tensor lies; BundleEntryProto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


class TensorBundle:
    """A checkpoint, opened for reading: the index is in memory, of the data only what is asked for.

    Args:
      prefix: the checkpoint's path without `.index`.

    Raises:
      UserError: where the index is missing, damaged, compressed, or of another byte order or version.
    """

    def __init__(self, prefix: str | pathlib.Path) -> None:
        self._prefix = str(prefix)
        index = f"{self._prefix}.index"
        try:
            with open(index, "rb") as file:
                data = file.read(_MAX_INDEX + 1)
        except OSError as e:
            raise UserError(f"{index} cannot be read ({e}); give a TensorFlow checkpoint's path without .index.") from e
        try:
            if len(data) > _MAX_INDEX:
                raise _DamagedError(f"it is larger than {_MAX_INDEX >> 20} MB")
            entries = dict(_read_table(data))
            self._shards = _read_header(entries.pop(b"", None), index)
            # A key that starts with a zero byte is not a name: it encodes one slice of a partitioned variable.
            self._entries = {
                _read_name(key): _read_entry(value) for key, value in entries.items() if not key.startswith(b"\0")
            }
        except _DamagedError as e:
            raise UserError(
                f"{index} is damaged or no index of a TensorFlow checkpoint ({e}); copy or download it again."
            ) from e

    @property
    def names(self) -> list[str]:
        """The variables' names, sorted."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A variable's shape."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """A variable's type as TensorFlow calls it, whether or not `read` supports it: "float32", "string"."""
        number = self._entry(name).dtype
        return _DTYPES[number].name if number in _DTYPES else _OTHER_DTYPES.get(number, f"number {number}")

    def read(self, name: str) -> np.ndarray:
        """A variable's value, in the dtype that it is stored in; its checksum is verified.

        Raises:
          UserError: where there is no such variable, it is partitioned or of an unsupported type, or its data file is
            missing or damaged.
        """
        entry = self._entry(name)
        where = f"variable {name} of {self._prefix}"
        if entry.partitioned:
            raise UserError(f"{where} is partitioned; save the model with TensorFlow from one unpartitioned variable.")
        if entry.dtype not in _DTYPES:
            raise UserError(f"{where} has type {self.dtype(name)}, which cannot be read here; save it without.")
        dtype = _DTYPES[entry.dtype]
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise UserError(f"the index of {self._prefix} contradicts itself about {name}; copy or download it again.")
        path = f"{self._prefix}.data-{entry.shard:05d}-of-{self._shards:05d}"
        try:
            with open(path, "rb") as file:
                # Before the memory is asked for: the sizes in the index may be anything.
                if entry.offset + entry.size > os.fstat(file.fileno()).st_size:
                    raise UserError(f"{path} ends before {name}; copy or download it again.")
                file.seek(entry.offset)
                data = np.empty(entry.size, np.uint8)
                file.readinto(data.data)
        except OSError as e:
            raise UserError(f"{path} cannot be read ({e}); put all files of the checkpoint into one directory.") from e
        if _masked_crc(data) != entry.checksum:
            raise UserError(f"{path} is damaged in {name}: its checksum differs; copy or download it again.")
        return data.view(dtype).reshape(entry.shape)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise UserError(f"{self._prefix} has no variable {name}; name one of its {len(self._entries)}.")
        return self._entries[name]


def write_tensor_bundle(prefix: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> list[pathlib.Path]:
    """Writes a checkpoint that TensorFlow reads by its variables' names, in one data file.

    Args:
      prefix: the path without `.index`; files of this checkpoint are replaced, and its directory must exist.
      tensors: name -> array of float16, bfloat16, float32, float64, int8 to int64 or uint8.

    Returns:
      The two files.

    Raises:
      UserError: for an array of another dtype, or where the files cannot be written.
    """
    numbers = {dtype: number for number, dtype in _DTYPES.items()}
    data, index = pathlib.Path(f"{prefix}.data-00000-of-00001"), pathlib.Path(f"{prefix}.index")
    entries = {b"": _field(1, 1) + _field(3, _field(1, _VERSION))}  # one data file; version
    offset = 0
    try:
        index.unlink(missing_ok=True)  # written last, so that there is none without all of its data
        with open(data, "wb") as file:
            for name, value in tensors.items():
                array = np.asarray(value)
                if array.dtype not in numbers:
                    raise UserError(f"{name} has dtype {array.dtype}, which is not written here; convert it first.")
                raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                file.write(raw.data)
                shape = b"".join(_field(2, _field(1, size)) for size in array.shape)
                place = _field(4, offset) + _field(5, raw.size) + _fixed32(6, _masked_crc(raw))
                entries[name.encode()] = _field(1, numbers[array.dtype]) + _field(2, shape) + place
                offset += raw.size
        index.write_bytes(_write_table(entries))
    except OSError as e:
        raise UserError(f"{prefix} cannot be written ({e}); make room or choose another directory.") from e
    return [index, data]


# --- the table --------------------------------------------------------------------------------------------------------


def _read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in the order of the keys."""
    if len(table) < _FOOTER or not table.endswith(_MAGIC):
        raise _DamagedError("its end is not that of a table")
    at = len(table) - _FOOTER
    numbers = []
    for _ in range(4):  # offset and size of the metaindex, which TensorFlow leaves empty, and of the index block
        number, at = _read_varint(table, at)
        numbers.append(number)
    last = None
    for _, handle in _read_block(table, numbers[2], numbers[3]):
        offset, at = _read_varint(handle, 0)
        for key, value in _read_block(table, offset, _read_varint(handle, at)[0]):
            if last is not None and key <= last:
                raise _DamagedError("its names are not in order")
            last = key
            yield key, value


def _read_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block: each key gives only what differs from the key before it."""
    end = offset + size
    if end + _TRAILER > len(table) - _FOOTER:
        raise _DamagedError("a block lies outside it")
    block = table[offset : end + 1]  # the byte that says how it is compressed is under the checksum too
    if _masked_crc(block) != int.from_bytes(table[end + 1 : end + _TRAILER], "little"):
        raise _DamagedError("the checksum of a block differs")
    if block[-1]:
        kind = "with snappy" if block[-1] == _SNAPPY else f"by method {block[-1]}"
        raise UserError(f"the checkpoint's index is compressed {kind}; save it again with TensorFlow, which does not.")
    stop = size - 4 * (int.from_bytes(block[size - 4 : size], "little") + 1) if size >= 4 else -1  # restart points
    if stop < 0:
        raise _DamagedError("a block is too short")
    at, key = 0, b""
    while at < stop:
        shared, at = _read_varint(block, at)
        fresh, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        if shared > len(key) or shared + fresh > _MAX_NAME or at + fresh + length > stop:
            raise _DamagedError("an entry does not fit its block")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + length
        yield key, block[at - length : at]


def _write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """A LevelDB table with one block of data."""
    ordered = sorted(entries.items())
    data, meta = _write_block(ordered), _write_block([])
    index = _write_block([(ordered[-1][0], _handle(0, data))])  # a key not before any in the block
    handles = _handle(len(data), meta) + _handle(len(data) + len(meta), index)
    return data + meta + index + handles.ljust(_FOOTER - len(_MAGIC), b"\0") + _MAGIC


def _write_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block that spells out every key, so that it needs one restart point only; with its trailer."""
    parts = [_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries]
    block = b"".join(parts) + bytes(4) + (1).to_bytes(4, "little") + b"\0"  # restarts, their number, not compressed
    return block + _masked_crc(block).to_bytes(4, "little")


def _handle(offset: int, block: bytes) -> bytes:
    return _varint(offset) + _varint(len(block) - _TRAILER)


def _masked_crc(data: bytes | np.ndarray) -> int:
    """LevelDB's checksum: CRC-32C, changed so that the checksum of data that holds checksums is not weak."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- the messages -----------------------------------------------------------------------------------------------------


def _read_header(message: bytes | None, index: str) -> int:
    """The number of data files; BundleHeaderProto."""
    if message is None:
        raise _DamagedError("it has no header")
    shards = 0
    for number, value in _read_fields(message, {1: _VARINT, 2: _VARINT, 3: _BYTES}):
        if number == 1:
            shards = value
        elif number == 2 and value:
            raise UserError(f"{index} was written by a big-endian machine; save it again on a little-endian one.")
        elif number == 3:
            for _, version in _read_fields(value, {2: _VARINT}):  # min_consumer
                if version > _VERSION:
                    raise UserError(
                        f"{index} asks for a reader of format {version}; save it again in format {_VERSION}."
                    )
    return shards


def _read_name(key: bytes) -> str:
    name = key.decode(errors="replace")
    if not name.isprintable() or "\ufffd" in name:
        raise _DamagedError(f"{name!a} is no name")
    return name


def _read_entry(message: bytes) -> _Entry:
    """BundleEntryProto."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    partitioned = False
    kinds = {1: _VARINT, 2: _BYTES, 3: _VARINT, 4: _VARINT, 5: _VARINT, 6: _FIXED32, 7: _BYTES}
    for number, value in _read_fields(message, kinds):
        if number == 2:
            shape = _read_shape(value)
        elif number == 7:
            partitioned = True
        else:
            numbers[number] = value
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], partitioned)


def _read_shape(message: bytes) -> tuple[int, ...]:
    """TensorShapeProto."""
    shape = []
    for _, dimension in _read_fields(message, {2: _BYTES}):
        sizes = [size for _, size in _read_fields(dimension, {1: _VARINT})]
        shape.append(sizes[-1] if sizes else 0)
    if len(shape) > 32 or math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise _DamagedError("a shape is absurd")
    return tuple(shape)


def _read_fields(message: bytes, kinds: dict[int, int]) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer whose numbers are in `kinds`, as integers or bytes; others are passed over."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, kind = key >> 3, key & 7
        if kinds.get(number, kind) != kind:
            raise _DamagedError("a field has another type")
        value: int | bytes
        if kind == _VARINT:
            value, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64, _BYTES):
            size, at = _read_varint(message, at) if kind == _BYTES else (4 if kind == _FIXED32 else 8, at)
            if at + size > len(message):
                raise _DamagedError("a field does not end")
            value = message[at : at + size]
            at += size
        else:
            raise _DamagedError("a field has no known type")
        if number in kinds:
            yield number, int.from_bytes(message[at - 4 : at], "little") if kind == _FIXED32 else value


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _fixed32(number: int, value: int) -> bytes:
    return _varint(number << 3 | _FIXED32) + value.to_bytes(4, "little")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of at most 64 bits, seven in a byte, the lowest first; and where the next thing starts."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise _DamagedError("a number does not end")


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
