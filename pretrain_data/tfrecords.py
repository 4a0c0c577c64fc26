# SPDX-License-Identifier: Apache-2.0
"""Writes the examples of a stream as TFRecord files that Google's ALBERT, and what was derived from it, train on.

A record is a tf.train.Example with the eight features of Google's create_pretraining_data.py: S slots in `input_ids`,
`input_mask`, `segment_ids`, `token_boundary`; M mask slots in `masked_lm_positions`, `masked_lm_ids`,
`masked_lm_weights` (the only floats); and `next_sentence_labels`, which is the sentence order. All is padded with 0.
"""

import bisect
import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from albert_jax.data.rows import IGNORED, Batch
from albert_jax.data.stream import Stream
from albert_jax.data.tfrecords import write_record
from albert_jax.data.vocabulary import CLS, SEP
from albert_jax.errors import UserError

_ROWS = 256  # a batch


@dataclasses.dataclass
class Written:
    """What `write_tfrecords` wrote; `table` prints it.

    Attributes:
        files: the files, in order.
        records: examples, those of all epochs together.
        tokens: their slots that are not padding.
        targets: their masked tokens.
        without_order: those of one sentence only.
        bytes: size of the files.
    """

    files: list[Path]
    records: int = 0
    tokens: int = 0
    targets: int = 0
    without_order: int = 0
    bytes: int = 0

    def table(self) -> str:
        """The closing report."""
        lines = [
            f"TFRecord files: {len(self.files):,}, {self.files[0]} and on, {self.bytes:,} bytes",
            f"records: {self.records:,}, {self.tokens / max(1, self.records):.1f} tokens and "
            f"{self.targets / max(1, self.records):.1f} masks each",
        ]
        if self.without_order:
            lines.append(
                f"of one sentence, so without an order: {self.without_order:,} records, whose next_sentence_labels is "
                f"{IGNORED}: Google's code gives them no order loss (but divides by them), albert_jax leaves them out"
            )
        return "\n".join(lines)


def write_tfrecords(
    stream: Stream, starts_word_google: np.ndarray, out: str | os.PathLike[str], *, epochs: int, shards: int
) -> Written:
    """Writes the first epochs of a stream, record by record in turn over the shards.

    Each epoch has its own splits, swaps and masks, so `epochs` is Google's dupe_factor. The epochs follow one another,
    each in an order of its own, where Google's files have all passes in one shuffled order.

    Args:
        stream: its rows hold one example each.
        starts_word_google: bool [V], for `token_boundary`, see `albert_jax.data.google_words.google_starts_word`.
        out: name of the files with one "*", which becomes "00003-of-00010"; one file may do without.
        epochs: how many passes.
        shards: how many files.

    Returns:
        Counts.

    Raises:
        UserError: `out` has not one "*" or names files that exist; the stream packs several examples into a row; there
            are more shards than files that may be open.
        OSError: a file cannot be written. Then, as after any other exception, nothing is left under the final names.
    """
    if epochs < 1 or shards < 1:
        raise UserError(f"--epochs {epochs} and --shards {shards} must be at least 1")
    written = Written(_names(out, shards))
    total = _rows_until(stream, epochs)
    with _files_in_place_when_whole(written.files) as files, tqdm(total=total, unit="rec", disable=None) as bar:
        for start in range(0, total, _ROWS):
            batch = stream.batch(start, min(_ROWS, total - start))
            features = _features(batch, starts_word_google)
            for row in range(len(batch.row_ids)):
                write_record(files[(start + row) % shards], _serialised(features, row))
            written.records += len(batch.row_ids)
            written.tokens += int(np.count_nonzero(batch.example_ids))
            written.targets += int(np.count_nonzero(batch.mlm_labels != IGNORED))
            written.without_order += int(np.count_nonzero(batch.sop_labels == IGNORED))
            bar.update(len(batch.row_ids))
    written.bytes = sum(file.stat().st_size for file in written.files)
    return written


def _rows_until(stream: Stream, epochs: int) -> int:
    """How many rows the first epochs have; they need not have the same number each."""
    bound = stream.rows
    while stream.epoch(bound) < epochs:
        bound *= 2
    return bisect.bisect_left(range(bound), float(epochs), key=stream.epoch)


def _names(out: str | os.PathLike[str], shards: int) -> list[Path]:
    folder, name = Path(out).parent, Path(out).name
    if name.count("*") > 1 or "*" in str(folder) or ("*" not in name and shards > 1):
        raise UserError(f"--out {str(out)!r} must have one * in the file name, where the {shards} shards' numbers go")
    return [folder / name.replace("*", f"{shard:05d}-of-{shards:05d}") for shard in range(shards)]


def _check_free(paths: list[Path]) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"{str(path)!r} exists; give another --out, or remove it")


@contextlib.contextmanager
def _files_in_place_when_whole(paths: list[Path]) -> Iterator[list[IO[bytes]]]:
    """New files under temporary names, which get their names once all are whole; after an exception none is left."""
    _check_free(paths)
    folder = paths[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(_opened(temporary / path.name, len(paths))) for path in paths]
        _check_free(paths)  # another process may have written there meanwhile
        for path in paths:
            os.rename(temporary / path.name, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _opened(path: Path, shards: int) -> IO[bytes]:
    try:
        return open(path, "wb")
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise UserError(
            f"{shards} shards are more than the files that may be open at once; give fewer, or raise it by ulimit -n"
        ) from error


def _features(batch: Batch, starts_word_google: np.ndarray) -> dict[str, np.ndarray]:
    """The features of R rows: int64 [R, S], [R, M] or [R, 1] each, float32 for the weights."""
    if batch.cls_positions.shape[1] > 1:
        raise UserError(
            f"Google's format holds one example a record, and the stream's rows hold up to "
            f"{batch.cls_positions.shape[1]}; set data.examples_per_row to 1"
        )
    real, used = batch.example_ids > 0, batch.mlm_labels != IGNORED
    original = batch.input_ids.copy()
    row, nth = np.nonzero(used)
    original[row, batch.mlm_positions[row, nth]] = batch.mlm_labels[row, nth]
    boundary = real & (starts_word_google[original] | (original == CLS) | (original == SEP))
    features = {
        "input_ids": batch.input_ids,
        "input_mask": real,
        "segment_ids": batch.token_type_ids,
        "token_boundary": boundary,
        "masked_lm_positions": batch.mlm_positions,
        "masked_lm_ids": np.where(used, batch.mlm_labels, 0),
        "next_sentence_labels": batch.sop_labels,
    }
    return {
        **{name: values.astype(np.int64) for name, values in features.items()},
        "masked_lm_weights": used.astype(np.float32),
    }


def _serialised(features: dict[str, np.ndarray], row: int) -> bytes:
    example = tf_example_pb2.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if values.dtype == np.float32:
            feature.float_list.value.extend(values[row].tolist())
        else:
            feature.int64_list.value.extend(values[row].tolist())
    return bytes(example.SerializeToString(deterministic=True))
