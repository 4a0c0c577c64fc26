# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Datasets, as they lie prepared on disk: in array_record or TFRecord format, read without TensorFlow."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from albert_jax.data.tfrecords import RecordIndex
from albert_jax.errors import UserError
from albert_jax.remote import is_remote
from pretrain_data.sources.base import (
    PART_BYTES,
    Document,
    Part,
    ReadLog,
    Span,
    bounded,
    decoded,
    flaw,
    listing,
    text_lines,
)
from pretrain_data.sources.files import File, FileSource, look_at, unchanged

PREFIX = "tfds:"
_BATCH = 64  # examples read at once


class TfdsSource(FileSource):
    """A split of a TFDS data set. A document's id is ``<shard's file name>:<number of the example in the shard>``.

    Nothing is downloaded or prepared.

    Args:
        spec: ``tfds:name[/config][:version]``, by default the only config and the highest version that are there; or
            the data set's folder, ``tfds:/path/to/name/1.0.0``.
        split: TFDS's name of the split, or a slice of one such as ``train[:10%]``.
        field: the feature of text, with dots where it is nested: ``content.body``.
        lines: "sentence" or "paragraph", what a line of the text is.
        name: what the source is called.
        data_dir: where TFDS prepares data sets; by default what TFDS uses, `TFDS_DATA_DIR` or ~/tensorflow_datasets.

    Raises:
        UserError: it is not there, has no such split or feature, or another format.
    """

    kind = "TFDS"

    def __init__(
        self, spec: str, split: str, field: str, lines: str, name: str, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.pattern, self.lines, self.name, self.field = spec, lines, name, field
        self.ambiguous = set()
        self._folder = _folder(spec.removeprefix(PREFIX), data_dir)
        info = _info(self._folder)
        self._format = str(info.file_format.file_suffix)
        if self._format not in _READERS:
            raise UserError(
                f"{self._folder!r} is in the format {self._format}, of which only {' and '.join(_READERS)} are read; "
                "convert it by tfds convert_format --out_file_format=array_record"
            )
        _check_feature(info.features, field, spec)
        try:
            shards = info.splits[split].file_instructions
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(
                f"{spec} has no split {split!r} (it has {listing(info.splits)}); name one of them"
            ) from error
        self.files = [look_at(str(shard.filename)) for shard in shards]
        # The examples that each file gives: (first, one after the last, examples in the file).
        self._examples = {
            str(shard.filename): (shard.skip, shard.skip + shard.take, shard.examples_in_shard) for shard in shards
        }

    def spans(self, file: File) -> list[Span]:
        """Runs of examples that are about `PART_BYTES` on disk."""
        begin, end, all_of_them = self._examples[file.path]
        size = file.size * (end - begin) // max(1, all_of_them)
        count = max(1, -(-size // PART_BYTES))
        ends = [begin + index * (end - begin) // count for index in range(count + 1)]
        return [Span(file.path, ends[index], ends[index + 1], size // count, file.state) for index in range(count)]

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """Yields a part's documents in order; see `Source.read`."""
        decode = _decoder(_info(self._folder).features, self.field)
        for span in part.spans:
            label, of_file = self.label(span.path), self._examples[span.path][2]
            with unchanged(span):
                for index, record in enumerate(_READERS[self._format](span, of_file), start=span.begin):
                    raw = decode(record)
                    text = decoded(raw)
                    if text is None:
                        log.refuse(f"{span.path!r} example {index}", *flaw(raw), raw)
                    else:
                        yield from bounded(f"{label}:{index}", text_lines(text, log), log)


def _decoder(features: Any, field: str) -> Callable[[bytes], bytes]:
    """From an example's record to the bytes of its text; the other features may need packages that are not here."""
    wanted = dict(_features(features, ""))[field]
    path = field.split(".")
    for key in reversed(path):
        wanted = {key: wanted}
    only = tfds.features.FeaturesDict(wanted)

    def decode(record: bytes) -> bytes:
        value = only.deserialize_example_np(record)
        for key in path:
            value = value[key]
        return bytes(value)

    return decode


def _folder(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """The folder of a data set's version."""
    if is_remote(name) or _is_version(Path(name)):
        return name
    data_dir = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    called, _, version = name.partition(":")
    above = Path(data_dir, called)
    configs = sorted(folder for folder in above.glob("*") if _versions(folder))
    if not _versions(above) and len(configs) > 1:
        raise UserError(
            f"tfds:{name} has several configs in {str(data_dir)!r} ({listing(folder.name for folder in configs)}); "
            f"name one as in tfds:{called}/{configs[0].name}"
        )
    versions = _versions(above) or [found for folder in configs for found in _versions(folder)]
    found = [folder for folder in versions if folder.name == version] if version else versions[-1:]
    if not found:
        there = f"versions there: {listing(folder.name for folder in versions)}; " if versions else ""
        raise UserError(
            f"tfds:{name} is not prepared in {str(data_dir)!r}; {there}prepare it by tfds build {called} "
            f"--data_dir={data_dir} --file_format=array_record, or name the folder where it is by --tfds-data-dir"
        )
    return str(found[0])


def _versions(folder: Path) -> list[Path]:
    """The folders of a data set's versions, the highest last."""
    found = [path for path in folder.glob("*.*.*") if _is_version(path)]
    return sorted(found, key=lambda path: [int(number) if number.isdigit() else 0 for number in path.name.split(".")])


def _is_version(folder: Path) -> bool:
    return (folder / "features.json").is_file() or (folder / "dataset_info.json").is_file()


def _info(folder: str) -> Any:
    try:
        return tfds.builder_from_directory(folder).info
    except Exception as error:  # whatever TFDS and its file systems raise
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{folder!r} cannot be opened as a TFDS data set ({why[0]}); name the folder of its version, which holds "
            "dataset_info.json and features.json"
        ) from error


def _check_feature(features: Any, field: str, spec: str) -> None:
    found = dict(_features(features, ""))
    if field not in found:
        raise UserError(f"{spec} has no feature {field!r} (it has {listing(found)}); name the text's by --field")
    if not isinstance(found[field], tfds.features.Text):
        raise UserError(
            f"{spec} holds {type(found[field]).__name__} in feature {field!r}, not Text; name the text's by --field"
        )


def _features(features: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, feature in features.items():
        yield prefix + name, feature
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _features(feature, f"{prefix}{name}.")


def _array_records(span: Span, of_file: int) -> Iterator[bytes]:
    try:
        with contextlib.closing(ArrayRecordReader(span.path)) as reader:
            # A file that is cut gives empty records without a word, but not as many.
            if not reader.ok() or reader.num_records() != of_file:
                raise _damaged(span.path, f"{reader.num_records()} of {of_file} examples can be found")
            for begin in range(span.begin, span.end, _BATCH):
                yield from reader.read(list(range(begin, min(begin + _BATCH, span.end))))
    except (RuntimeError, IndexError) as error:
        raise _damaged(span.path, error) from error


def _tfrecords(span: Span, of_file: int) -> Iterator[bytes]:
    if is_remote(span.path):
        raise UserError(f"{span.path!r} is a TFRecord file, which is read from a disk only; copy the data set first")
    index = RecordIndex.scan(Path(span.path))
    if len(index) != of_file:
        raise _damaged(span.path, f"{len(index)} of {of_file} examples can be found")
    for begin in range(span.begin, span.end, _BATCH):
        yield from index.read(begin, min(_BATCH, span.end - begin))


def _damaged(path: str, why: object) -> UserError:
    return UserError(f"{path!r} is damaged ({why}); copy it again from where it is whole, or prepare it again")


_READERS = {"array_record": _array_records, "tfrecord": _tfrecords}
