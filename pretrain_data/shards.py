# SPDX-License-Identifier: Apache-2.0
"""Writes and reads back shards: array_record files of `tf.train.Example`, which TFDS opens without TensorFlow.

TFDS's own `GeneratorBasedBuilder` collects a split before it writes the first shard: in memory up to 1 GB, beyond that
in temporary files, which it opens through TensorFlow and, as record numbers are small, sorts in memory as one bucket.
And its bytes differ from run to run, because a protobuf map has no order. The shards here are written while the records
come, in constant memory and to the same bytes every time; `tfds.folder_dataset.write_metadata` makes them a data set.
"""

import errno
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from albert_jax.errors import UserError

NAME = "albert_text"
SPLITS = ("train", "validation")
_READ_BATCH = 512


def token_dtype(vocab_size: int) -> type[np.generic]:
    """uint16 where every id fits, else int32."""
    return np.uint16 if vocab_size <= 65536 else np.int32


def features(vocab_size: int) -> Any:
    """The `tfds.features.FeaturesDict` of a record; ``encoding='bytes'``, or integers become varints."""
    return tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=token_dtype(vocab_size), encoding="bytes"),
            "sentence_lengths": tfds.features.Tensor(shape=(None,), dtype=np.uint16, encoding="bytes"),
            "document": tfds.features.Text(),
            "part": tfds.features.Scalar(np.int32),
        }
    )


def record_digest(tokens: np.ndarray, lengths: np.ndarray) -> bytes:
    """16 bytes of blake2b over a record's content, whatever the type of its numbers."""
    digest = hashlib.blake2b(struct.pack("<I", len(tokens)), digest_size=16)
    digest.update(tokens.astype("<u4").tobytes())
    digest.update(lengths.astype("<u4").tobytes())
    return digest.digest()


@dataclass
class Index:
    """What is known of the records of one split of one part, in their order.

    Attributes:
        sentence_lengths: tokens in each sentence.
        sentences_per_record: for each record.
        records_per_document: for each document.
        continued: sentences that go on where a too long one was cut, by their number in `sentence_lengths`.
        digests: `record_digest` of each record.
        unigrams: int64 [V], how often each id occurs.
        num_bytes: of the serialised records.
    """

    unigrams: np.ndarray
    sentence_lengths: list[np.ndarray] = field(default_factory=list)
    sentences_per_record: list[int] = field(default_factory=list)
    records_per_document: list[int] = field(default_factory=list)
    continued: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_bytes: int = 0
    sentences: int = 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray, part: int) -> None:
        """Adds a record, which is the `part`-th of its document."""
        self.sentence_lengths.append(lengths.astype(np.uint16))
        self.sentences_per_record.append(len(lengths))
        self.sentences += len(lengths)
        if part == 0:
            self.records_per_document.append(0)
        self.records_per_document[-1] += 1
        self.digests.append(record_digest(tokens, lengths))
        self.unigrams += np.bincount(tokens, minlength=len(self.unigrams))

    def arrays(self) -> dict[str, Any]:
        """The arrays that are stored; joined over the parts they are the split's index."""
        return {
            "sentence_lengths": np.concatenate([np.zeros(0, np.uint16), *self.sentence_lengths]),
            "sentences_per_record": np.array(self.sentences_per_record, np.int32),
            "records_per_document": np.array(self.records_per_document, np.int32),
            "continued_sentences": np.array(self.continued, np.int64),
            "digests": np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, 16),
            "unigrams": self.unigrams,
            "num_bytes": np.array(self.num_bytes, np.int64),
        }


class ShardWriter:
    """Writes one shard as its records come; no file is made where none comes.

    Args:
        path: the file.
        vocab_size: V.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self.index = Index(np.zeros(vocab_size, np.int64))
        self._dtype = token_dtype(vocab_size)
        self._writer: Any = None

    def write(self, tokens: np.ndarray, lengths: np.ndarray, document: str, part: int) -> None:
        """Appends a record: token ids [T], tokens per sentence [number of sentences], where they come from."""
        if self._writer is None:
            # One record a chunk: records are read at random.
            self._writer = _told_plainly(ArrayRecordWriter, str(self.path), "group_size:1")
        record = serialised(tokens.astype(self._dtype), lengths, document, part)
        _told_plainly(self._writer.write, record)
        self.index.num_bytes += len(record)
        self.index.add(tokens, lengths, part)

    def close(self) -> None:
        """Closes the shard, if there is one."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            _told_plainly(writer.close)


def serialised(tokens: np.ndarray, lengths: np.ndarray, document: str, part: int) -> bytes:
    """The record as `features` describe it, always in the same bytes."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["tokens"].bytes_list.value.append(tokens.tobytes())
    feature["sentence_lengths"].bytes_list.value.append(lengths.astype(np.uint16).tobytes())
    feature["document"].bytes_list.value.append(document.encode())
    feature["part"].int64_list.value.append(part)
    return bytes(example.SerializeToString(deterministic=True))


def _told_plainly(call: Callable[..., Any], *arguments: object) -> Any:
    """Calls array_record's writer, whose errors are all `RuntimeError`; a full disk becomes the person's business."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise UserError(f"the disk is full ({error}); free some space or give another --out") from error
        raise


def read_back(path: Path, vocab_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields tokens, sentence lengths and part of each record of a shard.

    Raises:
        RuntimeError: array_record finds the file damaged.
    """
    reader = ArrayRecordReader(str(path))
    dtype = token_dtype(vocab_size)
    try:
        for start in range(0, reader.num_records(), _READ_BATCH):
            for record in reader.read(start, min(start + _READ_BATCH, reader.num_records())):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                tokens = np.frombuffer(feature["tokens"].bytes_list.value[0], dtype)
                lengths = np.frombuffer(feature["sentence_lengths"].bytes_list.value[0], np.uint16)
                yield tokens, lengths, feature["part"].int64_list.value[0]
    finally:
        reader.close()


def check(writer: ShardWriter, vocab_size: int) -> None:
    """Reads a closed shard and compares it with what was written.

    Raises:
        RuntimeError: they differ; the disk cannot be trusted.
    """
    if not writer.index.digests:
        return
    found: list[bytes] = []
    for tokens, lengths, _ in read_back(writer.path, vocab_size):
        if not len(lengths) or lengths.min() < 1 or lengths.sum(dtype=np.int64) != len(tokens):
            raise RuntimeError(f"record {len(found)} of {writer.path} breaks the format")
        found.append(record_digest(tokens, lengths))
    if found != writer.index.digests:
        raise RuntimeError(f"{writer.path} does not read back as it was written; check the disk")


def write_metadata(folder: Path, spec: Any, splits: dict[str, tuple[list[int], int]]) -> None:
    """Writes features.json and dataset_info.json, by which `tfds.builder_from_directory(folder)` opens the data set.

    Args:
        folder: where they go; has no shards yet.
        spec: `features`.
        splits: for each the number of records in each shard, and the bytes of all.
    """
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=num_bytes,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=str(folder), dataset_name=NAME, split=split, filetype_suffix="array_record"
            ),
        )
        for split, (lengths, num_bytes) in splits.items()
    ]
    stand_ins = [
        folder / shard_name(split, index, len(lengths))
        for split, (lengths, _) in splits.items()
        for index in range(len(lengths))
    ]
    for path in stand_ins:  # TFDS looks for files of these names, whatever `check_data` says
        path.touch()
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=spec,
        split_infos=infos,
        version="1.0.0",
        description="Tokenized documents in runs of whole sentences, for pretraining ALBERT.",
        check_data=False,
    )
    for path in stand_ins:
        path.unlink()


def shard_name(split: str, index: int, count: int) -> str:
    """TFDS's name of a shard."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{count:05d}"
