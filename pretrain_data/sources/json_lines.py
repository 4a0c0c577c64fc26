# SPDX-License-Identifier: Apache-2.0
"""JSON lines: one object a line, of which one field is a document's text."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from pretrain_data.sources.base import (
    BadRecordError,
    Document,
    ReadLog,
    Span,
    bounded,
    decoded,
    flaw,
    listing,
    text_lines,
)
from pretrain_data.sources.files import FileSource, is_blank, whole_lines

# A line is parsed as a whole. A longer one than this is taken for a damaged file.
MAX_RECORD_BYTES = 256 * 2**20


class JsonLines(FileSource):
    """Files of JSON lines. A document's id is ``<file name>:<byte offset of its line>``; blank lines are passed over.

    Args:
        pattern: as for `files.listed`.
        field: the name of the field, with dots where it is nested: ``content.body``.
        lines: "sentence" or "paragraph", what a line of the text is.
        name: what the source is called.
    """

    kind = "JSON lines"

    def __init__(self, pattern: str, field: str, lines: str, name: str) -> None:
        super().__init__(pattern, lines, name)
        self.field = field

    def documents(self, stream: BinaryIO, span: Span, log: ReadLog) -> Iterator[Document]:
        """Yields the documents of the lines that begin in a span; see `FileSource.documents`."""
        label, ordinal = self.label(span.path), -1
        # From one byte earlier: it may end a line, and then the span begins with a line of its own.
        begin = max(0, span.begin - 1)
        if begin:
            stream.seek(begin)
        found = whole_lines(stream, begin, MAX_RECORD_BYTES, span.end)
        for number, (offset, raw) in enumerate(found, start=1):
            if offset >= span.end:
                return
            if offset < span.begin or (raw is not None and is_blank(raw)):
                continue
            ordinal += 1
            if ordinal % span.stride != span.offset:
                continue
            line = "" if span.begin else f"line {number} "
            place = f"{span.path!r} {line}(byte {offset})"
            try:
                text = self._text(raw, offset)
            except BadRecordError as error:
                log.refuse(place, error.problem, error.remedy, raw or b"")
            else:
                yield from bounded(f"{label}:{offset}", text_lines(text, log), log)

    def _text(self, raw: bytes | None, offset: int) -> str:
        if raw is None:
            raise BadRecordError(f"is longer than {MAX_RECORD_BYTES:,} bytes", "write one object a line")
        value = _parsed(raw, offset)
        if not isinstance(value, dict):
            raise BadRecordError(
                f"is JSON but no object ({_type(value)})", "write one object a line, for instance with jq -c '.[]'"
            )
        for key in self.field.split("."):
            if not isinstance(value, dict):
                raise BadRecordError(f"has no field {self.field!r}: above {key!r} is {_type(value)}", "check --field")
            if key not in value:
                has = f"it has {listing(value)}" + ("" if key == self.field else f" where {key!r} should be")
                raise BadRecordError(f"has no field {self.field!r} ({has})", "name the field by --field")
            value = value[key]
        if not isinstance(value, str):
            raise BadRecordError(
                f"holds {_type(value)} in field {self.field!r}, not a string", "name a field of text by --field"
            )
        return _checked(value, self.field)


def _parsed(raw: bytes, offset: int) -> object:
    line = decoded(raw)
    if line is None:
        raise BadRecordError(*flaw(raw, offset))
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"is not JSON ({error.msg} at character {error.pos + 1})"
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nesting of thousands of levels
        problem = f"is no JSON that can be read ({error})"
    raise BadRecordError(problem, "write one object a line, or name the format as in --source text:FILE")


def _type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _checked(text: str, field: str) -> str:
    if "\0" in text:
        raise BadRecordError(
            f"is no text: field {field!r} holds a NUL at character {text.index(chr(0)) + 1}", "clean the data"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BadRecordError(
            f"holds half a surrogate pair ({half}) at character {error.start + 1} of field {field!r}",
            "write whole characters",
        ) from error
    return text
