# SPDX-License-Identifier: Apache-2.0
"""Sources of raw text. A source yields documents in a fixed order, as often as it is asked, in bounded memory."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from albert_jax.errors import UserError
from pretrain_data.sentences import SentenceSplitter
from pretrain_data.sources.base import Document, Part, ReadLog, Source, Span

# Lines looked at to tell whether a line is a sentence or a paragraph, in all and of one file.
_DETECT_LINES = 4000
_DETECT_SHARE = 0.25


class TextFiles:
    """UTF-8 files; a blank line, or the end of a file, ends a document. A byte-order mark at the beginning is taken
    off.

    Args:
        pattern: a path, or a glob (``**`` is understood); files are read in the order of their names.
        lines: "sentence" or "paragraph", what a line is; "detect" must be settled by `detect_lines` first.

    Attributes:
        ambiguous: names of files that occur more than once in the corpus; their ids hold the whole path.

    Raises:
        UserError: no such file, or the glob matches no file.
    """

    def __init__(self, pattern: str, lines: str) -> None:
        self.name = pattern
        self.lines = lines
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not paths and glob.has_magic(pattern):
            raise UserError(f"no file matches {pattern!r}; quote the pattern and check it with ls")
        if not paths:
            raise UserError(
                f"there is no file {pattern!r}; give --source a text file, a quoted glob or the word python-docs"
            )
        self.paths = [Path(path) for path in paths if os.path.isfile(path)]
        if not self.paths and os.path.isdir(paths[0]):
            raise UserError(
                f"{pattern!r} is a folder, not a file; name its files by a quoted glob such as '{paths[0]}/*.txt'"
            )
        if not self.paths:
            raise UserError(
                f"{pattern!r} is no regular file; a corpus is read several times, so write the text to a file first"
            )
        self.ambiguous = _repeated(path.name for path in self.paths)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def parts(self) -> list[Part]:
        """A part a file."""
        return [
            Part((Span(str(path), 0, path.stat().st_size, path.stat().st_size, str(path.stat().st_mtime_ns)),))
            for path in self.paths
        ]

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """Yields the documents; ids are ``<file name>:<ordinal in the file>``, with the whole path where names repeat.

        Raises:
            UserError: a file cannot be read, is binary or is not UTF-8; the sentence names the line and the byte.
        """
        for path in (Path(span.path) for span in part.spans):
            label = str(path) if path.name in self.ambiguous else path.name
            for ordinal, lines in enumerate(_blocks(path)):
                yield Document(f"{label}:{ordinal}", lines)

    def describe(self) -> str:
        """One line: how many files and bytes, and what a line is taken for."""
        empty = sum(1 for path in self.paths if not path.stat().st_size)
        files = f"{len(self.paths):,} file{'s' * (len(self.paths) != 1)}{f' ({empty:,} empty)' if empty else ''}"
        return f"{self.name}: {files}, {self.size / 1e6:.1f} MB, one {self.lines} a line"

    def manifest(self) -> dict[str, object]:
        """What the data set's manifest keeps of this source."""
        return {"source": self.name, "bytes": self.size, "files": len(self.paths), "lines": self.lines}


def open_sources(specs: Sequence[str], lines: str, splitter: SentenceSplitter) -> tuple[list[Source], list[str]]:
    """Opens what ``--source`` names.

    Args:
        specs: paths, globs, or the word ``python-docs``.
        lines: "sentence", "paragraph" or "detect", for text files.
        splitter: counts the sentences of sample lines for "detect".

    Returns:
        The sources, and sentences for the person at the terminal: what was detected and what each source is.

    Raises:
        UserError: a source is not there, named twice or cannot be read.
    """
    from pretrain_data.python_docs import NAME, PythonDocs

    sources: list[Source] = []
    texts: list[TextFiles] = []
    for spec in specs:
        if spec == NAME:
            sources.append(PythonDocs())
        else:
            texts.append(TextFiles(spec, lines))
            sources.append(texts[-1])
    _refuse_repeats(specs, texts)
    for source in texts:
        source.ambiguous = _repeated(path.name for other in texts for path in other.paths)
    said = []
    if texts and lines == "detect":
        decided, why = detect_lines(texts, splitter)
        said.append(why)
        for source in texts:
            source.lines = decided
    return sources, said + [source.describe() for source in sources]


def detect_lines(sources: Sequence[TextFiles], splitter: SentenceSplitter) -> tuple[str, str]:
    """Decides from sample lines whether a line is a sentence or a paragraph.

    Returns:
        ("sentence" | "paragraph", a sentence that says what was decided and why).
    """
    paths = [path for source in sources for path in source.paths]
    each = max(50, _DETECT_LINES // len(paths))
    sample: list[str] = []
    for path in paths:
        sample += islice((line for block in _blocks(path) for line in block), each)
        if len(sample) >= _DETECT_LINES:
            break
    several = sum(1 for line in sample if len(splitter.split(line)) > 1)
    share = several / max(1, len(sample))
    decided = "paragraph" if share > _DETECT_SHARE else "sentence"
    return decided, (
        f"lines: one {decided} a line, because {share:.0%} of {len(sample):,} sample lines hold more than one sentence "
        f"(above {_DETECT_SHARE:.0%} means paragraphs; --lines overrides)"
    )


def _refuse_repeats(specs: Sequence[str], texts: Sequence[TextFiles]) -> None:
    """The same text twice would count twice and could leak into validation."""
    seen: set[Path] = set()
    for path in (path for source in texts for path in source.paths):
        if path.resolve() in seen:
            raise UserError(f"{str(path)!r} is named by more than one --source; name each file once")
        seen.add(path.resolve())
    if len(set(specs)) < len(specs):
        raise UserError(f"--source {max(specs, key=list(specs).count)!r} is given twice; name each source once")


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _blocks(path: Path) -> Iterator[list[str]]:
    """The stripped lines of each document of a file."""
    block: list[str] = []
    for line in _decoded_lines(path):
        stripped = line.strip()
        if stripped:
            block.append(stripped)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _decoded_lines(path: Path) -> Iterator[str]:
    offset = 0
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if b"\0" in raw:
                    raise UserError(
                        f"{str(path)!r} is no text: line {number} holds a NUL byte at byte {offset + raw.index(0)}; "
                        "unpack it or convert it to UTF-8 text first"
                    )
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
                offset += len(raw)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(path)!r} is not UTF-8: byte {offset + error.start} in line {number} is "
            f"0x{error.object[error.start]:02x}; convert it, for instance with iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}); check its permissions") from error
