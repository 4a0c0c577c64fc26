# SPDX-License-Identifier: Apache-2.0
"""Google's baked examples: read as a stream, compared with an obvious reader, and written from one."""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from albert_jax.config import AlbertConfig
from albert_jax.data import baked
from albert_jax.data.baked import BakedStream, find_files
from albert_jax.data.google_words import google_starts_word
from albert_jax.data.loader import Loader
from albert_jax.data.masking import MaskRule
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.rows import IGNORED, Batch
from albert_jax.data.stream import PretrainingStream, Stream
from albert_jax.data.tfrecords import read_records, write_record
from albert_jax.errors import UserError
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import make_mesh, place_batch
from albert_jax.training.step import MEASURES, initial_parameters, initial_state, make_train_step, place_parts
from pretrain_data.tfrecords import write_tfrecords
from tests.peers import transformers4
from tests.text_store import FIRST, MemoryStore, made_up_vocabulary, numbered, read_batch

SLOTS, MASKS, VOCABULARY = 16, 4, 200
Features = dict[str, list[int] | list[float]]


# --- records as Google's code makes them ------------------------------------------------------------------------------


def example(number: int, slots: int = SLOTS, masks: int = MASKS) -> Features:
    """A record of [CLS] A [SEP] B [SEP], whose `number` its second and third id tell; some masked, padded with 0."""
    rng = np.random.default_rng(number)
    length = int(rng.integers(8, slots + 1))
    ids = [2, 10 + number // 100, 10 + number % 100, *rng.integers(10, VOCABULARY, length - 4).tolist(), 3]
    middle = int(rng.integers(4, length - 2))
    ids[middle] = 3
    candidates = [p for p in range(3, length - 1) if p != middle]
    positions = sorted(rng.choice(candidates, min(len(candidates), int(rng.integers(1, masks + 1))), False).tolist())
    labels = [ids[p] for p in positions]
    for p in positions:
        ids[p] = 4
    unused = masks - len(positions)
    return {
        "input_ids": ids + [0] * (slots - length),
        "input_mask": [1] * length + [0] * (slots - length),
        "segment_ids": [int(p > middle) for p in range(length)] + [0] * (slots - length),
        "token_boundary": [1] * length + [0] * (slots - length),
        "masked_lm_positions": positions + [0] * unused,
        "masked_lm_ids": labels + [0] * unused,
        "masked_lm_weights": [1.0] * len(positions) + [0.0] * unused,
        "next_sentence_labels": [number % 2],
    }


def serialised(features: Features) -> bytes:
    message = tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        if values and isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend([int(value) for value in values])
    return bytes(message.SerializeToString())


def write(path: pathlib.Path, examples: list[Features]) -> pathlib.Path:
    with open(path, "wb") as file:
        for features in examples:
            write_record(file, serialised(features))
    return path


SIZES = (30, 0, 1, 57)  # records in each file
ALL = sum(SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four files, one of them empty, of records numbered in order; not to be changed."""
    made = tmp_path_factory.mktemp("baked")
    numbers = itertools.count()
    for i, size in enumerate(SIZES):
        write(made / f"x-{i:05d}-of-00004.tfrecord", [example(n) for n in itertools.islice(numbers, size)])
    return made


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 records, mixed by 3: a few records have the structure of billions."""
    monkeypatch.setattr(baked, "BLOCK", 4)
    monkeypatch.setattr(baked, "WINDOW", 3)


def stream_of(files: baked.Files, seed: int = 5, **options: Any) -> BakedStream:
    return BakedStream(files, vocab_size=VOCABULARY, seed=seed, **options)


def numbers_in(batch: Batch) -> list[int]:
    return [int(100 * (a - 10) + b - 10) for a, b in batch.input_ids[:, 1:3]]


def slow_row(f: Features) -> list[list[int]]:
    """The arrays of a row but its id, from the values of a record."""
    used = [i for i, weight in enumerate(f["masked_lm_weights"]) if weight == 1.0]
    assert used == list(range(len(used)))
    length = int(sum(f["input_mask"]))
    unused = len(f["masked_lm_ids"]) - len(used)
    row = [
        f["input_ids"],
        f["segment_ids"],
        [*range(length)] + [0] * (len(f["input_ids"]) - length),
        f["input_mask"],
        [f["masked_lm_positions"][i] for i in used] + [0] * unused,
        [f["masked_lm_ids"][i] for i in used] + [IGNORED] * unused,
        [0],
        f["next_sentence_labels"],
    ]
    return [[int(value) for value in values] for values in row]


def rows_of(batch: Batch) -> list[list[list[int]]]:
    return [[array[r].tolist() for array in batch[:-1]] for r in range(len(batch.row_ids))]


def assert_equal(a: Batch, b: Batch) -> None:
    for name, x, y in zip(Batch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
        assert x.dtype == y.dtype == np.int32


# --- the stream -------------------------------------------------------------------------------------------------------


def test_rows_are_what_an_obvious_reader_gives(folder: pathlib.Path) -> None:
    stream: Stream = stream_of(folder)
    batch = stream.batch(0, ALL)
    assert rows_of(batch) == [slow_row(example(n)) for n in numbers_in(batch)]
    assert all(array.dtype == np.int32 for array in batch)
    for (row,), number in zip(read_batch(batch), numbers_in(batch), strict=True):  # as `Batch` says they must be
        assert row.label == number % 2 and len(row.targets) == sum(example(number)["masked_lm_weights"])


def test_sizes_come_from_the_files(folder: pathlib.Path) -> None:
    stream = stream_of(folder)
    assert (stream.rows, stream.slots, stream.mask_slots, stream.examples_per_row) == (ALL, SLOTS, MASKS, 1.0)
    assert stream.epoch(0) == 0 and stream.epoch(3 * ALL) == 3 and stream.epoch(ALL // 2) == 0.5
    assert re.fullmatch("[0-9a-f]{64}", stream.digest) and re.fullmatch("[0-9a-f]{64}", stream.fingerprint)
    assert stream.describe() == (
        "88 rows of 16 slots, one example each with at most 4 masks, which the files hold (4 TFRecord files, 0.00 GB)"
    )


def test_every_record_is_in_every_epoch_once_each_time_in_another_order(folder: pathlib.Path) -> None:
    stream = stream_of(folder)
    orders = [numbers_in(stream.batch(epoch * ALL, ALL)) for epoch in range(5)]
    orders.append(numbers_in(stream_of(folder, seed=6).batch(0, ALL)))
    assert all(sorted(order) == list(range(ALL)) for order in orders)
    for a, b in itertools.combinations([*orders, list(range(ALL))], 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 12  # of 88; one is expected


def test_records_of_a_file_meet_others_in_every_epoch(folder: pathlib.Path) -> None:
    stream = stream_of(folder)
    for epoch in range(4):
        order = numbers_in(stream.batch(epoch * ALL, ALL))
        together = sum(abs(a - b) == 1 for a, b in itertools.pairwise(order))
        assert together < 30  # of 87; in file order all would be
        for begin in range(0, ALL - 12, 12):  # a window mixes three blocks at least
            assert len({number // 4 for number in order[begin : begin + 12]}) >= 3


def test_a_row_depends_on_its_position_only(folder: pathlib.Path) -> None:
    stream = stream_of(folder)
    whole = stream.batch(0, 3 * ALL)
    rng = np.random.default_rng(0)
    for _ in range(40):
        start = int(rng.integers(0, 2 * ALL))
        count = int(rng.integers(1, ALL))
        assert_equal(stream.batch(start, count), Batch(*(array[start : start + count] for array in whole)))
        assert_equal(stream_of(folder).batch(start, 1), Batch(*(array[start : start + 1] for array in whole)))
    far = 10**6 * ALL + 3
    assert_equal(stream.batch(far, 5), stream_of(folder).batch(far, 5))
    assert stream.batch(2**31 - 2, 4).row_ids.tolist() == [2**31 - 2, 2**31 - 1, 0, 1]


@pytest.mark.parametrize("threads", [1, 8])
def test_an_epoch_reads_each_block_once_and_in_one_piece(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    alone = stream_of(folder).batch(0, ALL)
    stream, spans = stream_of(folder), []

    def counted(path: pathlib.Path, begin: int, end: int, first: int) -> list[bytes]:
        spans.append((path, first))
        return read_span(path, begin, end, first)

    read_span = baked.read_span
    monkeypatch.setattr(baked, "read_span", counted)

    def make(start: int) -> Batch:
        return stream.batch(start, min(5, ALL - start))

    with contextlib.closing(Loader(make, range(0, ALL, 5), ahead=threads)) as loader:
        batches = [batch for _, batch in loader]
    assert_equal(Batch(*map(np.concatenate, zip(*batches, strict=True))), alone)
    assert len(spans) == len(set(spans)) == 8 + 1 + 15


def test_blocks_and_windows_of_the_real_size(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert baked.BLOCK == 128
    total = 128 * 16 * 2 + 77
    for part in range(2):
        write(tmp_path / f"{part}.tfrecord", [example(n, 12, 2) for n in range(part, total, 2)])
    stream = stream_of(tmp_path)
    orders = [numbers_in(stream.batch(epoch * total, total)) for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(total)) and orders[0] != orders[1]
    # A batch of 256 holds records of all 16 blocks that are mixed: of each file, from 8 stretches or so.
    assert len({(n % 2, n // 256) for n in orders[0][:256]}) >= 16


def test_fixed_rows_are_the_files_in_order_and_empty_beyond(folder: pathlib.Path) -> None:
    stream = stream_of(folder)
    expected = [slow_row(example(n)) for n in range(ALL)]
    empty = [[0] * SLOTS] * 4 + [[0] * MASKS, [IGNORED] * MASKS, [0], [IGNORED]]
    for start in (0, 3, 29, 31, 80, ALL, ALL + 5):
        batch = stream.fixed_rows(start, 10)
        assert rows_of(batch) == (expected + [empty] * 20)[start : start + 10]
        assert_equal(batch, stream_of(folder, seed=1).fixed_rows(start, 10))
    assert rows_of(stream.fixed_rows(0, ALL)) == expected


def test_positions_out_of_order_and_weights_with_gaps_are_put_in_order(tmp_path: pathlib.Path) -> None:
    features = example(0)
    features["masked_lm_positions"] = [9, 3, 0, 5]
    features["masked_lm_ids"] = [19, 13, 0, 15]
    features["masked_lm_weights"] = [1.0, 0.0, 0.0, 1.0]
    batch = stream_of(write(tmp_path / "x", [features])).batch(0, 1)
    assert batch.mlm_positions.tolist() == [[5, 9, 0, 0]]
    assert batch.mlm_labels.tolist() == [[15, 19, IGNORED, IGNORED]]


def test_boundaries_and_other_features_may_be_missing_or_more(tmp_path: pathlib.Path) -> None:
    features = example(0)
    del features["token_boundary"]
    other: Features = {**features, "note": [1, 2, 3]}
    batch = stream_of(write(tmp_path / "x", [features, other])).fixed_rows(0, 2)
    assert rows_of(batch) == [slow_row(features)] * 2


def test_records_may_encode_their_numbers_one_by_one(tmp_path: pathlib.Path) -> None:
    """Protocol buffers allow lists unpacked, and a feature's parts in any order; other writers than TensorFlow's do."""

    def unpacked(values: list[int] | list[float]) -> bytes:
        if values and isinstance(values[0], float):
            lists = b"".join(b"\x0d" + np.float32(value).tobytes() for value in values)
            return b"\x12" + varint(len(lists)) + lists
        lists = b"".join(b"\x08" + varint(int(value)) for value in values)
        return b"\x1a" + varint(len(lists)) + lists

    def varint(value: int) -> bytes:
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(content)) + content

    entries = [field(1, field(1, name.encode()) + field(2, unpacked(v))) for name, v in example(7).items()]
    with open(tmp_path / "x", "wb") as file:
        write_record(file, field(1, b"".join(entries)))
    assert rows_of(stream_of(tmp_path / "x").batch(0, 1)) == [slow_row(example(7))]


def test_integers_of_all_lengths_come_back() -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], (40, 6))
    values = signs * (rng.integers(0, 2**62, (40, 6)) >> rng.integers(0, 62, (40, 6)))
    values[0] = [0, IGNORED, -(2**63), 2**63 - 1, 127, 128]
    message = tf_example_pb2.Example()
    for row, numbers in enumerate(values.tolist()):
        message.features.feature[str(row)].int64_list.value.extend(numbers)
    lists = [message.features.feature[str(row)].int64_list.SerializeToString() for row in range(len(values))]
    np.testing.assert_array_equal(baked._integers(lists, 6), values)


def test_unigrams_are_of_the_text_before_masking(folder: pathlib.Path) -> None:
    expected = np.zeros(VOCABULARY, np.int64)
    for n in range(ALL):
        f = example(n)
        ids = dict(enumerate(f["input_ids"]))
        for position, label, weight in zip(
            f["masked_lm_positions"], f["masked_lm_ids"], f["masked_lm_weights"], strict=True
        ):
            if weight:
                ids[int(position)] = label
        for position in range(int(sum(f["input_mask"]))):
            if ids[position] not in (2, 3):
                expected[int(ids[position])] += 1
    stream = stream_of(folder)
    np.testing.assert_array_equal(stream.unigrams, expected)
    assert stream.unigrams.dtype == np.int64


def test_unigrams_of_many_records_are_of_a_sample_from_all_over(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baked, "SAMPLE", 3)
    whole = stream_of(folder).fixed_rows(0, ALL)
    blocks = [*range(4), *range(39, 43), *range(87, 88)]  # the first, the 12th and the 24th of 24 blocks
    real = np.zeros_like(whole.example_ids, dtype=bool)
    real[blocks] = whole.example_ids[blocks] > 0
    sampled = int(real.sum()) - 3 * len(blocks)
    assert int(stream_of(folder).unigrams.sum()) == sampled


# --- identity ---------------------------------------------------------------------------------------------------------


def identity(stream: Stream) -> tuple[str, str]:
    return stream.fingerprint, stream.digest


def test_names_folders_times_and_seeds_are_no_part_of_the_identity(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in folder.glob("*.tfrecord"):
        shutil.copyfile(file, moved / file.name.replace("x-", "other-"))
    stream, other = stream_of(folder), stream_of(moved, index_folder=tmp_path / "kept")
    assert identity(stream) == identity(other) == identity(stream_of(folder, seed=6))
    assert_equal(stream.batch(5, 40), other.batch(5, 40))
    assert (tmp_path / "kept").is_dir() and not (moved / "tfrecord_index").exists()


def test_contents_and_order_are_the_identity(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    files = find_files(folder)
    changed = example(87)
    changed["next_sentence_labels"] = [0]
    last = write(tmp_path / "changed", [*[example(n) for n in range(31, 87)], changed])
    streams = [files, files[::-1], files[:-1], [*files, files[0]], [*files[:-1], last]]
    identities = [identity(stream_of(each)) for each in streams]
    assert len({fingerprint for fingerprint, _ in identities}) == len({digest for _, digest in identities}) == 5


def test_the_layout_is_part_of_the_digest_only(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stream_of(folder)
    monkeypatch.setattr(baked, "WINDOW", 2)
    other = stream_of(folder)
    assert stream.fingerprint == other.fingerprint and stream.digest != other.digest


# --- which files ------------------------------------------------------------------------------------------------------


def test_files_are_a_folder_a_glob_a_file_or_a_list(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    names = [f"x-{i:05d}-of-00004.tfrecord" for i in range(4)]
    stream_of(folder)  # leaves its index there
    assert [file.name for file in find_files(folder)] == names
    assert [file.name for file in find_files(f"{folder}/x-0000[02]-*")] == [names[0], names[2]]
    assert find_files(folder / names[2]) == [folder / names[2]]
    assert find_files([folder / names[2], str(folder / names[0])]) == [folder / names[2], folder / names[0]]
    nothings: list[baked.Files] = [tmp_path, tmp_path / "absent", f"{tmp_path}/*.tfrecord", []]
    for nothing in nothings:
        with pytest.raises(UserError, match="names no TFRecord file"):
            find_files(nothing)


def test_a_folder_that_lacks_a_shard_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for number in (0, 3):
        shutil.copy(folder / f"x-{number:05d}-of-00004.tfrecord", tmp_path)
    with pytest.raises(UserError, match=r"not x-00001-of-00004.tfrecord \(2 of 4 are missing\)"):
        stream_of(tmp_path)
    assert stream_of(f"{tmp_path}/*.tfrecord").rows == 87


# --- what is wrong ----------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"segment_ids": None}, "has 0 int64 values of segment_ids where 16"),
    "longer": ({"input_ids": [2] * 17}, "has 17 int64 values of input_ids where 16"),
    "more masks": ({"masked_lm_ids": [5] * 8}, "has 8 int64 values of masked_lm_ids where 4"),
    "no order": ({"next_sentence_labels": []}, "has 0 int64 values of next_sentence_labels where 1"),
    "whole weights": ({"masked_lm_weights": [1, 1, 0, 0]}, "has 0 float values of masked_lm_weights where 4"),
    "half weights": ({"masked_lm_weights": [1.0, 0.5, 0.0, 0.0]}, r"masked_lm_weights\[1\] = 0.5, which is not 0 or 1"),
    "no number": ({"masked_lm_weights": [1.0, float("nan"), 0.0, 0.0]}, r"masked_lm_weights\[1\] = nan"),
    "vocabulary": ({"input_ids": [2] * 15 + [VOCABULARY]}, r"input_ids\[15\] = 200, which is not a vocabulary of 200"),
    "negative": ({"masked_lm_ids": [5, 5, -1, 0]}, r"masked_lm_ids\[2\] = -1"),
    "huge": ({"masked_lm_ids": [5, 2**40, 0, 0]}, r"masked_lm_ids\[1\] = 1099511627776"),
    "position": ({"masked_lm_positions": [1, 16, 0, 0]}, r"masked_lm_positions\[1\] = 16, which is not the slots"),
    "segment": ({"segment_ids": [2] * 16}, r"segment_ids\[0\] = 2, which is not 0 or 1"),
    "mask": ({"input_mask": [1] * 15 + [3]}, r"input_mask\[15\] = 3"),
    "order": ({"next_sentence_labels": [2]}, r"next_sentence_labels\[0\] = 2, which is not 0 or 1, or -100 for none"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_a_record_unlike_the_first_is_named(tmp_path: pathlib.Path, changes: dict[str, Any], words: str) -> None:
    wrong = {name: values for name, values in (example(6) | changes).items() if values is not None}
    path = write(tmp_path / "x", [*[example(n) for n in range(6)], wrong])
    stream = stream_of(path)
    assert len(stream.fixed_rows(0, 6).row_ids) == 6
    for read in (stream.batch, stream.fixed_rows):
        with pytest.raises(UserError, match=f"^{path}: record 6 .*{words}") as e:
            read(0, 7)
        assert str(e.value).count(". ") == 0 and str(e.value).endswith(".")


@pytest.mark.parametrize("content", [b"text", b"", serialised({"text": [1]}), serialised({"input_ids": [1, 2]})])
def test_other_records_than_googles_are_refused_at_once(tmp_path: pathlib.Path, content: bytes) -> None:
    with open(tmp_path / "x", "wb") as file:
        write_record(file, content)
    with pytest.raises(UserError, match=f"{tmp_path}/x: record 0 .*give files that create_pretraining_data.py wrote"):
        stream_of(tmp_path / "x")


def test_files_without_records_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(UserError, match="hold no record"):
        stream_of([tmp_path / "x", tmp_path / "x"])


def test_damage_is_named_when_it_is_read(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for file in folder.glob("*.tfrecord"):
        shutil.copy(file, tmp_path)
    path = tmp_path / "x-00003-of-00004.tfrecord"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    stream = stream_of(tmp_path)
    with pytest.raises(UserError, match=f"{path}: record 56 at byte .*does not match its checksum"):
        stream.batch(0, ALL)
    path.write_bytes(data[:-3])
    with pytest.raises(UserError, match=f"{path}: record 56 at byte .*cut"):
        stream.batch(0, ALL)
    with pytest.raises(UserError, match=f"{path}: record 56 at byte .*cut"):
        stream_of(tmp_path)


# --- writing ----------------------------------------------------------------------------------------------------------

TEXT = [[(7 * r + 11 * i * i) % 17 + 1 for i in range(r % 6 + 1)] for r in range(40)]
SIZE = FIRST + sum(map(sum, TEXT))


def text_stream(examples: int = 1) -> PretrainingStream:
    """Rows of a text in which every token has an id of its own."""
    store, vocabulary = MemoryStore(numbered(TEXT)), made_up_vocabulary(SIZE)
    settings = PlanSettings(32, examples, 8, 0.15, 0.1)
    plan = make_plan(store, vocabulary.starts_word, settings)
    return PretrainingStream(store, plan, settings, MaskRule.paper(vocabulary), seed=1)


STARTS = np.arange(SIZE) % 7 == 0


def test_what_is_written_is_read_as_the_same_rows(tmp_path: pathlib.Path) -> None:
    stream = text_stream()
    written = write_tfrecords(stream, STARTS, tmp_path / "out" / "x-*.tfrecord", epochs=5, shards=3)
    assert [file.name for file in written.files] == [f"x-{i:05d}-of-00003.tfrecord" for i in range(3)]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [file.name for file in written.files]
    back = BakedStream(tmp_path / "out", vocab_size=SIZE, seed=9)
    expected = stream.batch(0, 5 * stream.rows)
    assert back.rows == 5 * stream.rows == written.records and (back.slots, back.mask_slots) == (32, 8)
    assert back.rows > 256  # more than are written at a time
    in_order = rows_of(expected)
    assert rows_of(back.fixed_rows(0, back.rows)) == [row for shard in range(3) for row in in_order[shard::3]]
    assert sorted(rows_of(back.batch(back.rows, back.rows))) == sorted(in_order)
    assert written.tokens == np.count_nonzero(expected.example_ids)
    assert written.targets == np.count_nonzero(expected.mlm_labels != IGNORED)
    assert written.without_order == np.count_nonzero(expected.sop_labels == IGNORED) > 0
    assert written.bytes == sum(file.stat().st_size for file in written.files)
    assert f"records: {written.records:,}" in written.table() and "-100" in written.table()


def test_records_have_googles_eight_features(tmp_path: pathlib.Path) -> None:
    stream = text_stream()
    (path,) = write_tfrecords(stream, STARTS, tmp_path / "x", epochs=1, shards=1).files
    boundaries = collections.Counter[int]()
    for record, row in zip(read_records(path), read_batch(stream.batch(0, stream.rows)), strict=True):
        features = tf_example_pb2.Example.FromString(record).features.feature
        assert set(features) == set(example(0))
        values = {name: list(feature.int64_list.value) for name, feature in features.items()}
        ids = [2, *row[0].first, 3, *([] if row[0].second is None else [*row[0].second, 3])]
        expected = [int(i in (2, 3) or i % 7 == 0) for i in ids]
        assert values["token_boundary"] == expected + [0] * (32 - len(ids))
        assert values["input_mask"] == [1] * len(ids) + [0] * (32 - len(ids))
        targets = len(row[0].targets)
        assert values["masked_lm_ids"] == [label for _, label, _ in row[0].targets] + [0] * (8 - targets)
        assert list(features["masked_lm_weights"].float_list.value) == [1.0] * targets + [0.0] * (8 - targets)
        assert values["next_sentence_labels"] == [row[0].label]
        boundaries.update(values["token_boundary"])
    assert min(boundaries.values()) > 100


def test_epochs_of_unlike_numbers_of_rows_are_written_whole(tmp_path: pathlib.Path) -> None:
    class Uneven:
        """Epochs of 5, 6, 7, ... rows."""

        rows = 5

        def epoch(self, position: int) -> float:
            epoch = 0
            while position >= self.rows + epoch:
                position -= self.rows + epoch
                epoch += 1
            return epoch + position / (self.rows + epoch)

        def batch(self, start: int, count: int) -> Batch:
            return text_stream().batch(start, count)

    for epochs, records in ((1, 5), (2, 11), (4, 26)):
        written = write_tfrecords(Uneven(), STARTS, tmp_path / f"{epochs}", epochs=epochs, shards=1)  # type: ignore[arg-type]
        assert written.records == records


def test_nothing_is_written_over_or_half_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = text_stream()
    (tmp_path / "x-00001-of-00002").write_text("mine")

    def interrupted(start: int, count: int) -> Batch:
        if start:
            raise KeyboardInterrupt
        return batch(start, count)

    def unasked(start: int, count: int) -> Batch:
        raise AssertionError("hours of work are done before the file is found to exist")

    batch = stream.batch
    monkeypatch.setattr(stream, "batch", unasked)
    with pytest.raises(UserError, match="x-00001-of-00002' exists"):
        write_tfrecords(stream, STARTS, tmp_path / "x-*", epochs=1, shards=2)
    monkeypatch.setattr(stream, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tfrecords(stream, STARTS, tmp_path / "y-*", epochs=10, shards=2)
    assert [file.name for file in tmp_path.iterdir()] == ["x-00001-of-00002"]


@pytest.mark.parametrize(
    ("out", "epochs", "shards", "words"),
    [
        ("x", 1, 2, "must have one [*]"),
        ("x*-*", 1, 2, "one [*]"),
        ("*/x-*", 1, 2, "one [*]"),
        ("x", 0, 1, "at least 1"),
    ],
)
def test_names_and_numbers_that_cannot_be(
    tmp_path: pathlib.Path, out: str, epochs: int, shards: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        write_tfrecords(text_stream(), STARTS, tmp_path / out, epochs=epochs, shards=shards)


def test_more_shards_than_files_may_be_open_are_refused(tmp_path: pathlib.Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        with pytest.raises(UserError, match="200 shards are more than the files"):
            write_tfrecords(text_stream(), STARTS, tmp_path / "x-*", epochs=1, shards=200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_packed_rows_cannot_be_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"rows hold up to 4; set data.examples_per_row to 1"):
        write_tfrecords(text_stream(4), STARTS, tmp_path / "x", epochs=1, shards=1)
    assert not list(tmp_path.iterdir())


def test_words_start_by_googles_rule() -> None:
    expected = {
        **dict.fromkeys(["▁the", "▁", "▁'", "<unk>", "<", "<a", "!", ",", "~", "-", "£", "€"], True),
        **dict.fromkeys(["1", "a1", "é", "naïve", "数", "a数", "'", "'s", "=", ">", "a=b", "–", "...a1"], True),
        **dict.fromkeys(["ing", "ING", "s", "[CLS]", "[SEP]", "[MASK]", "...", "a.", "!a", ")("], False),
        "\u212a": False,  # Kelvin's sign, whose lower case is k
    }
    found = google_starts_word(list(expected))
    assert found.dtype == bool and dict(zip(expected, found.tolist(), strict=True)) == expected


# --- training, and TensorFlow -----------------------------------------------------------------------------------------


def test_a_training_step_on_baked_rows_has_a_finite_loss(folder: pathlib.Path) -> None:
    model = AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=SLOTS,
    )
    config = pretraining(model)
    mesh = make_mesh(1)
    state = initial_state(config, initial_parameters(config), mesh)
    batch = stream_of(folder).batch(0, 8)
    _, outcome = make_train_step(config, mesh)(state, place_batch(batch, mesh), place_parts(1, mesh))
    means = dict(zip(MEASURES, jax.device_get(outcome.means), strict=True))
    # An untrained model guesses.
    assert float(means["loss"]) == pytest.approx(np.log(VOCABULARY) + np.log(2), rel=0.05)
    assert float(means["real_share"]) == pytest.approx(np.mean(batch.example_ids > 0))


THEIRS = """
import json, sys
import tensorflow as tf

files, slots, masks, written = json.loads(sys.argv[1])
spec = {
    "input_ids": tf.io.FixedLenFeature([slots], tf.int64),
    "input_mask": tf.io.FixedLenFeature([slots], tf.int64),
    "segment_ids": tf.io.FixedLenFeature([slots], tf.int64),
    "token_boundary": tf.io.FixedLenFeature([slots], tf.int64),
    "masked_lm_positions": tf.io.FixedLenFeature([masks], tf.int64),
    "masked_lm_ids": tf.io.FixedLenFeature([masks], tf.int64),
    "masked_lm_weights": tf.io.FixedLenFeature([masks], tf.float32),
    "next_sentence_labels": tf.io.FixedLenFeature([1], tf.int64),
}
records = [
    {name: value.numpy().tolist() for name, value in tf.io.parse_single_example(record, spec).items()}
    for record in tf.data.TFRecordDataset(files)
]
with tf.io.TFRecordWriter(written) as writer:
    for record in records:
        features = {
            name: tf.train.Feature(float_list=tf.train.FloatList(value=values))
            if name == "masked_lm_weights"
            else tf.train.Feature(int64_list=tf.train.Int64List(value=values))
            for name, values in record.items()
        }
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
print(json.dumps(records))
"""


@pytest.fixture
def tensorflow() -> Iterator[str]:
    """An interpreter with TensorFlow."""
    yield transformers4("tensorflow")


def test_tensorflow_reads_what_is_written_and_its_records_are_read(tensorflow: str, tmp_path: pathlib.Path) -> None:
    stream = text_stream()
    files = write_tfrecords(stream, STARTS, tmp_path / "x-*", epochs=1, shards=2).files
    theirs = tmp_path / "theirs"
    arguments = json.dumps([[str(file) for file in files], 32, 8, str(theirs)])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [tensorflow, "-c", THEIRS, arguments], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    in_order = rows_of(stream.batch(0, stream.rows))
    assert [slow_row(record) for record in records] == in_order[0::2] + in_order[1::2]
    back = BakedStream(theirs, vocab_size=SIZE, seed=1)
    assert rows_of(back.fixed_rows(0, back.rows)) == in_order[0::2] + in_order[1::2]
