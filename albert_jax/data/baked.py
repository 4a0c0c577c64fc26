# SPDX-License-Identifier: Apache-2.0
"""Rows from TFRecord files of Google's create_pretraining_data.py, as a pure function of (files, seed, position).

A record is a tf.train.Example that holds one example, masked when it was written: S slots (`input_ids`, `input_mask`,
`segment_ids`), M mask slots (`masked_lm_positions`, `masked_lm_ids`, `masked_lm_weights`) and `next_sentence_labels`,
which is the sentence order. S and M are read from the first record. `token_boundary` and any other feature are not
read, as nothing is masked here.
"""

import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from albert_jax.data import counter_rng
from albert_jax.data.latest import Latest
from albert_jax.data.rows import IGNORED, Batch, with_empty_rows
from albert_jax.data.tfrecords import RecordIndex, read_span
from albert_jax.errors import UserError

_log = logging.getLogger(__name__)

VERSION = 1  # raise it when a change here changes the order of the rows
BLOCK = 128  # consecutive records that are read at once: 370 kB at S = 512
WINDOW = 16  # blocks whose records are mixed: 2,048 records, 6 MB
KEPT = 8  # windows that are not read again, as several batches are made at once: 48 MB
SAMPLE = 32  # blocks that unigrams are counted in: 4,096 records
_BLOCKS, _RECORDS = range(600, 602)
_SLOT_FEATURES = ("input_ids", "input_mask", "segment_ids")
_MASK_FEATURES = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_ORDER_FEATURE = "next_sentence_labels"
_WEIGHTS = "masked_lm_weights"  # the one feature of floats

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


# --- files ------------------------------------------------------------------------------------------------------------


def find_files(files: Files) -> list[pathlib.Path]:
    """The TFRecord files that a setting means.

    Args:
      files: a list of files, taken in its order; or one file; or a glob; or a folder, of which all files are taken
        whose names hold ".tfrecord". What a glob or a folder gives is sorted by name.

    Raises:
      UserError: where there is none, or a folder has a part of the files "...-00003-of-00010" only.
    """
    if not isinstance(files, str | os.PathLike):
        found = [pathlib.Path(file) for file in files]
    elif pathlib.Path(files).is_dir():
        found = sorted(path for path in pathlib.Path(files).glob("*.tfrecord*") if path.is_file())
        _check_complete(found)
    elif pathlib.Path(files).exists():
        found = [pathlib.Path(files)]
    else:
        found = sorted(pathlib.Path(path) for path in glob.glob(os.fspath(files)))
    if not found:
        raise UserError(
            f"{files} names no TFRecord file; give a folder of *.tfrecord files, a glob or a list of files."
        )
    return found


def _check_complete(found: list[pathlib.Path]) -> None:
    """Raises UserError where one of the files that others count in their names is not there."""
    names = {path.name for path in found}
    for name in sorted(names):
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)(.*)", name):
            before, number, total, after = match.groups()
            expected = {f"{before}-{i:0{len(number)}}-of-{total}{after}" for i in range(int(total))}
            if missing := sorted(expected - names):
                raise UserError(
                    f"{found[0].parent} has {name} but not {missing[0]} ({len(missing)} of {int(total)} are missing); "
                    "copy them too, or give those to be used as a glob."
                )


class _File(NamedTuple):
    """What is kept of a file's index."""

    path: pathlib.Path
    records: int
    block_offsets: np.ndarray  # int64 [blocks + 1], the byte offset of every 128th record, then the file's size
    digest: str


def _open_files(paths: list[pathlib.Path], index_folder: str | os.PathLike[str] | None) -> list[_File]:
    """Indexes the files; the first time each is scanned, which takes about 2 microseconds a record."""
    opened, said = [], time.monotonic()
    for path in paths:
        index = RecordIndex.open(path, index_folder)
        offsets = np.append(index.offsets[:-1:BLOCK], index.offsets[-1])
        opened.append(_File(path, len(index), offsets, index.digest))
        if time.monotonic() - said > 10:
            said = time.monotonic()
            _log.info("%s of %s TFRecord files are indexed.", len(opened), len(paths))
    return opened


# --- records ----------------------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """A record as it stands in a file."""

    content: bytes
    path: pathlib.Path
    number: int

    def error(self, what: str) -> UserError:
        return UserError(f"{self.path}: record {self.number} {what}.")


def _features(record: _Record) -> dict[str, Any]:
    """The lists of numbers of a record's features: messages with `value`."""
    try:
        features = tf_example_pb2.Example.FromString(record.content).features.feature
    except Exception as e:  # protobuf's implementations each raise their own
        raise record.error("is no tf.train.Example; give files that create_pretraining_data.py wrote") from e
    return {name: feature.float_list if name == _WEIGHTS else feature.int64_list for name, feature in features.items()}


def _width(features: dict[str, Any], name: str) -> int:
    return len(features[name].value) if name in features else 0


def _widths(record: _Record) -> dict[str, int]:
    """How many values each feature has in a data set's first record: S, M or 1."""
    features = _features(record)
    widths = {name: _width(features, name) for name in (*_SLOT_FEATURES, *_MASK_FEATURES)}
    slots, mask_slots = widths["input_ids"], widths["masked_lm_positions"]
    if not slots or not mask_slots:
        absent = "input_ids" if not slots else "masked_lm_positions"
        raise record.error(
            f"has no values of {absent} (its features are {', '.join(sorted(features)) or 'none'}); give files that "
            "create_pretraining_data.py wrote with its masks"
        )
    return {
        **dict.fromkeys(_SLOT_FEATURES, slots),
        **dict.fromkeys(_MASK_FEATURES, mask_slots),
        _ORDER_FEATURE: 1,
    }


def _columns(records: list[_Record], widths: dict[str, int]) -> dict[str, np.ndarray]:
    """The features of R records: int64 [R, width] for each, and float32 for the weights.

    Raises:
      UserError: where a feature is missing, of another type, or of another length.
    """
    encoded: dict[str, list[bytes]] = {name: [] for name in widths}
    for record in records:
        features = _features(record)
        for name, width in widths.items():
            if (found := _width(features, name)) != width:
                kind = "float" if name == _WEIGHTS else "int64"
                raise record.error(
                    f"has {found} {kind} values of {name} where {width} are expected, as in the first record of "
                    "the first file; use files of one sequence length and number of masks together"
                )
            encoded[name].append(features[name].SerializeToString())  # packed, whatever the file has
    return {
        name: _floats(lists, widths[name]) if name == _WEIGHTS else _integers(lists, widths[name])
        for name, lists in encoded.items()
    }


def _floats(lists: list[bytes], width: int) -> np.ndarray:
    """float32 [R, width], the values of R encoded FloatLists; they stand at the end."""
    return np.frombuffer(b"".join(encoded[-4 * width :] for encoded in lists), "<f4").reshape(-1, width)


def _integers(lists: list[bytes], width: int) -> np.ndarray:
    """int64 [R, width], the values of R encoded Int64Lists.

    Decoded here, because reading them from the messages, one by one, takes longer and keeps other threads waiting. A
    list is a sequence of varints (seven bits a byte, the lowest first, the eighth bit set on all but the last): the tag
    of the field and the length in bytes, then the values.
    """
    data = np.frombuffer(b"".join(lists), np.uint8)
    ends = np.flatnonzero(data < 128)
    begins = np.concatenate([[0], ends + 1])[: len(ends)]
    values = (data[begins] & 127).astype(np.uint64)
    longer = np.flatnonzero(ends > begins)
    place = 1
    while longer.size:
        values[longer] |= (data[begins[longer] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
        longer, place = longer[ends[longer] > begins[longer] + place], place + 1
    return values.view(np.int64).reshape(len(lists), 2 + width)[:, 2:]


def _check(columns: dict[str, np.ndarray], records: list[_Record], vocab_size: int) -> None:
    """Raises UserError for the first value that a model would misread in silence."""
    allowed = {
        "input_ids": (range(vocab_size), f"a vocabulary of {vocab_size} pieces"),
        "input_mask": (range(2), "0 or 1"),
        "segment_ids": (range(2), "0 or 1"),
        "masked_lm_positions": (range(columns["input_ids"].shape[1]), "the slots of a row"),
        "masked_lm_ids": (range(vocab_size), f"a vocabulary of {vocab_size} pieces"),
        "masked_lm_weights": (range(2), "0 or 1"),
        "next_sentence_labels": (range(2), f"0 or 1, or {IGNORED} for none"),
    }
    for name, (values, words) in allowed.items():
        found = columns[name]
        wrong = (found < values.start) | (found >= values.stop)
        if name == _WEIGHTS:
            wrong |= found != np.rint(found)
        elif name == _ORDER_FEATURE:
            wrong &= found != IGNORED
        if wrong.any():
            row, place = np.argwhere(wrong)[0]
            raise records[row].error(
                f"has {name}[{place}] = {found[row, place]}, which is not {words}; give the vocabulary that the files "
                "were made with, or make them anew"
            )


def _rows(columns: dict[str, np.ndarray], start: int) -> Batch:
    """Features of R checked records as rows of one example each; `start` is the position of the first."""
    count, slots = columns["input_ids"].shape
    mask = columns["input_mask"]
    used = columns["masked_lm_weights"] > 0
    # Google writes ascending positions, then the unused ones; others may not.
    order = np.argsort(np.where(used, columns["masked_lm_positions"], slots), axis=1, kind="stable")
    positions = np.where(used, columns["masked_lm_positions"], 0)
    labels = np.where(used, columns["masked_lm_ids"], IGNORED)
    batch = Batch(
        input_ids=columns["input_ids"],
        token_type_ids=columns["segment_ids"],
        position_ids=np.arange(slots) * mask,
        example_ids=mask,
        mlm_positions=np.take_along_axis(positions, order, 1),
        mlm_labels=np.take_along_axis(labels, order, 1),
        cls_positions=np.zeros((count, 1)),
        sop_labels=columns["next_sentence_labels"],
        row_ids=np.arange(start, start + count) % 2**31,
    )
    return Batch(*(array.astype(np.int32) for array in batch))


# --- the stream -------------------------------------------------------------------------------------------------------


class BakedStream:
    """The endless stream of rows in TFRecord files, one example a row.

    Row n of the stream is the same whatever batch, host or worker asks for it. An epoch is one pass over the records.
    Its order permutes all blocks of 128 consecutive records, takes 16 of them at a time, and permutes the 2,048 records
    of these. So every read is a long one, and what is kept is the 8 latest times 16 blocks (48 MB at S = 512) and four
    integers for each block of the files (0.3 GB for 10**9 records, which are 3 TB).

    It is as good as a permutation of all records for files whose records are shuffled, as Google's are: there, a run of
    consecutive records is a random sample already, and what another epoch needs is that other records come together.
    Of files in order of their text, a batch would hold runs from 16 places. The masks are those that were written: an
    example is masked in as many ways as it was written times (`dupe_factor`), in each epoch the same.

    A host that takes a part of every batch reads all blocks of the 16 or 32 that the part lies in: at S = 512 up to
    12 MB a step more than it uses.

    Args:
      files: see `find_files`. Their order is a part of the stream; their names are not.
      vocab_size: V, of the vocabulary that the files were made with.
      seed: keys the order of the records.
      index_folder: where the files' indices are kept, see `RecordIndex.open`.

    Attributes:
      rows: how many rows an epoch has.
      slots: S.
      mask_slots: M.
      fingerprint: 64 hex digits that identify the records of the files in order: sha256 over each file's number of
        records, and over each record's length and stored CRC32C. The records themselves are compared with their CRC32C
        whenever they are read. Names, folders and times have no part in it.
      packing, digest: 64 hex digits, of the fingerprint and of all that decides which record is in which row, but the
        seed.

    Raises:
      UserError: where a file is missing, damaged or compressed, the first record is none of Google's, or all files are
        empty.
    """

    examples_per_row = 1.0

    def __init__(self, files: Files, *, vocab_size: int, seed: int, index_folder: str | os.PathLike[str] | None = None):
        paths = find_files(files)
        self._files = _open_files(paths, index_folder)
        self.vocab_size, self.seed = vocab_size, seed
        self.rows = sum(file.records for file in self._files)
        self.source_rows = {"all": self.rows}  # which source a record is of, it does not say
        if not self.rows:
            raise UserError(f"the TFRecord files hold no record ({paths[0]} and {len(paths) - 1} more); give others.")
        # Blocks do not cross files, so the last one of each file may be shorter.
        self._sizes = np.concatenate(
            [np.diff(np.append(np.arange(0, f.records, BLOCK), f.records)) for f in self._files]
        )
        self._block_rows = np.concatenate([[0], np.cumsum(self._sizes)])  # int64 [blocks + 1], in order of the files
        self._file_blocks = np.cumsum([0] + [len(f.block_offsets) - 1 for f in self._files])
        self._widths = _widths(self._block(0)[0])
        self.slots, self.mask_slots = self._widths["input_ids"], self._widths["masked_lm_ids"]
        contents = [[file.records, file.digest] for file in self._files]
        self.fingerprint = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
        layout = [VERSION, self.fingerprint, BLOCK, WINDOW, self.slots, self.mask_slots]
        self.packing = self.digest = hashlib.sha256(json.dumps(layout).encode()).hexdigest()
        self._epoch_order = Latest(self._make_epoch_order)
        self._window_records = Latest(self._read_window, KEPT)

    def describe(self) -> str:
        """One line for the log: sizes."""
        size = sum(int(file.block_offsets[-1]) for file in self._files)
        return (
            f"{self.rows:,} rows of {self.slots} slots, one example each with at most {self.mask_slots} masks, which "
            f"the files hold ({len(self._files):,} TFRecord files, {size / 1e9:,.2f} GB)"
        )

    def epoch(self, position: int) -> float:
        """How many passes over the records `position` rows are."""
        return position / self.rows

    def _block(self, block: int) -> list[_Record]:
        """The records of a block, in the file's order."""
        of = int(np.searchsorted(self._file_blocks, block, side="right")) - 1
        file, within = self._files[of], block - int(self._file_blocks[of])
        begin, end = (int(offset) for offset in file.block_offsets[within : within + 2])
        contents = read_span(file.path, begin, end, within * BLOCK)
        if len(contents) != self._sizes[block]:
            raise UserError(f"{file.path} has changed since it was opened; start again once it is whole.")
        return [_Record(content, file.path, within * BLOCK + i) for i, content in enumerate(contents)]

    def _make_epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in the order of an epoch, and the row with which each window of 16 begins, int64."""
        random = counter_rng.bits(self.seed, _BLOCKS, epoch, np.arange(len(self._sizes)))
        blocks = np.argsort(random, kind="stable")
        windows = np.add.reduceat(self._sizes[blocks], np.arange(0, len(blocks), WINDOW))
        return blocks, np.concatenate([[0], np.cumsum(windows)])

    def _read_window(self, epoch: int, window: int) -> list[_Record]:
        """The records of 16 blocks in the order of an epoch."""
        blocks = self._epoch_order(epoch)[0][window * WINDOW : (window + 1) * WINDOW]
        unordered = [record for block in blocks for record in self._block(int(block))]
        rows = np.concatenate([np.arange(self._block_rows[b], self._block_rows[b + 1]) for b in blocks])
        order = np.argsort(counter_rng.bits(self.seed, _RECORDS, epoch, rows), kind="stable")
        return [unordered[i] for i in order]

    def batch(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the stream.

        Raises:
          UserError: where a file is damaged or gone, or a record is not like the first one.
        """
        return self._decode(self._records_at(start, count), start)

    def examples(self, start: int, count: int) -> list[int | str]:
        """The file and the number of each record in it."""
        return [f"{record.path}:{record.number}" for record in self._records_at(start, count)]

    def _records_at(self, start: int, count: int) -> list[_Record]:
        records: list[_Record] = []
        while len(records) < count:
            epoch, row = divmod(start + len(records), self.rows)
            begins = self._epoch_order(epoch)[1]
            window = int(np.searchsorted(begins, row, side="right")) - 1
            first = row - int(begins[window])
            records += self._window_records(epoch, window)[first : first + count - len(records)]
        return records

    def fixed_rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the files in order; rows past their end are empty, without any target."""
        records: list[_Record] = []
        real = max(0, min(count, self.rows - start))
        while len(records) < real:
            row = start + len(records)
            block = int(np.searchsorted(self._block_rows, row, side="right")) - 1
            first = row - int(self._block_rows[block])
            records += self._block(block)[first : first + real - len(records)]
        return with_empty_rows(self._decode(records, start), count)

    def _decode(self, records: list[_Record], start: int) -> Batch:
        columns = _columns(records, self._widths)
        _check(columns, records, self.vocab_size)
        return _rows(columns, start)

    @functools.cached_property
    def unigrams(self) -> np.ndarray:
        """How often each id occurs in a sample of the records before masking, int64 [V].

        The sample is 32 blocks of 128 records at even distances, or all records where there are fewer. What was masked
        is counted as what it was. [CLS] and both [SEP] of each example are not counted, as they are never predicted.
        """
        counts = np.zeros(self.vocab_size, np.int64)
        for block in np.unique(np.linspace(0, len(self._sizes) - 1, SAMPLE).astype(np.int64)):
            batch = self._decode(self._block(int(block)), 0)
            ids, real = batch.input_ids, batch.example_ids > 0
            row, nth = np.nonzero(batch.mlm_labels != IGNORED)
            ids[row, batch.mlm_positions[row, nth]] = batch.mlm_labels[row, nth]
            for segment in (0, 1):
                inside = real & (batch.token_type_ids == segment)
                last = inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)
                some = np.flatnonzero(inside.any(axis=1))
                real[some, last[some]] = False
            real[:, 0] = False
            counts += np.bincount(ids[real], minlength=self.vocab_size)
        return counts
