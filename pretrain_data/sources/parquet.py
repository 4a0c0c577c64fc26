# SPDX-License-Identifier: Apache-2.0
"""Parquet: one row a document, of which one column is the text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from albert_jax.errors import UserError
from pretrain_data.sources.base import PART_BYTES, Document, ReadLog, Span, bounded, decoded, flaw, listing, text_lines
from pretrain_data.sources.files import File, FileSource, is_compressed, open_binary

_BATCH_BYTES = 4 * 2**20  # of text read at once, as far as the file's statistics tell
_BATCH_ROWS = 256


class Parquet(FileSource):
    """Parquet files. A document's id is ``<file name>:<number of the row in the file>``; null is an empty document.

    Args:
        pattern: as for `files.listed`.
        field: the column, with dots where it is nested in structs: ``content.body``.
        lines: "sentence" or "paragraph", what a line of the text is.
        name: what the source is called.
    """

    kind = "Parquet"

    def __init__(self, pattern: str, field: str, lines: str, name: str) -> None:
        super().__init__(pattern, lines, name)
        self.field = field

    def spans(self, file: File) -> list[Span]:
        """Runs of row groups with about `PART_BYTES` of text; begin and end count row groups.

        Raises:
            UserError: the file is damaged, or has no such column of text.
        """
        if is_compressed(file.path):
            raise UserError(f"{file.path!r} is packed, and Parquet is compressed within and read by parts; unpack it")
        with open_binary(file.path) as stream, _damage_told(file.path):
            table = _opened(stream)
            _check_column(table.schema_arrow, self.field, file.path)
            sizes = [_text_bytes(table.metadata.row_group(group), self.field) for group in range(table.num_row_groups)]
        ends, together = [0], 0
        for group, size in enumerate(sizes):
            if together and together + size > PART_BYTES:
                ends.append(group)
                together = 0
            together += size
        ends += [len(sizes)] if sizes else []
        # On disk, the rows' share of the file stands for them.
        shares = [file.size * sum(sizes[:end]) // max(1, sum(sizes)) for end in ends]
        return [
            Span(file.path, ends[index], ends[index + 1], shares[index + 1] - shares[index], file.state)
            for index in range(len(ends) - 1)
        ]

    def documents(self, stream: BinaryIO, span: Span, log: ReadLog) -> Iterator[Document]:
        """Yields the documents of a span's row groups; see `FileSource.documents`."""
        label = self.label(span.path)
        with _damage_told(span.path):
            table = _opened(stream)
            groups = [table.metadata.row_group(group) for group in range(span.end)]
            row = sum(group.num_rows for group in groups[: span.begin])
            for group in range(span.begin, span.end):
                for value in _values(table, group, self.field):
                    raw = value or b""
                    text = decoded(raw)
                    if text is None:
                        log.refuse(f"{span.path!r} row {row}", *flaw(raw), raw)
                    else:
                        yield from bounded(f"{label}:{row}", text_lines(text, log), log)
                    row += 1


@contextmanager
def _damage_told(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path!r} is damaged or no Parquet file ({why}); fetch or write it again") from error


def _opened(stream: BinaryIO) -> pq.ParquetFile:
    # Without pre_buffer and with a buffer, pages are read as they are needed and not a row group's whole column.
    return pq.ParquetFile(stream, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)


def _check_column(schema: pa.Schema, field: str, path: str) -> None:
    columns = dict(_columns(schema, ""))
    found = columns.get(field)
    if found is None:
        raise UserError(
            f"{path!r} has no column {field!r} (it has {listing(columns)}); name the column of the text by --field"
        )
    values = found.value_type if pa.types.is_dictionary(found) else found
    types = pa.types
    # Binary: a string that was written without saying that it is one.
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if not any(test(values) for test in tests + binary):
        raise UserError(f"{path!r} holds {found} in column {field!r}, not text; name the column of the text by --field")


def _columns(fields: Any, prefix: str) -> Iterator[tuple[str, pa.DataType]]:
    """(name with dots, type) of all columns, those in structs included."""
    for field in fields:
        yield prefix + field.name, field.type
        if pa.types.is_struct(field.type):
            yield from _columns(field.type.fields, f"{prefix}{field.name}.")


def _text_bytes(group: Any, field: str) -> int:
    """Bytes of a column in a row group when decompressed, and at least 1."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return max(1, sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == field))


def _values(table: pq.ParquetFile, group: int, field: str) -> Iterator[bytes | None]:
    """The values of a column in a row group, as bytes, some rows at a time."""
    metadata = table.metadata.row_group(group)
    rows = _BATCH_BYTES * metadata.num_rows // _text_bytes(metadata, field)
    for batch in table.iter_batches(
        batch_size=max(1, min(_BATCH_ROWS, rows)), row_groups=[group], columns=[field], use_threads=False
    ):
        column = batch.column(0)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, field.split(".")[1:])
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        # As bytes: that a string is UTF-8 is checked by nobody before.
        yield from column.cast(pa.large_binary()).to_pylist()
