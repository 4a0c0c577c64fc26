# SPDX-License-Identifier: Apache-2.0
"""Reading a data set of tokenised sentences, as `python -m pretrain_data build` writes it."""

import functools
import json
import pathlib
import tokenize
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from albert_jax.data.shards import Shards
from albert_jax.errors import UserError

FORMAT = 2


def read_manifest(path: str | pathlib.Path) -> dict[str, Any]:
    """The manifest of the data set at `path`.

    Raises:
      UserError: where there is no data set, or one of another format.
    """
    file = pathlib.Path(path) / "manifest.json"
    if not str(path):
        raise UserError("no data set is named; give one with --config.data.path=DIRECTORY.")
    if not file.is_file():
        raise UserError(f"{path} holds no data set (no manifest.json); make one with `python -m pretrain_data build`.")
    return parse_manifest(file.read_bytes(), file)


def parse_manifest(text: str | bytes, file: object) -> dict[str, Any]:
    """What a manifest says.

    Args:
      text: of the file.
      file: its name, for the message.

    Raises:
      UserError: where it is no manifest, or one of another format.
    """
    try:
        manifest = json.loads(text)
    except ValueError as e:
        raise UserError(f"{file} is not valid JSON ({e}); build the data set again.") from e
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{file} has format {found!r}, not {FORMAT}; build the data set again.")
    values: dict[str, Any] = manifest
    return values


def map_array(file: pathlib.Path) -> np.ndarray:
    """The array of an .npy file, mapped and not read.

    Raises:
      ValueError: where the file is damaged; np.load itself raises five kinds of exception.
      OSError: where it cannot be opened.
    """
    try:
        return np.asarray(np.load(file, mmap_mode="r"))  # a plain array over the mapping, which is faster to index
    except (EOFError, SyntaxError, tokenize.TokenError) as e:
        raise ValueError(f"not an .npy file: {e}") from e


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


class TextStore:
    """One split of a data set: its sources one after the other, of which each is documents, of which each is records.

    A record is a run of sentences that is read at once; the records of a document follow each other, and so do the
    tokens of its sentences. Positions of tokens are counted through the whole split.

    Args:
      path: the data set's directory.
      split: 'train' or 'validation'.

    Attributes:
      fingerprint: digest of all tokens and sentence boundaries in order.
      sentence_lengths: uint16 [sentences], tokens in each sentence of the split, in order.
      sentences_per_record: int32 [records].
      records_per_document: int32 [documents].
      continued_sentences: int64, ascending, the sentences that go on where one too long for a record was cut.
      unigrams: int64 [V], how often each id occurs in the split.
      sources: name -> how many records of the split it has, in order, without those that have none.
      weights: name -> how often a source is to be seen in an epoch of training, as the data set was built.

    Raises:
      UserError: where the split or a file of it is missing, or its files do not belong together.
    """

    def __init__(self, path: str | pathlib.Path, split: str):
        self.path, self.split = pathlib.Path(path), split
        manifest = read_manifest(path)
        if split not in manifest["splits"]:
            raise UserError(f"the data set {path} has no split {split!r}, only {', '.join(manifest['splits'])}.")
        counts = manifest["splits"][split]
        self.fingerprint: str = counts["fingerprint"]
        self.sentence_lengths = self._index("sentence_lengths")
        self.sentences_per_record = self._index("sentences_per_record")
        self.records_per_document = self._index("records_per_document")
        self.continued_sentences = self._index("continued_sentences")
        self.unigrams = self._index("unigrams")
        sources = {name: int(source["records"]) for name, source in counts.get("sources", {}).items()}
        self.sources = {name: records for name, records in sources.items() if records} or {"text": counts["records"]}
        given = {source.get("name"): source.get("weight", 1.0) for source in manifest.get("sources", [])}
        self.weights: dict[str, float] = {name: given.get(name, 1.0) for name in self.sources}
        self._shards, self._dtype = self._open()
        self._check_counts(counts)

    def _open(self) -> tuple[Shards, np.dtype]:
        """The records' serialised bytes, by position, and the type of their token ids."""
        try:
            builder = tfds.builder_from_directory(str(self.path))
            info = builder.info.splits[self.split]
            shards = dict(zip(map(str, info.filepaths), info.shard_lengths, strict=True))
            dtype = np.dtype(builder.info.features["tokens"].np_dtype)
        except Exception as e:  # TFDS, protobuf and json each raise their own
            raise self._unopened(e) from e
        for shard in shards:  # else found at the first read
            if not pathlib.Path(shard).is_file():
                raise self._damaged(shard, "it is missing")
        return Shards(shards), dtype

    def _unopened(self, e: Exception) -> UserError:
        return UserError(f"the data set {self.path} cannot be opened ({_first_line(e)}); build the data set again.")

    def _damaged(self, shard: str, how: str) -> UserError:
        return UserError(
            f"the shard {shard} of the data set is damaged ({how}); `python -m pretrain_data repair {self.path}` "
            "rebuilds it from its sources."
        )

    def _check_counts(self, manifest: dict[str, Any]) -> None:
        """Compares shards and index with each other and with the manifest."""
        per_record, per_document = self.sentences_per_record, self.records_per_document
        counts = {
            "records": (len(self._shards), len(per_record), int(per_document.sum(dtype=np.int64))),
            "documents": (len(per_document),),
            "sentences": (int(per_record.sum(dtype=np.int64)), len(self.sentence_lengths)),
            "tokens": (int(self.unigrams.sum()), int(self.sentence_lengths.sum(dtype=np.int64))),
        }
        for name, found in counts.items():
            every = [*found, manifest[name]]
            if len(set(every)) > 1:
                raise UserError(
                    f"the files of the data set {self.path} do not belong together (its {self.split} split has "
                    f"{', '.join(map(str, every[:-1]))} or {every[-1]} {name}); build the data set again."
                )
        ends = np.cumsum(list(self.sources.values()))
        if ends[-1] != len(per_record) or not np.isin(ends, self.document_records).all():
            raise UserError(
                f"the files of the data set {self.path} do not belong together (the sources of its {self.split} split "
                f"have {self.sources} records, of {len(per_record)}); build the data set again."
            )

    def _index(self, name: str) -> np.ndarray:
        file = self.path / "index" / f"{self.split}.{name}.npy"
        try:
            return map_array(file)
        except (OSError, ValueError) as e:
            raise UserError(f"the data set's index {file} cannot be read ({e}); build the data set again.") from e

    @functools.cached_property
    def record_sentences(self) -> np.ndarray:
        """int64 [records + 1], the sentence with which each record begins, then the number of sentences."""
        return bounds(self.sentences_per_record)

    @functools.cached_property
    def document_records(self) -> np.ndarray:
        """int64 [documents + 1], the record with which each document begins, then the number of records."""
        return bounds(self.records_per_document)

    @functools.cached_property
    def record_begins(self) -> np.ndarray:
        """int64 [records + 1], the token with which each record begins, then the number of tokens."""
        if not len(self.sentences_per_record):
            return np.zeros(1, np.int64)
        return bounds(np.add.reduceat(self.sentence_lengths, self.record_sentences[:-1], dtype=np.int64))

    @functools.cached_property
    def document_begins(self) -> np.ndarray:
        """int64 [documents + 1], the token with which each document begins, then the number of tokens."""
        return self.record_begins[self.document_records]

    @functools.cached_property
    def document_sentences(self) -> np.ndarray:
        """int64 [documents + 1], the sentence with which each document begins, then the number of sentences."""
        return self.record_sentences[self.document_records]

    def sentence_begins(self, sentences: np.ndarray) -> np.ndarray:
        """int64 [K], the tokens with which K sentences, int64 [K] ordinals in the split, begin."""
        records = np.searchsorted(self.record_sentences, sentences, side="right") - 1
        before = sentences - self.record_sentences[records]
        lengths = self.sentence_lengths[ranges(self.record_sentences[records], before)]
        sums = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        ends = np.cumsum(before)
        return self.record_begins[records] + sums[ends] - sums[ends - before]

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads records.

        Args:
          records: int [K], positions in the split.

        Returns:
          int32 [T], the tokens of the records one after the other, and int64 [K + 1], where each begins.

        Raises:
          UserError: where a shard is damaged or is not the one that the index was made from.
        """
        try:
            tokens = self._tokens(records)
        except UserError:
            raise
        except Exception as e:  # array_record raises RuntimeError or ValueError, protobuf its own
            raise self._damaged(self._shards.file_of(self._first_unreadable(records)), _first_line(e)) from e
        offsets = bounds([len(t) for t in tokens])
        wrong = np.flatnonzero(np.diff(offsets) != self.record_begins[records + 1] - self.record_begins[records])
        if wrong.size:
            shard = self._shards.file_of(int(records[wrong[0]]))
            raise self._damaged(shard, "its records are not as long as the index says")
        return np.concatenate(tokens).astype(np.int32) if tokens else np.zeros(0, np.int32), offsets

    def _tokens(self, records: np.ndarray) -> list[np.ndarray]:
        # Only the tokens are decoded, and here: TFDS's decoding of all four features takes four times as long.
        parse = tf_example_pb2.Example.FromString
        ids = [
            parse(record).features.feature["tokens"].bytes_list.value[0]
            for record in self._shards.read(np.asarray(records))
        ]
        return [np.frombuffer(i, self._dtype) for i in ids]

    def _first_unreadable(self, records: np.ndarray) -> int:
        """The first of some records that cannot be read by itself; the first of all, where each can."""
        for record in records:
            try:
                self._tokens(np.array([record]))
            except Exception:
                return int(record)
        return int(records[0])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers start, ..., start + length - 1 of each pair, one run after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def bounds(counts: Any) -> np.ndarray:
    """int64 [N + 1]: where each of N consecutive runs begins, then where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
