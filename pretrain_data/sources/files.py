# SPDX-License-Identifier: Apache-2.0
"""Files as sources read them: local or in an object store, compressed or not, whole or in spans, line by line."""

import bz2
import glob
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol

import zstandard

from albert_jax.errors import UserError
from albert_jax.remote import exists, filesystem, is_remote, named_refusals
from pretrain_data.sources.base import MAX_LINE_BYTES, PART_BYTES, Document, Part, ReadLog, Span, cut

# Compressed bytes that are about a part of text; a larger archive is shared by up to `MAX_STRIDE` parts. Each of them
# decompresses all of it, so more would only keep more processors busy with the same work.
COMPRESSED_PART_BYTES = 16 * 2**20
MAX_STRIDE = 4
_BLOCK = 2**20  # bytes read at a time
_LARGEST_BLOCK = 32 * 2**20
_BOM = b"\xef\xbb\xbf"
# What an object store tells of an object's version; the first that it has is used.
_VERSIONS = ("generation", "etag", "ETag", "mtime", "last_modified", "LastModified", "updated", "created")


# --- names and states -------------------------------------------------------------------------------------------------


class File(NamedTuple):
    """A file when it was listed: its size in bytes, and what tells that it is still the same (`Span.state`)."""

    path: str
    size: int
    state: str


def expand(pattern: str) -> list[str]:
    """The paths of `listed`."""
    return [file.path for file in listed(pattern)]


def listed(pattern: str) -> list[File]:
    """The files that a path or a glob names (``**`` is understood), in the order of their names.

    Args:
        pattern: local, or an object store's (``gs://bucket/corpus/*.txt``). A name with ``*`` or ``[`` in it that is a
            file's own is that file.

    Raises:
        UserError: no such file, the glob matches none, or what is there is no regular file.
    """
    with _told_plainly(pattern):
        found = _in_store(pattern) if is_remote(pattern) else _on_disk(pattern)
    if not found and glob.has_magic(pattern):
        raise UserError(f"no file matches {pattern!r}; quote the pattern and check it with ls")
    if not found:
        raise UserError(f"there is no file {pattern!r}; give --source a file, a quoted glob or the word python-docs")
    for kind, file in found:
        if kind not in ("file", "directory"):
            raise UserError(
                f"{file.path!r} is no regular file; a corpus is read several times, so write the text to a file first"
            )
    # Folders are part of what ``**`` matches, and no text.
    files = [file for kind, file in found if kind == "file"]
    if not files:
        folder = found[0][1].path
        raise UserError(f"{folder!r} is a folder, not a file; name its files by a quoted glob such as '{folder}/*.txt'")
    return files


def look_at(path: str) -> File:
    """The file's size and state.

    Raises:
        UserError: it is gone, or cannot be read.
    """
    with _told_plainly(path):
        found = _object(path, filesystem(path).info(path)) if is_remote(path) else _status(path, os.stat(path))
    return found[1]


def _on_disk(pattern: str) -> list[tuple[str, File]]:
    """(kind, file) of whatever a local pattern matches."""
    try:
        os.lstat(pattern)
        paths = [pattern]
    except PermissionError:
        raise
    except OSError:
        paths = sorted(glob.glob(pattern, recursive=True))
    # A link to nothing stands for a text that is missing.
    return [
        _status(path, os.stat(path)) if os.path.exists(path) else ("dangling link", File(path, 0, "")) for path in paths
    ]


def _status(path: str, status: os.stat_result) -> tuple[str, File]:
    kind = "file" if stat.S_ISREG(status.st_mode) else "directory" if stat.S_ISDIR(status.st_mode) else "other"
    return kind, File(path, status.st_size, f"{status.st_size} bytes, modified {status.st_mtime_ns} ns")


def _in_store(pattern: str) -> list[tuple[str, File]]:
    """(kind, file) of whatever a pattern matches in an object store."""
    store = filesystem(pattern)
    if exists(pattern):
        return [_object(pattern, store.info(pattern))]
    found = store.glob(pattern, detail=True) if glob.has_magic(pattern) else {}
    return [_object(store.unstrip_protocol(path), found[path]) for path in sorted(found)]


def _object(path: str, info: Mapping[str, Any]) -> tuple[str, File]:
    size = int(info["size"] or 0)
    name = next((name for name in _VERSIONS if info.get(name)), "no version")
    value = info.get(name, "")
    version = f"{name} {value.timestamp() if isinstance(value, datetime) else value}"  # listings may differ in the type
    return info["type"], File(path, size, f"{size} bytes, {version}")


def check_unchanged(span: Span) -> None:
    """Compares the file with what it was when it was listed.

    Raises:
        UserError: it differs, or is gone.
    """
    state = look_at(span.path).state
    if state != span.state:
        raise UserError(
            f"{span.path!r} changed while it was read (it had {span.state}; it has {state}); copy it first and build "
            "from the copy"
        )


@contextmanager
def _told_plainly(path: str) -> Iterator[None]:
    """Turns what the system or an object store says of a file into a sentence."""
    try:
        with named_refusals(path):
            yield
    except OSError as error:
        remedy = "check its permissions"
        if isinstance(error, FileNotFoundError):
            remedy = "put it back, or name the files that are there"
        raise UserError(f"{path!r} cannot be read ({error.strerror or error}); {remedy}") from error


# --- bytes ------------------------------------------------------------------------------------------------------------


class _Codec(NamedTuple):
    """A kind of archive.

    Attributes:
        tool: the program that checks it.
        new: makes the decoder of one member, stream or frame; archives are concatenations of them.
        feed: compressed bytes given to it at once.
        limit: most bytes that it may return at once, where it can be told; a small `feed` bounds the others.
        padding: what may stand between members and at the end.
    """

    tool: str
    new: Callable[[], Any]
    feed: int
    limit: tuple[int, ...]
    padding: bytes


# gzip expands at most a thousandfold. A block of zstd is 128 KiB in as little as 4 bytes, hence the small feed.
# Archives made by zstd --long=31 need its largest window.
_CODECS = {
    ".gz": _Codec("gzip", lambda: zlib.decompressobj(wbits=31), 2**12, (), b"\0"),
    ".xz": _Codec("xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), 2**16, (_BLOCK,), b"\0"),
    ".bz2": _Codec("bzip2", bz2.BZ2Decompressor, 2**16, (_BLOCK,), b""),
    ".zst": _Codec("zstd", lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(), 2**8, (), b""),
}
COMPRESSED_SUFFIXES = tuple(_CODECS)


class SupportsRead(Protocol):
    """Whatever bytes can be read from, one after the other."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""

    def close(self) -> None:
        """Lets go of it."""


def is_compressed(path: str) -> bool:
    """Whether the suffix is that of an archive: .gz .xz .bz2 .zst."""
    return path.lower().endswith(COMPRESSED_SUFFIXES)


def open_raw(path: str) -> BinaryIO:
    """Opens a file, local or in an object store, for reading as it is: a buffered and seekable stream.

    Raises:
        UserError: it cannot be opened; later, from an object store's stream: it cannot be read.
    """
    with _told_plainly(path):
        file: Any = _RemoteFile(path) if is_remote(path) else open(path, "rb", buffering=0)  # noqa: SIM115
    return io.BufferedReader(file, _BLOCK)


def open_binary(path: str) -> BinaryIO:
    """Opens a file for reading, `decompressed` where its suffix says so.

    Returns:
        A buffered stream, seekable unless it is decompressed.

    Raises:
        UserError: as `open_raw`.
    """
    stream = open_raw(path)
    return decompressed(stream, path) if is_compressed(path) else stream


def decompressed(stream: SupportsRead, path: str, begin: int = 0) -> BinaryIO:
    """The contents of an archive, or of whole members of one, from where a stream of its bytes stands to its end.

    Args:
        stream: of bytes; closed with what is returned.
        path: the archive's, whose suffix tells the format.
        begin: where in the archive the stream stands, for what an error says.

    Returns:
        A buffered stream. All members are read, and their checksums checked.

    Raises:
        UserError: later, from the stream: the archive is damaged or cut off.
    """
    codec = _CODECS[os.path.splitext(path)[1].lower()]
    return io.BufferedReader(_Decompressed(stream, path, codec, begin), _BLOCK)


class _RemoteFile(io.RawIOBase):
    """An object of a store, with errors as sentences."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = filesystem(path).open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _told_plainly(self._path):
            count = int(self._file.readinto(buffer))
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Decompressed(io.RawIOBase):
    """The contents of an archive, read from its beginning to its end.

    The standard library's own readers stop without a word at what follows a bz2 or xz stream and is not another; here
    whatever is not decoded is an error.
    """

    def __init__(self, file: SupportsRead, path: str, codec: _Codec, begin: int) -> None:
        self._file, self._path, self._codec = file, path, codec
        self._decoder = codec.new()
        self._fed = b""  # read from the file, not yet given to the decoder
        self._ready = memoryview(b"")
        self._begin, self._read, self._decoded = begin, 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._decoder.eof and not self._next_member():
                return 0
            self._decode()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _more(self) -> bytes:
        data = self._file.read(self._codec.feed)
        self._read += len(data)
        return data

    def _next_member(self) -> bool:
        """Goes on to the next member; False at the end of the file."""
        data = self._decoder.unused_data or self._more()
        while data and not data.lstrip(self._codec.padding):
            data = self._more()
        self._fed = data.lstrip(self._codec.padding)
        if self._fed:
            self._decoder = self._codec.new()
        return bool(self._fed)

    def _decode(self) -> None:
        data = b""
        if getattr(self._decoder, "needs_input", True):
            data, self._fed = self._fed or self._more(), b""
            if not data:
                raise self._error("is cut off")
        try:
            decoded = self._decoder.decompress(data, *self._codec.limit)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, zstandard.ZstdError) as error:
            raise self._error(f"is damaged ({error})") from error
        self._decoded += len(decoded)
        self._ready = memoryview(decoded)

    def _error(self, what: str) -> UserError:
        of_text = "" if self._begin else f", byte {self._decoded} of its text"
        return UserError(
            f"{self._path!r} {what} near byte {self._begin + self._read} of the archive{of_text}; check it with "
            f"{self._codec.tool} -t and fetch or pack it again"
        )

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def unchanged(span: Span) -> Iterator[None]:
    """Sees to it that a span's file is the one that was listed, before it is read and after.

    Raises:
        UserError: it changed or cannot be read; also what is raised within.
    """
    check_unchanged(span)
    try:
        with _told_plainly(span.path):
            yield
    except UserError:
        check_unchanged(span)  # a file that is being written looks damaged; that it changes is the better explanation
        raise
    check_unchanged(span)


@contextmanager
def reading(span: Span, opener: Callable[[str], BinaryIO] = open_binary) -> Iterator[BinaryIO]:
    """Opens a span's file by `open_binary` or `open_raw`, and sees to it that it is `unchanged`."""
    with unchanged(span), opener(span.path) as stream:
        yield stream


# --- lines ------------------------------------------------------------------------------------------------------------


# The first byte of all that Unicode takes for white space.
_SPACES = frozenset(b"\t\n\v\f\r\x1c\x1d\x1e\x1f \xc2\xe1\xe2\xe3")


def is_blank(raw: bytes) -> bool:
    """Whether a line is empty or white space only, in Unicode's sense."""
    return not raw or (raw[0] in _SPACES and not raw.decode("utf-8", "replace").strip())


def lines(stream: BinaryIO, log: ReadLog, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    r"""Yields the lines from where a stream stands, in bounded memory.

    ``\n``, ``\r\n`` and a lone ``\r`` end a line. A line longer than `MAX_LINE_BYTES` comes in pieces, cut at white
    space or, where there is none, between characters, and is counted in `log.cut_lines` just before its first piece.
    Pieces of white space are left out, so that a blank line in the middle of a line is none.

    Args:
        stream: buffered; its reads are as long as asked for.
        log: counts.
        offset: bytes before the first line; a byte-order mark at 0 is taken off.

    Yields:
        (byte offset of the line or piece, its bytes without the line's end).
    """
    begin = offset  # of the line that the piece belongs to
    in_pieces = False
    for found, cut_some in _batches(stream, MAX_LINE_BYTES):
        if not cut_some and begin == offset > 0:
            for line in found:  # the ordinary case, and the quick one
                yield offset, line.rstrip(b"\r\n")
                offset += len(line)
            begin = offset
            continue
        for line in found:
            raw = line.rstrip(b"\r\n")
            ends = len(raw) < len(line)
            if offset == 0:
                raw = raw.removeprefix(_BOM)
            if ends and begin == offset:
                yield offset, raw
            elif not is_blank(raw):
                log.cut_lines += not in_pieces
                in_pieces = True
                yield offset, raw
            elif ends and not in_pieces:
                yield begin, b""
            offset += len(line)
            if ends:
                begin, in_pieces = offset, False


def whole_lines(
    stream: BinaryIO, offset: int, limit: int, end: int = sys.maxsize
) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines as `lines` does, none of them cut.

    Args:
        stream: as for `lines`.
        offset: bytes before the first line.
        limit: the longest line in bytes.
        end: a line longer than `limit` is not read beyond this byte, as if nothing followed.

    Yields:
        (byte offset, the line's bytes without its end, or None for a line longer than `limit`).
    """
    begin = offset
    for found, _ in _batches(stream, limit):
        for line in found:
            raw = line.rstrip(b"\r\n")
            ends = len(raw) < len(line)
            if offset == 0:
                raw = raw.removeprefix(_BOM)
            if begin == offset:
                yield begin, raw if ends else None
            offset += len(line)
            if ends:
                begin = offset
            elif offset >= end:
                return


def _batches(stream: BinaryIO, limit: int) -> Iterator[tuple[list[bytes], bool]]:
    """Yields runs of lines with their ends; the last line of the stream gets an end where it has none.

    Yields:
        (lines, whether any of them is a piece of a line longer than `limit`; only its last piece has an end).
    """
    tail = b""
    # Reads grow with the unfinished line, or a long one would be copied again for every block.
    while block := stream.read(min(max(_BLOCK, len(tail)), _LARGEST_BLOCK)):
        found = (tail + block).splitlines(keepends=True)
        # After "\r" the next block may begin with the "\n" that belongs to it.
        tail = b"" if found[-1].endswith(b"\n") else found.pop()
        if long := max(map(len, found), default=0) > limit:
            found = [piece for line in found for piece in cut(line, limit)]
        yield found, long
        if len(tail) > limit:
            *found, tail = cut(tail, limit)
            yield found, True
    if tail:
        yield [tail if tail.endswith(b"\r") else tail + b"\n"], False


# --- sources of files -------------------------------------------------------------------------------------------------


def byte_ranges(file: File) -> list[Span]:
    """Spans of at most `PART_BYTES` that cover a file; none for an empty one."""
    count = -(-file.size // PART_BYTES)
    ends = [index * file.size // count for index in range(count)] + [file.size]
    return [Span(file.path, begin, end, end - begin, file.state) for begin, end in pairwise(ends)]


def strides(file: File) -> list[Span]:
    """Spans that share the documents of a file which can only be read from its beginning, such as an archive."""
    count = max(1, min(MAX_STRIDE, -(-file.size // COMPRESSED_PART_BYTES)))
    # How long it is when decompressed is not known: the spans end with it.
    share, rest = divmod(file.size, count)
    return [
        Span(file.path, 0, sys.maxsize, share + (rest if not offset else 0), file.state, count, offset)
        for offset in range(count)
    ]


def gather(spans: Iterable[Span]) -> list[Part]:
    """Parts of about `PART_BYTES` of text, each of consecutive spans."""
    parts: list[Part] = []
    together: list[Span] = []
    weight = 0.0
    for span in spans:
        added = span.size * (PART_BYTES / COMPRESSED_PART_BYTES if is_compressed(span.path) else 1)
        if together and weight + added > PART_BYTES:
            parts.append(Part(tuple(together)))
            together, weight = [], 0.0
        together.append(span)
        weight += added
    return [*parts, Part(tuple(together))] if together else parts


class FileSource:
    """A source whose documents stand in files; a subclass says what a file holds.

    Args:
        pattern: as for `listed`.
        lines: "sentence" or "paragraph", what a line of a document is.
        name: what the source is called.

    Attributes:
        kind: what such files are called, for the person at the terminal.
        files: in order, as they were when they were listed.
        ambiguous: names of files that occur more than once in the corpus; their documents' ids hold the whole path.

    Raises:
        UserError: as `listed`.
    """

    kind: ClassVar[str]

    def __init__(self, pattern: str, lines: str, name: str) -> None:
        self.pattern, self.lines, self.name = pattern, lines, name
        self.files = listed(pattern)
        self.ambiguous: set[str] = set()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    def label(self, path: str) -> str:
        """What a file is called in the ids of its documents."""
        return path if Path(path).name in self.ambiguous else Path(path).name

    def parts(self) -> list[Part]:
        """The parts, in order: large files are divided, small ones taken together."""
        return gather(span for file in self.files for span in self.spans(file))

    def spans(self, file: File) -> list[Span]:
        """How a file is divided."""
        return strides(file) if is_compressed(file.path) else byte_ranges(file)

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """Yields a part's documents in order; see `Source.read`."""
        for span in part.spans:
            with reading(span) as stream:
                yield from self.documents(stream, span, log)

    def documents(self, stream: BinaryIO, span: Span, log: ReadLog) -> Iterator[Document]:
        """Yields the documents of a span from its opened file, which stands at its beginning."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line: how many files and bytes, and what a line is taken for."""
        empty = sum(1 for file in self.files if not file.size)
        count = f"{len(self.files):,} file{'s' * (len(self.files) != 1)}{f' ({empty:,} empty)' if empty else ''}"
        return (
            f"{self.name}: {count} of {self.kind}, {self.size / 1e6:.1f} MB, one {self.lines} a line ({self.pattern})"
        )

    def manifest(self) -> dict[str, object]:
        """What the data set's manifest keeps of this source."""
        return {
            "source": self.name,
            "kind": self.kind,
            "pattern": self.pattern,
            "bytes": self.size,
            "files": len(self.files),
            "lines": self.lines,
        }
