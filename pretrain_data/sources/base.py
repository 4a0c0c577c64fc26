# SPDX-License-Identifier: Apache-2.0
"""What a source of raw text is: an ordered list of parts, each read by one process on its own, in bounded memory."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from albert_jax.errors import UserError

# A part holds about as much text as this, so that builds run in parallel, resume and rebuild in steps of seconds.
PART_BYTES = 32 * 2**20
# A longer line is cut, at white space where there is some, and counted.
MAX_LINE_BYTES = 2**20
# A longer document becomes several, and is counted.
MAX_DOCUMENT_BYTES = 8 * 2**20

STOP, QUARANTINE = "stop", "quarantine"


@dataclass(frozen=True)
class Document:
    """A text and its id.

    Attributes:
        id: ``<file or source>:<place or name in it>``, unique in the corpus; ``#2`` and so on at the end of what
            `bounded` split.
        lines: sentences or paragraphs (the source's ``lines`` says which), stripped, none of them empty.
    """

    id: str
    lines: list[str]

    @property
    def size(self) -> int:
        """Bytes of the lines in UTF-8, line ends included."""
        return sum(len(line.encode()) + 1 for line in self.lines)


@dataclass(frozen=True)
class Span:
    """What a part reads of one file, or of one table.

    Attributes:
        path: the file; for a source without files its own name.
        begin: first byte, row group or example, as the source counts.
        end: the one after the last.
        stride: with formats that can only be read from the beginning, a part takes every `stride`-th document ...
        offset: ... beginning with this one; 0 <= offset < stride.
        size: bytes of the file that the span stands for; for progress.
        state: what tells that the file is still the one that was listed: its size and time of change, or the object's
            generation.
    """

    path: str
    begin: int
    end: int
    size: int
    state: str = ""
    stride: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Part:
    """A piece of work: spans that are read one after the other. Small, hashable, and pickled to other processes."""

    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """Bytes on disk, for progress."""
        return sum(span.size for span in self.spans)


BadRecord = tuple[str, str, bytes]  # place, problem and bytes, as `ReadLog.refuse` is given them


class BadCount:
    """Bad records that are counted and not kept.

    Attributes:
        first: the place and the problem of the first.
    """

    def __init__(self) -> None:
        self.first: tuple[str, str] | None = None
        self._count = 0

    def append(self, record: BadRecord, /) -> None:
        """Counts it."""
        self.first = self.first or record[:2]
        self._count += 1

    def __len__(self) -> int:
        return self._count


class BadRecordError(Exception):
    """A bad record, on its way to `ReadLog.refuse`, whose `problem` and `remedy` it holds."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


@dataclass
class ReadLog:
    """What reading a part came upon.

    Attributes:
        on_bad_record: `STOP` or `QUARANTINE`.
        bad: takes the records that are set aside, with `QUARANTINE`: a list, which keeps them, or a `BadCount`.
        cut_lines: lines longer than `MAX_LINE_BYTES`.
        split_documents: documents longer than `MAX_DOCUMENT_BYTES`.
        empty_documents: documents without text (white space only, null, or set aside whole), which are left out.
        markup: tags, placeholders and rows of tables that another program has left in the text, removed.
    """

    on_bad_record: str = STOP
    bad: Any = field(default_factory=list)
    cut_lines: int = 0
    split_documents: int = 0
    empty_documents: int = 0
    markup: int = 0

    def refuse(self, place: str, problem: str, remedy: str, raw: bytes) -> None:
        """Stops at a bad record, or sets it aside.

        Args:
            place: the file and the place in it, such as ``'a.jsonl' line 7 (byte 1234)``.
            problem: what is wrong, as the sentence's predicate, such as ``is not JSON (...)``.
            remedy: what to do about it.
            raw: the record's bytes, kept in the quarantine file.

        Raises:
            UserError: with `STOP`.
        """
        if self.on_bad_record == STOP:
            raise UserError(f"{place} {problem}; {remedy}, or set such records aside by --on-bad-record=quarantine")
        self.bad.append((place, problem, raw))


class Source(Protocol):
    """A corpus. Sources are pickled to the processes that read their parts.

    Attributes:
        name: what the person called it, unique in a build.
        lines: ``"sentence"`` or ``"paragraph"``: what a line of a document is.
    """

    name: str
    lines: str

    @property
    def size(self) -> int:
        """Bytes on disk."""

    def parts(self) -> list[Part]:
        """The parts, in order. They depend on the files alone, never on how many processes will read them."""

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """Yields a part's documents in order, the same whenever it is read.

        Raises:
            UserError: a file cannot be read, has changed since `parts`, or holds a bad record and `log` says stop.
        """

    def describe(self) -> str:
        """One line for the person at the terminal."""

    def manifest(self) -> dict[str, object]:
        """What the data set's manifest keeps of this source."""


# --- from what a source holds to documents ----------------------------------------------------------------------------


def bounded(ident: str, lines: Iterable[str], log: ReadLog) -> Iterator[Document]:
    """Yields a document, in several where it is longer than `MAX_DOCUMENT_BYTES`, and none where it has no lines.

    Args:
        ident: the document's id; the second piece gets ``#2``, and so on.
        lines: stripped, none empty; consumed as documents are asked for, so that a document need not fit into memory.
        log: counts.
    """
    kept: list[str] = []
    size, number = 0, 1
    remaining, most = iter(lines), 1
    while run := list(islice(remaining, most)):  # sizes are added by runs, which is quicker
        added = len("".join(run).encode()) + len(run)
        most = 16 if added < 2**16 else 1
        for some in [run] if size + added <= MAX_DOCUMENT_BYTES else [[line] for line in run]:
            added = len("".join(some).encode()) + len(some)
            if kept and size + added > MAX_DOCUMENT_BYTES:
                yield Document(ident if number == 1 else f"{ident}#{number}", kept)
                kept, size, number = [], 0, number + 1
            kept += some
            size += added
    if kept:
        yield Document(ident if number == 1 else f"{ident}#{number}", kept)
    log.split_documents += number > 1
    log.empty_documents += not kept


def text_lines(text: str, log: ReadLog) -> Iterator[str]:
    r"""The lines of a text that is in memory, stripped, without empty ones; cut and counted as those of files are.

    Lines end at ``\n``, ``\r\n`` and ``\r`` as in files, and not at the other separators of Unicode.
    """
    for line in re.split(r"\r\n|\r|\n", text):
        stripped = line.strip()
        if len(stripped) * 4 <= MAX_LINE_BYTES or len(raw := stripped.encode()) <= MAX_LINE_BYTES:
            yield from [stripped] if stripped else []
        else:
            log.cut_lines += 1
            pieces = (piece.decode().strip() for piece in cut(raw, MAX_LINE_BYTES))
            yield from (piece for piece in pieces if piece)


def cut(line: bytes, limit: int) -> list[bytes]:
    """Cuts a line to pieces of at most `limit` bytes: behind white space, or else between characters.

    The last piece keeps the line's end where there is one, which does not count.
    """
    length = len(line.rstrip(b"\r\n"))
    pieces = []
    begin = 0
    while length - begin > limit:
        middle, end = begin + limit // 2, begin + limit
        # Not before the middle: one space at the beginning of a text without spaces is no good place.
        space = max(line.rfind(b" ", middle, end), line.rfind(b"\t", middle, end))
        after = space + 1 if space >= 0 else _between_characters(line, end)
        pieces.append(line[begin:after])
        begin = after
    return [*pieces, line[begin:]]


def _between_characters(line: bytes, end: int) -> int:
    """The last place at or before `end` where a character of UTF-8 begins; `end` itself in what is not UTF-8."""
    for place in range(end, end - 4, -1):
        if line[place] & 0xC0 != 0x80:
            return place
    return end


def decoded(raw: bytes) -> str | None:
    """UTF-8 as text; None where it is not UTF-8 or holds a NUL byte, and `flaw` tells which."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def flaw(raw: bytes, begin: int = 0) -> tuple[str, str]:
    """The problem and the remedy, for `ReadLog.refuse`, of bytes that `decoded` has no text for.

    Args:
        raw: the bytes.
        begin: where they stand; the problem names the offending byte's own place.
    """
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte {begin + error.start} is 0x{raw[error.start]:02x}"
        return problem, "convert it, for instance with iconv -f latin1 -t utf-8"
    return f"is no text: it holds a NUL byte at byte {begin + raw.index(0)}", "unpack it or convert it to UTF-8 text"


def listing(names: Iterable[str], most: int = 20) -> str:
    """Names for a sentence: ``'a', 'b' and 3 more``; "none" where there are none."""
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return (", ".join(repr(name) for name in found[:most]) or "none") + more
