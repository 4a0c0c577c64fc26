# SPDX-License-Identifier: Apache-2.0
"""What a source of raw text is: an ordered list of parts, each read by one process on its own, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

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
        id: ``<source>:<ordinal or name>``, unique in the corpus.
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


@dataclass
class ReadLog:
    """What reading a part came upon.

    Attributes:
        on_bad_record: `STOP` or `QUARANTINE`.
        bad: with `QUARANTINE` the records that were set aside: ``place``, ``problem`` and the record's bytes.
        cut_lines: lines longer than `MAX_LINE_BYTES`.
        split_documents: documents longer than `MAX_DOCUMENT_BYTES`.
    """

    on_bad_record: str = STOP
    bad: list[tuple[str, str, bytes]] = field(default_factory=list)
    cut_lines: int = 0
    split_documents: int = 0

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
