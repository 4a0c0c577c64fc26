# SPDX-License-Identifier: Apache-2.0
"""TFRecord files: as TensorFlow writes and reads them, whole or not, in order and by number."""

import gzip
import json
import os
import pathlib
import re
import struct
import subprocess

import numpy as np
import pytest

from albert_jax.data import tfrecords
from albert_jax.data.tfrecords import RecordIndex, masked_crc, read_records, write_record
from albert_jax.errors import UserError
from tests.peers import transformers4

RECORDS = [b"", b"a", bytes(range(256)) * 20, b"\x1f\x8b" * 7, b"last"]


def write(path: pathlib.Path, records: list[bytes]) -> pathlib.Path:
    with open(path, "wb") as file:
        for record in records:
            write_record(file, record)
    return path


def write_compressed(path: pathlib.Path, records: list[bytes]) -> pathlib.Path:
    with gzip.open(path, "wb") as file:
        for record in records:
            write_record(file, record)
    return path


def offsets_of(records: list[bytes]) -> list[int]:
    return np.cumsum([0] + [16 + len(record) for record in records]).tolist()


# --- the container ----------------------------------------------------------------------------------------------------


def slow_crc32c(data: bytes) -> int:
    """CRC32C bit by bit: the polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_slow_checksum_is_crc32c() -> None:
    assert slow_crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert slow_crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("record", RECORDS, ids=len)
def test_a_file_is_length_checksum_record_checksum(tmp_path: pathlib.Path, record: bytes) -> None:
    def slow_masked(data: bytes) -> int:
        crc = slow_crc32c(data)
        return (((crc >> 15) + (crc << 17) % 2**32) + 0xA282EAD8) % 2**32

    length = struct.pack("<Q", len(record))
    expected = length + struct.pack("<I", slow_masked(length)) + record + struct.pack("<I", slow_masked(record))
    assert write(tmp_path / "x", [record]).read_bytes() == expected
    assert masked_crc(record) == slow_masked(record)


@pytest.mark.parametrize("records", [[], [b""], RECORDS], ids=len)
def test_what_is_written_is_read_plain_or_compressed(tmp_path: pathlib.Path, records: list[bytes]) -> None:
    assert list(read_records(write(tmp_path / "plain", records))) == records
    assert list(read_records(str(write_compressed(tmp_path / "compressed", records)))) == records


def test_a_record_whose_length_looks_like_gzip_is_none(tmp_path: pathlib.Path) -> None:
    record = bytes(0x8B1F)
    path = write(tmp_path / "x", [record, b"b"])
    assert path.read_bytes().startswith(b"\x1f\x8b")
    assert list(read_records(path)) == [record, b"b"]
    assert RecordIndex.open(path).read(1) == [b"b"]


def test_records_larger_than_what_is_asked_for_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecords, "_PIECE", 100)
    assert list(read_records(write(tmp_path / "plain", RECORDS))) == RECORDS
    assert list(read_records(write_compressed(tmp_path / "compressed", RECORDS))) == RECORDS


# --- damage -----------------------------------------------------------------------------------------------------------

SHORT = [b"first", b"", b"the third"]
SIZES = offsets_of(SHORT)


def read_all(path: pathlib.Path) -> list[bytes]:
    """In order, and by number, which must agree in what they give or say."""
    try:
        return list(read_records(path))
    except UserError as e:
        with pytest.raises(UserError) as by_number:
            index = RecordIndex.scan(path)
            index.read(0, len(index))
        assert str(by_number.value) == str(e)
        raise


@pytest.mark.parametrize("size", range(SIZES[-1]))
def test_a_cut_file_is_an_error_that_says_where_unless_cut_between_records(tmp_path: pathlib.Path, size: int) -> None:
    path = write(tmp_path / "x", SHORT)
    path.write_bytes(path.read_bytes()[:size])
    if size in SIZES:
        assert read_all(path) == SHORT[: SIZES.index(size)]
        return
    record = next(i for i in range(3) if size < SIZES[i + 1])
    with pytest.raises(UserError, match=f"^{path}: record {record} at byte {SIZES[record]} .*cut") as e:
        read_all(path)
    assert str(e.value).count(". ") == 0


@pytest.mark.parametrize("byte", range(SIZES[-1]))
def test_a_flipped_bit_anywhere_is_an_error_that_says_where(tmp_path: pathlib.Path, byte: int) -> None:
    path = write(tmp_path / "x", SHORT)
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << byte % 8
    path.write_bytes(data)
    record = next(i for i in range(3) if byte < SIZES[i + 1])
    with pytest.raises(UserError, match=f"record {record} at byte {SIZES[record]} .*does not match its checksum"):
        read_all(path)


def test_a_length_beyond_the_file_costs_no_memory(tmp_path: pathlib.Path) -> None:
    length = struct.pack("<Q", 2**60)
    path = tmp_path / "x"
    path.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"short")
    with pytest.raises(UserError, match=f"is cut: 5 of its {2**60 + 4} bytes are there"):
        read_all(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=f"is cut: 5 of its {2**60 + 4} bytes are there"):
        list(read_records(path))


def test_damaged_compressed_files_are_errors(tmp_path: pathlib.Path) -> None:
    path = write_compressed(tmp_path / "x", SHORT)
    whole = path.read_bytes()
    for size in range(12, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"{path}: record"):
            list(read_records(path))
    unnoticed = []
    for byte in range(len(whole)):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        try:
            assert list(read_records(path)) == SHORT
            unnoticed.append(byte)
        except UserError as e:
            assert f"{path}: record" in str(e)
    # Gzip's own header holds a time, a system and a name, which are no part of the contents.
    assert set(unnoticed) <= set(range(3, 12))


def test_what_is_no_tfrecord_file_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("some text that is longer than a header")
    with pytest.raises(UserError, match="or the file is no TFRecord file"):
        read_all(path)
    with pytest.raises(UserError, match=r"cannot be opened .No such file or directory.; check the path"):
        read_all(tmp_path / "absent")
    with pytest.raises(UserError, match=r"cannot be opened .Is a directory."):
        read_all(tmp_path)
    with pytest.raises(UserError, match=r"compressed by gzip.*gunzip"):
        RecordIndex.open(write_compressed(tmp_path / "x.gz", SHORT))


# --- the index --------------------------------------------------------------------------------------------------------


def forbid_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(path: pathlib.Path) -> RecordIndex:
        raise AssertionError(f"{path} is scanned")

    monkeypatch.setattr(RecordIndex, "scan", scan)


def test_records_are_read_by_number(tmp_path: pathlib.Path) -> None:
    index = RecordIndex.open(write(tmp_path / "x", RECORDS))
    assert len(index) == len(RECORDS) and index.offsets.tolist() == offsets_of(RECORDS)
    assert index.offsets.dtype == np.int64
    for first in range(len(RECORDS) + 1):
        for count in range(len(RECORDS) + 1 - first):
            assert index.read(first, count) == RECORDS[first : first + count]
    for first, count in ((-1, 1), (5, 1), (0, 6), (2, -1)):
        with pytest.raises(IndexError):
            index.read(first, count)


def test_an_empty_file_has_no_records(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x", [])
    for _ in range(2):  # scanned, then kept
        index = RecordIndex.open(path)
        assert len(index) == 0 and index.read(0, 0) == [] and index.offsets.tolist() == [0]


@pytest.mark.parametrize("folder", [None, "elsewhere/deep"])
def test_the_index_is_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, folder: str | None) -> None:
    path = write(tmp_path / "x", RECORDS)
    place = folder and tmp_path / folder
    first = RecordIndex.open(path, place)
    forbid_scans(monkeypatch)
    second = RecordIndex.open(path, place)
    np.testing.assert_array_equal(first.offsets, second.offsets)
    assert second.digest == first.digest and second.read(3) == [RECORDS[3]]
    kept = list((tmp_path / (folder or "tfrecord_index")).iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".npy"
    assert not list(tmp_path.glob("*.tfrecord*"))


def test_the_index_is_made_anew_where_the_file_has_changed(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x", RECORDS)
    RecordIndex.open(path)
    status = path.stat()
    write(path, RECORDS[::-1])  # of the same size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert RecordIndex.open(path).read(0) == [RECORDS[-1]]
    write(path, RECORDS[:2])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # of the same time
    assert len(RecordIndex.open(path)) == 2


def test_a_damaged_index_is_made_anew(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x", RECORDS)
    expected = RecordIndex.open(path)
    (kept,) = (tmp_path / "tfrecord_index").iterdir()
    whole = kept.read_bytes()
    damaged = [b"", whole[:50], whole[:-8], b"text"]
    damaged += [whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    for data in damaged:
        kept.write_bytes(data)
        found = RecordIndex.open(path)
        assert found.offsets.tolist() == expected.offsets.tolist() and found.digest == expected.digest


def test_files_of_one_name_keep_their_indices_apart(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for name, records in (("a", RECORDS), ("b", SHORT)):
        (tmp_path / name).mkdir()
        paths.append(write(tmp_path / name / "x", records))
        RecordIndex.open(paths[-1], tmp_path / "kept")
    forbid_scans(monkeypatch)
    assert [len(RecordIndex.open(path, tmp_path / "kept")) for path in paths] == [len(RECORDS), len(SHORT)]


def test_where_the_index_cannot_be_kept_the_log_says_so(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x", RECORDS)
    (tmp_path / "file").write_text("")
    assert len(RecordIndex.open(path, tmp_path / "file" / "below")) == len(RECORDS)
    assert "is scanned at every start" in caplog.text


def test_the_digest_is_of_the_records_and_of_nothing_else(tmp_path: pathlib.Path) -> None:
    digest = RecordIndex.open(write(tmp_path / "x", RECORDS)).digest
    assert re.fullmatch("[0-9a-f]{32}", digest)
    (tmp_path / "other").mkdir()
    assert RecordIndex.open(write(tmp_path / "other" / "y", RECORDS)).digest == digest
    others = [RECORDS[::-1], RECORDS[:-1], [*RECORDS, b""], [*RECORDS[:-1], b"Last"]]
    digests = {RecordIndex.scan(write(tmp_path / "z", records)).digest for records in others}
    assert len(digests | {digest}) == 5


def test_what_changes_behind_the_index_is_noticed_when_it_is_read(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "x", RECORDS)
    index = RecordIndex.open(path)
    write(path, SHORT)
    with pytest.raises(UserError, match="record 2 at byte 33"):
        index.read(2)
    path.unlink()
    with pytest.raises(UserError, match="cannot be opened"):
        index.read(0)


# --- TensorFlow -------------------------------------------------------------------------------------------------------

THEIRS = """
import json, pathlib, sys
import tensorflow as tf

folder = pathlib.Path(sys.argv[1])
records = [bytes.fromhex(record) for record in json.loads((folder / "records.json").read_text())]
for compression in ("", "GZIP"):
    with tf.io.TFRecordWriter(str(folder / f"theirs{compression}"), tf.io.TFRecordOptions(compression)) as writer:
        for record in records:
            writer.write(record)
read = {
    compression: [r.numpy().hex() for r in tf.data.TFRecordDataset(str(folder / f"ours{compression}"), compression)]
    for compression in ("", "GZIP")
}
(folder / "read.json").write_text(json.dumps(read))
"""


def test_tensorflow_reads_and_writes_the_same_files(tmp_path: pathlib.Path) -> None:
    python = transformers4("tensorflow")
    (tmp_path / "records.json").write_text(json.dumps([record.hex() for record in RECORDS]))
    write(tmp_path / "ours", RECORDS)
    write_compressed(tmp_path / "oursGZIP", RECORDS)
    done = subprocess.run([python, "-c", THEIRS, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = json.loads((tmp_path / "read.json").read_text())
    assert read == {compression: [record.hex() for record in RECORDS] for compression in ("", "GZIP")}
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()
    for name in ("theirs", "theirsGZIP"):
        assert list(read_records(tmp_path / name)) == RECORDS
    index = RecordIndex.open(tmp_path / "theirs")
    assert index.read(0, len(index)) == RECORDS
