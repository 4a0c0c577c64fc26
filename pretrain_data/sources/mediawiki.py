# SPDX-License-Identifier: Apache-2.0
"""Dumps of MediaWiki in XML, such as Wikipedia's ``pages-articles``: the prose of their articles."""

import bz2
import re
import sys
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import mwxml
from mwxml.element_iterator import ElementIterator

from albert_jax.errors import UserError
from pretrain_data.sources.base import PART_BYTES, Document, Part, ReadLog, Span, bounded, text_lines
from pretrain_data.sources.files import (
    File,
    FileSource,
    SupportsRead,
    decompressed,
    is_compressed,
    open_binary,
    open_raw,
    reading,
)
from pretrain_data.sources.wikitext import WikitextError, paragraphs

# A dump that can only be read from its beginning is shared by up to `_MOST_STRIDES` parts, each of which reads all of
# the XML and takes the articles of its turn: reading is a seventh of the work with .bz2, and less with the others.
_MOST_STRIDES = 16
_STRIDE_BYTES = {False: 8 * 2**20, True: 2 * 2**20}  # by whether it is compressed
# One that can be entered in the middle is divided into ranges of bytes, seconds of work each.
_RANGE_BYTES = {False: PART_BYTES, True: PART_BYTES // 4}
_HEAD_BYTES = 2**20  # within which the first page begins
_BLOCK, _TAIL = 2**20, 2**12
# Where a range can be entered. Text has no "<page>", for there "<" is escaped; a stream's head is too long for chance.
_PAGE = re.compile(rb"<page>")
_BZ2_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_MARKER_BYTES = 10
_ROOT_END = b"</mediawiki>"  # in text it would be escaped
# Namespaces of articles; of media, files and categories, whose links show no text.
_ARTICLES, _HIDDEN = 0, (-2, 6, 14)
_HIDDEN_ENGLISH = ("media", "file", "image", "category")


class MediaWikiDump(FileSource):
    """Dumps of MediaWiki in XML. A document's id is ``<name>:<page id>``.

    The documents are the articles (namespace 0, no redirects; of several revisions the last); `wikitext` tells what of
    them is prose. The title is left out. Large plain dumps and ``...-multistream.xml.bz2`` are read by ranges of bytes,
    others by every part from the beginning.

    Args:
        pattern: as for `files.listed`; .bz2, .gz, .xz and .zst are decompressed.
        name: what the source is called; the ids are unique within one wiki.
    """

    kind = "MediaWiki XML"

    def __init__(self, pattern: str, name: str) -> None:
        super().__init__(pattern, "paragraph", name)

    def parts(self) -> list[Part]:
        """The parts, in order, each of one span."""
        return [Part((span,)) for file in self.files for span in self.spans(file)]

    def spans(self, file: File) -> list[Span]:
        """Ranges that begin and end anywhere, or strides, which end with the file, however long it is."""
        compressed = is_compressed(file.path)
        if file.size > _RANGE_BYTES[compressed] and _head(file.path) is not None:
            count = -(-file.size // _RANGE_BYTES[compressed])
            ends = [index * file.size // count for index in range(count + 1)]
            return [Span(file.path, ends[i], ends[i + 1], ends[i + 1] - ends[i], file.state) for i in range(count)]
        count = max(1, min(_MOST_STRIDES, -(-file.size // _STRIDE_BYTES[compressed])))
        share, rest = divmod(file.size, count)
        sizes = [share + (rest if not offset else 0) for offset in range(count)]
        return [Span(file.path, 0, sys.maxsize, sizes[i], file.state, count, i) for i in range(count)]

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """Yields a part's documents in order; see `Source.read`."""
        for span in part.spans:
            if span.end == sys.maxsize:
                with reading(span) as stream:
                    yield from self.documents(stream, span, log)
            else:
                with reading(span, open_raw) as stream:
                    pages = _Pages(stream, span)
                    yield from self.documents(pages, span, log) if pages else ()

    def documents(self, stream: "BinaryIO | _Pages", span: Span, log: ReadLog) -> Iterator[Document]:
        """Yields the documents from a span's XML; see `FileSource.documents`."""
        for article in _articles(stream, span):
            try:
                lines = article.paragraphs()
            except WikitextError as error:
                place = f"{span.path!r} page {article.title!r} (id {article.id})"
                log.refuse(place, str(error), "leave the page out of the dump", article.text.encode())
            else:
                yield from bounded(f"{self.name}:{article.id}", text_lines("\n".join(lines), log), log)


# --- articles ---------------------------------------------------------------------------------------------------------


class _Article(NamedTuple):
    """An article as it stands in a dump.

    Attributes:
        model: what `text` is, ``wikitext`` as a rule; older dumps do not tell.
        hidden: as for `wikitext.paragraphs`.
    """

    id: int
    title: str
    text: str
    model: str | None
    hidden: frozenset[str]

    def paragraphs(self) -> list[str]:
        """The article's prose.

        Raises:
            WikitextError: it has none that can be found.
        """
        if self.model not in (None, "wikitext"):
            raise WikitextError(f"is no wikitext, but {self.model}")
        return paragraphs(self.text, self.hidden)


def _articles(stream: "BinaryIO | _Pages", span: Span) -> Iterator[_Article]:
    """Yields the span's articles, of all dumps that the file is a concatenation of.

    Raises:
        UserError: the XML is cut off or damaged, something else follows a dump, or the dumps are of several wikis.
    """
    try:
        wiki, ordinal = None, -1
        for dump in _dumps(stream):
            root = ElementIterator.from_file(dump)
            if root.tag != "mediawiki":
                raise ValueError(f"its root is <{root.tag}>")
            pages = mwxml.Dump.from_element(root)
            site = (pages.site_info.name, pages.site_info.dbname)
            if wiki not in (None, site):
                raise UserError(
                    f"{span.path!r} holds dumps of several wikis, {wiki} and {site}, whose page ids are not unique; "
                    "give each of them a file and a --source of its own"
                )
            wiki = site
            names = [space.name for space in pages.site_info.namespaces or [] if space.id in _HIDDEN]
            hidden = frozenset((*_HIDDEN_ENGLISH, *(name.replace("_", " ").lower() for name in names)))
            for page in pages.pages:
                # The root would keep an empty element for each page of the dump.
                root.element.clear()
                if page.namespace != _ARTICLES or page.redirect is not None:
                    continue
                ordinal += 1
                if ordinal % span.stride == span.offset:
                    revisions = deque(page, maxlen=1)
                    content = revisions[0].slots.contents["main"] if revisions else None
                    text, model = (content.text or "", content.model) if content else ("", None)
                    yield _Article(page.id, page.title, text, model, hidden)
            for _ in root.pointer.etree_events:  # what else the parser finds before the end is an error
                pass
    except UserError:
        raise
    except Exception as error:  # mwxml raises whatever it comes upon, AttributeError among it
        where = "" if span.end == sys.maxsize else f" between bytes {span.begin} and {span.end}"
        # Some of expat's errors go on with what stands at the place.
        why = re.sub(r"(column \d+).*", r"\1", str(error), flags=re.DOTALL) or type(error).__name__
        raise UserError(
            f"{span.path!r} is no whole dump of MediaWiki{where} ({why}); compare its checksum and fetch it again"
        ) from error


class _Dump:
    """One of the dumps that a stream is a concatenation of, for a parser to `read`: its bytes to the root's end."""

    def __init__(self, stream: SupportsRead, begin: bytes) -> None:
        self._stream, self._ahead, self._ended = stream, begin, False
        self.rest = b""  # what was read behind the end

    def read(self, size: int = -1) -> bytes:
        """About so many bytes; none at the end."""
        if self._ended:
            return b""
        # The end of the root may be divided between blocks, so as many bytes as could be its beginning are held back.
        block = self._stream.read(_BLOCK if size < 0 else size)
        data = self._ahead + block
        found = data.find(_ROOT_END)
        if found >= 0 or not block:
            self._ended, held = True, found + len(_ROOT_END) if found >= 0 else len(data)
            self.rest = data[held:]
        else:
            held = max(0, len(data) - len(_ROOT_END))
        self._ahead = data[held:]
        return data[:held] if held else self.read(size)

    def close(self) -> None:
        """The stream is its owner's to close."""


def _dumps(stream: SupportsRead) -> Iterator[_Dump]:
    """The dumps of a stream; each is to be read to its end before the next. An empty stream is one that is cut off."""
    rest = b""
    while True:
        dump = _Dump(stream, rest)
        yield dump
        rest = dump.rest.lstrip()
        while not rest:
            block = stream.read(_BLOCK)
            if not block:
                return
            rest = block.lstrip()


# --- ranges of bytes --------------------------------------------------------------------------------------------------


def _head(path: str) -> bytes | None:
    """What precedes the pages of a dump that can be entered in the middle; None for others.

    A compressed dump can be entered if it consists of streams, of which the first ends with the ``<siteinfo>``: only
    then was it written so that pages are whole within streams, which archives of parallel compressors are not.
    """
    if not is_compressed(path):
        with open_binary(path) as stream:
            head, page, _ = stream.read(_HEAD_BYTES).partition(b"<page>")
        return head if page and b"<siteinfo" in head else None
    if not path.lower().endswith(".bz2"):
        return None
    decoder = bz2.BZ2Decompressor()
    with open_raw(path) as stream:
        try:
            head = decoder.decompress(stream.read(_HEAD_BYTES), _HEAD_BYTES)
        except OSError:  # reading it will tell
            return None
    whole = decoder.eof and head.rstrip().endswith(b"</siteinfo>")
    return head if whole and _BZ2_STREAM.match(decoder.unused_data) else None


class _Until:
    """What is left of a stream up to a byte of it, if one is given."""

    def __init__(self, stream: BinaryIO, end: int | None) -> None:
        self._stream, self._end = stream, sys.maxsize if end is None else end

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._end - self._stream.tell()))

    def close(self) -> None:
        """The stream is its owner's to close."""


class _Pages:
    """The XML of the pages of a range, with what precedes and follows them where that lies elsewhere, to `read`.

    The range goes from the first page, or stream of pages, that begins in the span to the first that begins behind it.
    """

    def __init__(self, stream: BinaryIO, span: Span) -> None:
        self._stream, self._span = stream, span
        self._compressed = is_compressed(span.path)
        begin, self._end = self._next(span.begin), self._next(span.end)
        self._begin = self._end if begin is None else begin
        self._blocks = self._xml()

    def __bool__(self) -> bool:
        """Whether a page begins in the span."""
        return self._begin is not None and self._begin != self._end

    def read(self, size: int = -1) -> bytes:
        """Some bytes, however many; none at the end."""
        return next(self._blocks, b"")

    def close(self) -> None:
        """The stream is its owner's to close."""

    def _next(self, offset: int) -> int | None:
        """Where the first page or stream at `offset` or behind it begins; None if there is none."""
        marker = _BZ2_STREAM if self._compressed else _PAGE
        self._stream.seek(offset)
        tail = b""
        while block := self._stream.read(_BLOCK):
            data = tail + block
            if found := marker.search(data):
                return offset + found.start()
            tail = data[1 - _MARKER_BYTES :]
            offset += len(data) - len(tail)
        return None

    def _xml(self) -> Iterator[bytes]:
        begin = self._begin or 0
        self._stream.seek(begin)
        pages: SupportsRead = _Until(self._stream, self._end)
        if self._compressed:
            pages = decompressed(pages, self._span.path, begin)
        block = pages.read(_BLOCK)
        yield _head(self._span.path) or b""
        # A stream may itself be a head, the file's or that of a dump that follows another.
        if block.lstrip().startswith((b"<mediawiki", b"<?xml")):
            yield _ROOT_END
        end = b""
        while block:
            yield block
            end = (end + block)[-_TAIL:]
            block = pages.read(_BLOCK)
        # The file's own end closes the last range, or it is cut off.
        if self._end is not None and not end.rstrip().endswith(_ROOT_END):
            yield _ROOT_END
