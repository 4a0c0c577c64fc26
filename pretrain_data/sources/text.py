# SPDX-License-Identifier: Apache-2.0
"""Plain text: a blank line, a line's end or only the end of a file ends a document."""

import sys
from collections.abc import Iterator
from typing import BinaryIO

from pretrain_data.sources.base import Document, ReadLog, Span, bounded, decoded, flaw
from pretrain_data.sources.files import File, FileSource, is_blank, lines

# Lines are decoded together, which is quicker, in runs of about as much.
_RUN_BYTES = 2**16


class TextFiles(FileSource):
    """UTF-8 files.

    A document's id is ``<file name>:<byte offset of its first line>``, counted in what an archive is decompressed to.
    A line of white space is blank, and a byte-order mark at the beginning of a file is taken off. A span holds the
    documents whose last blank line before them begins in it, and reads beyond its end to finish the last of them.

    Attributes:
        ends: what ends a document, besides the end of its file: "blank", a blank line; "line", the end of its line,
            which is all of it; "file", nothing.
    """

    kind = "text"
    ends = "blank"

    def spans(self, file: File) -> list[Span]:
        """How a file is divided: not, where it is one document."""
        if self.ends != "file":
            return super().spans(file)
        return [Span(file.path, 0, sys.maxsize, file.size, file.state)] if file.size else []

    def manifest(self) -> dict[str, object]:
        """What the data set's manifest keeps of this source."""
        return super().manifest() | {"documents": self.ends}

    def documents(self, stream: BinaryIO, span: Span, log: ReadLog) -> Iterator[Document]:
        """Yields the documents of a span; see `FileSource.documents`."""
        label, found = self.label(span.path), _Lines(stream, span, self.ends)
        ordinal = -1
        while (offset := found.next_document()) is not None:
            ordinal += 1
            if ordinal % span.stride == span.offset:
                yield from bounded(f"{label}:{offset}", found.text(log), log)
                log.cut_lines += found.cut_lines
            else:
                found.pass_over()


class _Lines:
    """The lines of a span, document by document.

    Attributes:
        cut_lines: of the document that was read last.
    """

    def __init__(self, stream: BinaryIO, span: Span, ends: str) -> None:
        self._span, self._ends = span, ends
        self._counts = ReadLog()
        self._cut_before = 0  # lines that were cut before the document
        # From one byte earlier: it may end a line, and then the span begins with a line of its own.
        begin = max(0, span.begin - 1)
        if begin:
            stream.seek(begin)
        self._lines = lines(stream, self._counts, begin)
        self._number = 0  # of the line read last
        self._first = 0, b""  # offset and bytes of the document's first line
        # Where the last blank line began. The file's first document needs none.
        self._blank = None if span.begin else 0

    @property
    def cut_lines(self) -> int:
        return self._counts.cut_lines - self._cut_before

    def next_document(self) -> int | None:
        """Goes to the next document and returns the offset of its first line, or None if the span has no more."""
        self._cut_before = self._counts.cut_lines
        for offset, raw in self._lines:
            self._number += 1
            blank = is_blank(raw)
            if self._ends == "line" and offset >= self._span.begin:
                self._blank = offset  # where the line before ended
            if not blank and self._blank is not None and self._blank < self._span.end:
                self._first = offset, raw
                return offset
            if offset >= self._span.end:
                return None
            if blank and offset >= self._span.begin:
                self._blank = offset
            self._cut_before = self._counts.cut_lines
        return None

    def pass_over(self) -> None:
        """Reads to the end of the document."""
        for _ in self._runs():
            pass

    def text(self, log: ReadLog) -> Iterator[str]:
        """Yields the document's lines, stripped; those that are no text are refused."""
        for run in self._runs():
            text = decoded(b"\n".join([raw for _, raw in run]))
            if text is not None:
                yield from [line.strip() for line in text.split("\n")]
                continue
            for number, (offset, raw) in enumerate(run, start=self._number - len(run) + 1):
                line = decoded(raw)
                if line is not None:
                    yield line.strip()
                else:
                    log.refuse(self._place(number, offset), *flaw(raw, offset), raw)

    def _runs(self) -> Iterator[list[tuple[int, bytes]]]:
        """Yields the document's lines and their offsets in runs; `_number` is that of a run's last."""
        run = [self._first]
        size = len(self._first[1])
        for offset, raw in self._lines if self._ends != "line" else ():
            if is_blank(raw) and self._ends == "file":
                self._number += 1
                continue
            if is_blank(raw):
                yield run
                self._blank = offset
                self._number += 1
                return
            if size >= _RUN_BYTES:
                yield run
                run, size = [], 0
            run.append((offset, raw))
            size += len(raw)
            self._number += 1
        yield run

    def _place(self, number: int, offset: int) -> str:
        # A cut line comes as several, so that later ones have no number any more.
        known = not self._span.begin and not self._counts.cut_lines
        return f"{self._span.path!r} line {number} (byte {offset})" if known else f"{self._span.path!r} byte {offset}"
