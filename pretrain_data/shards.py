# SPDX-License-Identifier: Apache-2.0
"""Writes and reads back the data set: a TFDS data set in array_record format that needs no TensorFlow.

TFDS's own `GeneratorBasedBuilder` collects a split before it writes the first shard: in memory up to 1 GB, beyond that
in temporary files, which it opens through TensorFlow and, as record numbers are small, sorts in memory as one bucket.
The shards here are written while the records come, in constant memory, by the public parts beneath it:
`FeaturesDict.serialize_example`, array_record's writer, `tfds.folder_dataset.write_metadata`.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from albert_jax.errors import UserError

NAME = "albert_text"
SPLITS = ("train", "validation")
# A shard is closed when it holds as much. Small enough to move and to read in parallel, large enough that 16 GB of text
# is one to two hundred files.
SHARD_BYTES = 64 * 2**20
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


class Fingerprint:
    """sha256 over tokens, then sentence lengths, of each record in store order, as little-endian uint32."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, tokens: Any, lengths: Any) -> None:
        """Adds a record."""
        self._digest.update(np.asarray(tokens).astype("<u4").tobytes())
        self._digest.update(np.asarray(lengths).astype("<u4").tobytes())

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._digest.hexdigest()


class SplitWriter:
    """Writes the shards of one split as records come; their names get the number of shards at the end.

    Args:
        folder: where the shards go.
        split: "train" or "validation".
        spec: `features`.
    """

    def __init__(self, folder: Path, split: str, spec: Any) -> None:
        self._template = tfds.core.ShardedFileTemplate(
            data_dir=str(folder), dataset_name=NAME, split=split, filetype_suffix="array_record"
        )
        self._folder, self._split, self._spec = folder, split, spec
        self._writer: Any = None
        self._paths: list[Path] = []
        self._shard_lengths: list[int] = []
        self._open_bytes = self._bytes = 0
        self.fingerprint = Fingerprint()

    def write(self, tokens: np.ndarray, lengths: np.ndarray, document: str, part: int) -> None:
        """Appends a record: token ids [T], tokens per sentence [number of sentences], where they come from."""
        if self._writer is None:
            self._paths.append(self._folder / f"{NAME}-{self._split}.{len(self._paths)}.open")
            # One record a chunk: records are read at random.
            self._writer = ArrayRecordWriter(str(self._paths[-1]), "group_size:1")
            self._shard_lengths.append(0)
            self._open_bytes = 0
        example = {"tokens": tokens, "sentence_lengths": lengths, "document": document, "part": part}
        record = self._spec.serialize_example(example)
        _told_plainly(self._writer.write, record)
        self.fingerprint.add(tokens, lengths)
        self._shard_lengths[-1] += 1
        self._open_bytes += len(record)
        self._bytes += len(record)
        if self._open_bytes >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Closes the open shard, if there is one."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            _told_plainly(writer.close)

    def finish(self) -> Any:
        """Closes, gives the shards their names and returns the `tfds.core.SplitInfo`."""
        self.close()
        for index, path in enumerate(self._paths):
            os.replace(path, str(self._template.sharded_filepath(shard_index=index, num_shards=len(self._paths))))
        return tfds.core.SplitInfo(
            name=self._split, shard_lengths=self._shard_lengths, num_bytes=self._bytes, filename_template=self._template
        )


def _told_plainly(call: Callable[..., object], *arguments: object) -> None:
    """Calls array_record's writer, whose errors are all `RuntimeError`; a full disk becomes the person's business."""
    try:
        call(*arguments)
    except RuntimeError as error:
        if "No space left" in str(error) or "quota" in str(error):
            raise UserError(f"the disk is full ({error}); free some space or give another --out") from error
        raise


def write_metadata(folder: Path, spec: Any, infos: list[Any]) -> None:
    """Writes features.json and dataset_info.json, by which `tfds.builder_from_directory(folder)` opens the data set."""
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=spec,
        split_infos=infos,
        version="1.0.0",
        description="Tokenized documents in runs of whole sentences, for pretraining ALBERT.",
        check_data=False,
    )


def read_back(folder: Path, vocab_size: int) -> dict[str, dict[str, Any]]:
    """Reads the finished shards through TFDS, writes ``index/*.npy`` and returns what each split holds.

    Returns:
        For each split: records, documents, sentences, tokens, unknown_tokens, fingerprint.

    Raises:
        RuntimeError: a record breaks the format; the data set must not be used.
    """
    builder = tfds.builder_from_directory(str(folder))
    (folder / "index").mkdir()
    return {split: _read_split(builder, split, folder / "index", vocab_size) for split in SPLITS}


def _read_split(builder: Any, split: str, index: Path, vocab_size: int) -> dict[str, Any]:
    source = builder.as_data_source(split=split)
    unigrams = np.zeros(vocab_size, np.int64)
    all_lengths: list[np.ndarray] = []
    per_record = np.zeros(len(source), np.int32)
    fingerprint = Fingerprint()
    firsts: list[int] = []  # the record with which each document begins
    for start in range(0, len(source), _READ_BATCH):
        rows = list(range(start, min(start + _READ_BATCH, len(source))))
        for row, record in zip(rows, source.__getitems__(rows), strict=True):
            tokens, lengths = record["tokens"], record["sentence_lengths"]
            if (
                not len(lengths)
                or lengths.min() < 1
                or lengths.sum(dtype=np.int64) != len(tokens)
                or tokens.max() >= vocab_size
            ):
                raise RuntimeError(f"record {row} of {split} in {index.parent} does not read back as it was written")
            fingerprint.add(tokens, lengths)
            unigrams += np.bincount(tokens, minlength=vocab_size)
            all_lengths.append(lengths)
            per_record[row] = len(lengths)
            if int(record["part"]) == 0:
                firsts.append(row)
    lengths = np.concatenate(all_lengths).astype(np.uint16)
    np.save(index / f"{split}.sentence_lengths.npy", lengths)
    np.save(index / f"{split}.sentences_per_record.npy", per_record)
    np.save(index / f"{split}.records_per_document.npy", np.diff([*firsts, len(source)]).astype(np.int32))
    np.save(index / f"{split}.unigrams.npy", unigrams)
    return {
        "records": len(source),
        "documents": len(firsts),
        "sentences": len(lengths),
        "tokens": int(unigrams.sum()),
        "unknown_tokens": int(unigrams[1]),
        "fingerprint": fingerprint.hexdigest(),
    }
