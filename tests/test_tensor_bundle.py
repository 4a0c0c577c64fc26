# SPDX-License-Identifier: Apache-2.0
"""No damaged TensorFlow checkpoint gets through, whatever is wrong with it, and none takes memory or crashes."""

import pathlib
import random
import shutil
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from albert_jax.convert import tensor_bundle
from albert_jax.convert.tensor_bundle import TensorBundle, write_tensor_bundle
from albert_jax.errors import UserError

pytest_plugins = ["tests.originals"]


def read_all(prefix: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """Everything in a checkpoint, or None where it is refused with one sentence."""
    try:
        bundle = TensorBundle(prefix)
        arrays = {name: bundle.read(name) for name in bundle.names}
    except UserError as e:
        assert str(e).endswith(".") and "\n" not in str(e)
        return None
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def damage_everywhere(prefix: pathlib.Path, flips: int) -> None:
    """Flips bytes of a checkpoint and cuts it: what is not refused must be as it was, and without much memory."""
    wanted = read_all(prefix)
    assert wanted
    rng = random.Random(0)
    tracemalloc.start()
    for file in [*prefix.parent.glob(f"{prefix.name}.index"), *prefix.parent.glob(f"{prefix.name}.data-*")]:
        content = file.read_bytes()
        refused = 0
        for _ in range(flips):
            place = rng.randrange(len(content))
            file.write_bytes(content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :])
            found = read_all(prefix)
            assert found in (None, wanted), place
            refused += found is None
        assert refused > 0.8 * flips  # a table's end has padding that says nothing
        for _ in range(flips // 4):
            file.write_bytes(content[: rng.randrange(len(content))])
            assert read_all(prefix) is None
        file.write_bytes(content)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert read_all(prefix) == wanted


def test_no_flipped_byte_and_no_cut_goes_unnoticed(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"scope_{i}/{name}": rng.standard_normal((i, 3)) for i in range(1, 6) for name in ("kernel", "bias")}
    write_tensor_bundle(tmp_path / "model", arrays)
    damage_everywhere(tmp_path / "model", flips=600)


def test_no_flipped_byte_and_no_cut_of_tensorflows_own_goes_unnoticed(
    originals: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(originals / "sharded", tmp_path / "sharded")
    damage_everywhere(tmp_path / "sharded" / "model.ckpt", flips=150)


def entry(**changes: Any) -> bytes:
    """A BundleEntryProto of 6 float32 zeros in shape (2, 3), changed."""
    parts: dict[str, Any] = {"dtype": 1, "shape": [2, 3], "shard": 0, "offset": 0, "size": 24} | changes
    field = tensor_bundle._field
    shape = b"".join(field(2, field(1, size)) for size in parts["shape"])
    where = field(3, parts["shard"]) + field(4, parts["offset"]) + field(5, parts["size"])
    checksum = tensor_bundle._masked_crc(bytes(min(parts["size"], 24)))
    return field(1, parts["dtype"]) + field(2, shape) + where + tensor_bundle._fixed32(6, checksum)


HUGE = (1 << 63) - 1
LIES: dict[str, Callable[[], dict[bytes, bytes]]] = {
    "a tensor larger than its file": lambda: {b"a": entry(shape=[1 << 40], size=1 << 42)},
    "an absurd shape": lambda: {b"a": entry(shape=[HUGE, HUGE, HUGE], size=HUGE)},
    "an absurd empty shape": lambda: {b"a": entry(shape=[HUGE, HUGE, 0], size=0)},
    "a thousand dimensions": lambda: {b"a": entry(shape=[1] * 1000, size=4)},
    "an offset past the end": lambda: {b"a": entry(offset=HUGE)},
    "a size that is not the shape's": lambda: {b"a": entry(size=20)},
    "a data file past the last": lambda: {b"a": entry(shard=1)},
    "another wire type": lambda: {b"a": tensor_bundle._field(2, 5)},
    "a field that does not end": lambda: {b"a": entry() + b"\x4a\x7f"},
    "a number that does not end": lambda: {b"a": b"\x08" + b"\xff" * 30},
    "a group": lambda: {b"a": b"\x0b"},
    "no UTF-8": lambda: {b"\xff\xfe": entry()},
    "a name of 2000 bytes": lambda: {b"a" * 2000: entry()},
    "a big-endian machine": lambda: {b"": tensor_bundle._field(1, 1) + tensor_bundle._field(2, 1)},
    "a later format": lambda: {b"": tensor_bundle._field(3, tensor_bundle._field(2, 2))},
    "four thousand million files": lambda: {b"": tensor_bundle._field(1, 1 << 32), b"a": entry(shard=1 << 31)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_under_a_right_checksum_is_refused_without_memory_or_crash(lie: str, tmp_path: pathlib.Path) -> None:
    header = {b"": tensor_bundle._field(1, 1)}
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(24))
    (tmp_path / "model.index").write_bytes(tensor_bundle._write_table(header | {b"a": entry()}))
    assert read_all(tmp_path / "model") == {"a": ("float32", (2, 3), bytes(24))}  # the truth
    (tmp_path / "model.index").write_bytes(tensor_bundle._write_table(header | LIES[lie]()))
    tracemalloc.start()
    assert read_all(tmp_path / "model") is None
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def block(content: bytes, compression: bytes = b"\0") -> bytes:
    """A block of a table with its trailer."""
    return content + compression + tensor_bundle._masked_crc(content + compression).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("content", "compression", "message"),
    [
        (b"anything", b"\1", "is compressed with snappy; save it again"),
        (b"anything", b"\7", "is compressed by method 7"),
        (b"", b"\0", "a block is too short"),
        (b"\xff\xff\xff\xff", b"\0", "a block is too short"),
        (b"\x05\x01\x00a" + bytes(4) + b"\1\0\0\0", b"\0", "an entry does not fit its block"),
        (b"\x00\x01\x7fa" + bytes(4) + b"\1\0\0\0", b"\0", "an entry does not fit its block"),
        (b"\x00\x00\x00" * 2 + bytes(4) + b"\1\0\0\0", b"\0", "its names are not in order"),
        (b"\x00\x01\x00a" + bytes(4) + b"\1\0\0\0", b"\0", "it has no header"),
    ],
)
def test_a_malformed_block_under_a_right_checksum_is_refused(
    content: bytes, compression: bytes, message: str, tmp_path: pathlib.Path
) -> None:
    data = block(content, compression)
    index = tensor_bundle._write_block([(b"z", tensor_bundle._handle(0, data))])
    handles = bytes(2) + tensor_bundle._handle(len(data), index)
    (tmp_path / "model.index").write_bytes(data + index + handles.ljust(40, b"\0") + tensor_bundle._MAGIC)
    with pytest.raises(UserError, match=message):
        TensorBundle(tmp_path / "model")


def test_a_flipped_byte_under_a_right_checksum_is_refused_or_another_checkpoint(tmp_path: pathlib.Path) -> None:
    write_tensor_bundle(tmp_path / "model", {f"scope/{i}": np.arange(6.0).reshape(i, -1) for i in (1, 2, 3)})
    index = tmp_path / "model.index"
    table = index.read_bytes()
    size = table.index(bytes(4) + b"\1\0\0\0\0") + 8  # the first block, which ends with its one restart point
    rng = random.Random(0)
    tracemalloc.start()
    for _ in range(3000):
        content = bytearray(table[:size])
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(size)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        index.write_bytes(block(bytes(content)) + table[size + 5 :])
        read_all(tmp_path / "model")  # another exception than UserError fails
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_an_index_too_large_to_be_one_is_refused_unread(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "model.index", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than 4 MB"):
        TensorBundle(tmp_path / "model")


def test_only_what_is_asked_for_is_read(tmp_path: pathlib.Path) -> None:
    write_tensor_bundle(tmp_path / "model", {"a": np.arange(5.0), "b/adam_m": np.arange(9.0)})
    with open(tmp_path / "model.data-00000-of-00001", "r+b") as file:
        file.truncate(5 * 8)
    np.testing.assert_array_equal(TensorBundle(tmp_path / "model").read("a"), np.arange(5.0))
    with pytest.raises(UserError, match="ends before b/adam_m"):
        TensorBundle(tmp_path / "model").read("b/adam_m")


def test_a_write_that_fails_leaves_no_checkpoint_of_mixed_parts(tmp_path: pathlib.Path) -> None:
    write_tensor_bundle(tmp_path / "model", {"a": np.arange(5.0)})
    with pytest.raises(UserError, match="dtype complex64"):
        write_tensor_bundle(tmp_path / "model", {"a": np.arange(4.0), "b": np.zeros(2, np.complex64)})
    with pytest.raises(UserError, match=r"model.index cannot be read"):
        TensorBundle(tmp_path / "model")
