# SPDX-License-Identifier: Apache-2.0
"""What a line of a source is, and what ends a document of plain text, told from samples."""

import contextlib
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Protocol

from albert_jax.errors import UserError
from pretrain_data.sources.base import QUARANTINE, BadCount, BadRecord, Part, ReadLog, Source, Span
from pretrain_data.sources.files import is_blank, is_compressed, lines, reading
from pretrain_data.sources.text import TextFiles

# Lines looked at to tell whether a line is a sentence or a paragraph, and places of the source that they come from.
_DETECT_LINES = 4000
_DETECT_PLACES = 80
_DETECT_SHARE = 0.25
# Without blank lines, a file of so many lines is no single text, if they are paragraphs, or cannot be told from one, if
# they are sentences.
_LINES_OF_A_TEXT, _LINES_OF_A_BOOK = 200, 2000
# Sentences a document below which they may be the paragraphs of longer texts.
_FEW_SENTENCES = 4
_COMPRESSION = 3  # of text by the usual programs, about


class Splitter(Protocol):
    """Splits a paragraph into sentences."""

    def split(self, paragraph: str) -> list[str]:
        """The sentences, in order."""


class Splitters(Protocol):
    """The splitters of a corpus."""

    def of(self, source: str) -> Splitter:
        """The splitter for a source, by its name."""


def detect_lines(source: Source, splitter: Splitter) -> tuple[str, str]:
    """Decides from sample lines whether a line is a sentence or a paragraph.

    Returns:
        ("sentence" | "paragraph", a sentence that says what was decided and why).
    """
    sample = list(_sample_lines(source))
    several = sum(1 for line in sample if len(splitter.split(line)) > 1)
    share = several / max(1, len(sample))
    decided = "paragraph" if share > _DETECT_SHARE else "sentence"
    return decided, (
        f"one {decided} a line, because {share:.0%} of {len(sample):,} sample lines hold more than one sentence "
        f"(above {_DETECT_SHARE:.0%} means paragraphs; --lines overrides)"
    )


def detect_documents(source: TextFiles, splitter: Splitter) -> tuple[str, str]:
    """Decides from sample lines what ends a document.

    Returns:
        ("blank" | "line", a sentence that says what was decided and why).

    Raises:
        UserError: long files of sentences without any blank line, which may be one text each or many.
    """
    places = list(_raw_lines(source))
    sample = [line for place in places for line in place if line]
    begun = [sum(bool(b) and not a for a, b in pairwise(["", *place])) for place in places]  # documents
    size = sum(file.size * (_COMPRESSION if is_compressed(file.path) else 1) for file in source.files)
    length = size / max(1, sum(len(line.encode()) + 1 for line in sample)) * len(sample) / max(1, len(source.files))
    most = _LINES_OF_A_TEXT if source.lines == "paragraph" else _LINES_OF_A_BOOK
    if any("" in place for place in places) or length < most:
        sentences = sum(len(splitter.split(line)) if source.lines == "paragraph" else 1 for line in sample)
        each = sentences / max(1, sum(begun))
        why = f"a blank line or the end of a file ends one: {each:.1f} sentences each in {len(sample):,} sample lines"
        if without := begun.count(0):
            why += f", none in {without} of {len(places)} places"
        if each < _FEW_SENTENCES and sum(begun) > _LINES_OF_A_TEXT:
            why += "; if these are paragraphs of longer texts, give --documents file"
        return "blank", f"{why} (--documents overrides)"
    if source.lines == "paragraph":
        why = f"a line is one, because {len(sample):,} sample lines hold no blank line and are paragraphs"
        return "line", f"{why}; if a file is one text, give --documents file (--documents overrides)"
    raise UserError(
        f"no blank line ends a document of {source.name}: {len(sample):,} sample lines have none, and a file has about "
        f"{length:,.0f} lines of a sentence each; give --documents file if a file is one text, --documents line if a "
        "line is, or put a blank line between documents"
    )


def _raw_lines(source: TextFiles) -> Iterator[list[str]]:
    """Lines from places all over the source, stripped, blank ones as ''; the one that a place begins in is left out."""
    for span, each in _places(source):
        with reading(span) as stream:
            if span.begin:
                stream.seek(span.begin)
            found = islice(lines(stream, ReadLog(), span.begin), each + 1)
            texts = ["" if is_blank(raw) else raw.decode("utf-8", "replace").strip() for _, raw in found]
        yield texts[1:] if span.begin else texts[:each]


def _places(source: Source) -> Iterator[tuple[Span, int]]:
    """Spans all over the source, and how many lines to look at in each."""
    spans = [span for part in source.parts() for span in part.spans if not span.offset]
    places = spans[:: -(-len(spans) // _DETECT_PLACES) or 1]
    for span in places:
        yield span, max(50, _DETECT_LINES // max(1, len(places)))


def _sample_lines(source: Source) -> Iterator[str]:
    """Lines from places all over the source."""
    for span, each in _places(source):
        # Bad records are the build's concern, which stops at them or sets them aside.
        documents = source.read(Part((span,)), ReadLog(QUARANTINE, _FewBad(each)))
        with contextlib.suppress(_TooManyBadError):
            yield from islice((line for document in documents for line in document.lines), each)


class _TooManyBadError(Exception):
    """There is little else in a place than bad records, so no more is read of it."""


class _FewBad(BadCount):
    """Ends the reading at so many bad records."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def append(self, record: BadRecord, /) -> None:
        super().append(record)
        if len(self) >= self._most:
            raise _TooManyBadError
