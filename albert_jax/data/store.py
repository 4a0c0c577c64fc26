# SPDX-License-Identifier: Apache-2.0
"""Reading a data set of tokenised sentences, as `python -m pretrain_data build` writes it."""

import json
import pathlib
import tokenize
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

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
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{file} is not valid JSON ({e}); build the data set again.") from e
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{file} has format {found!r}, not {FORMAT}; build the data set again.")
    return manifest


def map_array(file: pathlib.Path) -> np.ndarray:
    """The array of an .npy file, mapped and not read.

    Raises:
      ValueError: where the file is damaged; np.load itself raises five kinds of exception.
      OSError: where it cannot be opened.
    """
    try:
        return np.load(file, mmap_mode="r")
    except (EOFError, SyntaxError, tokenize.TokenError) as e:
        raise ValueError(f"not an .npy file: {e}") from e


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


class TextStore:
    """One split of a data set: records of consecutive sentences, in a fixed order.

    Args:
      path: the data set's directory.
      split: 'train' or 'validation'.

    Attributes:
      fingerprint: digest of all tokens and sentence boundaries in order.
      sentence_lengths: uint16 [sentences], tokens in each sentence of the split, in order.
      sentences_per_record: int32 [records].
      records_per_document: int32 [documents].
      unigrams: int64 [V], how often each id occurs in the split.

    Raises:
      UserError: where the split or a file of it is missing, or its files do not belong together.
    """

    def __init__(self, path: str | pathlib.Path, split: str):
        self.path, self.split = pathlib.Path(path), split
        manifest = read_manifest(path)
        if split not in manifest["splits"]:
            raise UserError(f"the data set {path} has no split {split!r}, only {', '.join(manifest['splits'])}.")
        self.fingerprint: str = manifest["splits"][split]["fingerprint"]
        self.sentence_lengths = self._index("sentence_lengths")
        self.sentences_per_record = self._index("sentences_per_record")
        self.records_per_document = self._index("records_per_document")
        self.unigrams = self._index("unigrams")
        self._source, self._dtype = self._open()
        self._check_counts(manifest["splits"][split])
        firsts = np.cumsum(self.sentences_per_record, dtype=np.int64) - self.sentences_per_record
        self._record_tokens = np.add.reduceat(self.sentence_lengths, firsts, dtype=np.int64)

    def _open(self) -> tuple[Any, np.dtype]:
        """The records' serialised bytes, by position, and the type of their token ids."""
        try:
            builder = tfds.builder_from_directory(str(self.path))
            for shard in builder.info.splits[self.split].filepaths:  # TFDS would find a missing one at the first read
                if not pathlib.Path(shard).is_file():
                    raise FileNotFoundError(f"{shard} is missing")
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            source = builder.as_data_source(split=self.split, deserialize_method=raw)
            return source, np.dtype(builder.info.features["tokens"].np_dtype)
        except Exception as e:  # TFDS, protobuf and json each raise their own
            raise UserError(
                f"the data set {self.path} cannot be opened ({_first_line(e)}); build the data set again."
            ) from e

    def _check_counts(self, manifest: dict[str, Any]) -> None:
        """Compares shards and index with each other and with the manifest."""
        counts = {
            "records": (len(self._source), len(self.sentences_per_record)),
            "sentences": (int(self.sentences_per_record.sum(dtype=np.int64)), len(self.sentence_lengths)),
            "documents": (len(self.records_per_document), len(self.records_per_document)),
            "tokens": (int(self.unigrams.sum()), int(self.sentence_lengths.sum(dtype=np.int64))),
        }
        for name, found in counts.items():
            if len({*found, manifest[name]}) > 1:
                raise UserError(
                    f"the files of the data set {self.path} do not belong together (its {self.split} split has "
                    f"{found[0]}, {found[1]} or {manifest[name]} {name}); build the data set again."
                )

    def _index(self, name: str) -> np.ndarray:
        file = self.path / "index" / f"{self.split}.{name}.npy"
        try:
            return map_array(file)
        except (OSError, ValueError) as e:
            raise UserError(f"the data set's index {file} cannot be read ({e}); build the data set again.") from e

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads records.

        Args:
          records: int [K], positions in the split.

        Returns:
          int32 [T], the tokens of the records one after the other, and int64 [K + 1], where each begins.

        Raises:
          UserError: where a shard is damaged or is not the one that the index was made from.
        """
        # Only the tokens are decoded, and here: TFDS's decoding of all four features takes four times as long.
        parse = tf_example_pb2.Example.FromString
        try:
            serialised = self._source.__getitems__([int(i) for i in records])
            ids = [parse(record).features.feature["tokens"].bytes_list.value[0] for record in serialised]
            tokens = [np.frombuffer(i, self._dtype) for i in ids]
        except Exception as e:  # array_record raises RuntimeError or ValueError, protobuf its own
            raise UserError(
                f"a {self.split} shard of the data set {self.path} is damaged ({_first_line(e)}); build the data set "
                "again."
            ) from e
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens], dtype=np.int64)])
        if not np.array_equal(np.diff(offsets), self._record_tokens[records]):
            raise UserError(
                f"{self.split} records of the data set {self.path} are not as long as its index says; build the data "
                "set again."
            )
        return np.concatenate(tokens).astype(np.int32) if tokens else np.zeros(0, np.int32), offsets
