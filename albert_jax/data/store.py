# SPDX-License-Identifier: Apache-2.0
"""Reading a data set of tokenised sentences, as `python -m pretrain_data build` writes it."""

import json
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from albert_jax.errors import UserError

FORMAT = 1


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
    if manifest.get("format") != FORMAT:
        raise UserError(f"{file} has format {manifest.get('format')!r}, not {FORMAT}; build the data set again.")
    return manifest


class TextStore:
    """One split of a data set: records of consecutive sentences, in a fixed order.

    Args:
      path: the data set's directory.
      split: 'train' or 'validation'.

    Attributes:
      fingerprint: digest of all tokens and sentence boundaries in order.
      sentence_lengths: uint16 [sentences], tokens in each sentence of the split, in order.
      sentences_per_record: int32 [records].
      unigrams: int64 [V], how often each id occurs in the split.

    Raises:
      UserError: where the split or a file of it is missing.
    """

    def __init__(self, path: str | pathlib.Path, split: str):
        self.path, self.split = pathlib.Path(path), split
        manifest = read_manifest(path)
        if split not in manifest["splits"]:
            raise UserError(f"the data set {path} has no split {split!r}, only {', '.join(manifest['splits'])}.")
        self.fingerprint: str = manifest["splits"][split]["fingerprint"]
        self.sentence_lengths = self._index("sentence_lengths")
        self.sentences_per_record = self._index("sentences_per_record")
        self.unigrams = self._index("unigrams")
        # A data source is opened for each split; TFDS checks that all its shards are there.
        self._source = tfds.builder_from_directory(str(self.path)).as_data_source(split=split)
        if len(self._source) != len(self.sentences_per_record):
            raise UserError(
                f"the data set {path} holds {len(self._source)} {split} records where its index names "
                f"{len(self.sentences_per_record)}; build it again."
            )

    def _index(self, name: str) -> np.ndarray:
        file = self.path / "index" / f"{self.split}.{name}.npy"
        try:
            return np.load(file, mmap_mode="r")
        except (OSError, ValueError) as e:
            raise UserError(f"the data set's index {file} cannot be read ({e}); build the data set again.") from e

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads records.

        Args:
          records: int [K], positions in the split.

        Returns:
          int32 [T], the tokens of the records one after the other, and int64 [K + 1], where each begins.
        """
        tokens = [record["tokens"] for record in self._source.__getitems__([int(i) for i in records])]
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens], dtype=np.int64)])
        return np.concatenate(tokens).astype(np.int32) if tokens else np.zeros(0, np.int32), offsets
