# SPDX-License-Identifier: Apache-2.0
"""What WikiExtractor writes: articles between ``<doc ...>`` and ``</doc>``, or, with ``--json``, one object a line."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO, NamedTuple

from pretrain_data.sources.base import BadRecordError, Document, ReadLog, Span, bounded, decoded, flaw, text_lines
from pretrain_data.sources.files import FileSource, is_blank, whole_lines
from pretrain_data.sources.wikitext import unescaped, without_remains

# MediaWiki stores no page above 2 MiB. What goes on for longer is a damaged file.
_MOST_BYTES = 64 * 2**20
# Lines outside of articles are set aside in pieces of about as much.
_STRAY_BYTES = 2**20
# The title's own quotation marks are not escaped, hence what must follow the last one.
_HEAD = re.compile(rb'<doc\s+id="([^"]*)"(?:.*?\stitle="(.*?)"(?=\s+\w+="|\s*>))?[^>]*>\s*$')
_TAIL = b"</doc>"
# What some versions write in front of headings and items: "Section::::History." and "BULLET::::- an item".
_BULLET = re.compile(r"^(?:Section|BULLET)::::(?:[-*#:;]* )?")
_NEITHER = ("is no output of WikiExtractor: it stands outside of <doc> and is no JSON object", "check the source")


class WikiExtractor(FileSource):
    """Files written by WikiExtractor, in either form. A document's id is ``<name>:<page id>``.

    The title, which begins the text in most versions, is left out; it is no sentence. Headings stay, as lines that end
    in a period. Tags, placeholders for code and formulas and rows of tables that it has left in the text are removed. A
    span holds the articles that begin in it.

    Args:
        pattern: as for `files.listed`, such as ``'extracted/**/wiki_*'``.
        name: what the source is called; the ids are unique within one wiki.
    """

    kind = "WikiExtractor output"

    def __init__(self, pattern: str, name: str) -> None:
        super().__init__(pattern, "paragraph", name)

    def documents(self, stream: BinaryIO, span: Span, log: ReadLog) -> Iterator[Document]:
        """Yields the documents of a span; see `FileSource.documents`."""
        for ordinal, record in enumerate(_records(stream, span)):
            if ordinal % span.stride != span.offset:
                continue
            try:
                ident, title, text = record.article()
            except BadRecordError as error:
                place = f"{span.path!r} byte {record.begin}"
                log.refuse(place, error.problem, error.remedy, b"\n".join(record.lines))
            else:
                yield from bounded(f"{self.name}:{ident}", _prose(title, text_lines(text, log), log), log)


def _prose(title: str, lines: Iterator[str], log: ReadLog) -> Iterator[str]:
    """The lines without the title and without the markup that some versions leave in the text."""
    for number, line in enumerate(lines):
        if not number and unescaped(line).strip() == unescaped(title).strip():
            continue
        text, removed = without_remains(_BULLET.sub("", line))
        log.markup += removed
        if text:
            yield text


# --- records ----------------------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """An article as it stands in the file, or what is none.

    Attributes:
        begin: its first byte.
        lines: of a ``<doc>`` all but the last; otherwise the JSON object, none if it is too long, or lines that are
            neither.
        whole: whether ``</doc>`` was found.
    """

    begin: int
    lines: list[bytes]
    whole: bool = False

    def article(self) -> tuple[str, str, str]:
        """The page's id, its title and its text.

        Raises:
            BadRecordError: it is no article.
        """
        if not self.lines:
            raise BadRecordError(f"is a line of more than {_MOST_BYTES:,} bytes", "extract it again")
        raw = b"\n".join(self.lines)
        content = decoded(raw)
        if content is None:
            raise BadRecordError(*flaw(raw, self.begin))
        if raw.startswith(b"{"):
            return _from_json(content)
        head = _HEAD.match(self.lines[0])
        if head is None:
            raise BadRecordError(*_NEITHER)
        if not self.whole:
            raise BadRecordError(
                f"opens <doc id={head[1].decode()!r}> without </doc> within {_MOST_BYTES:,} bytes", "extract it again"
            )
        return head[1].decode(), (head[2] or b"").decode(), content.partition("\n")[2]


def _from_json(line: str) -> tuple[str, str, str]:
    try:
        article = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"is not JSON ({error})", "extract it again") from error
    ident, title, text = (article.get(key) for key in ("id", "title", "text"))
    if not isinstance(text, str) or not isinstance(ident, str | int):
        raise BadRecordError("is JSON without an id and a text that is a string", "name such files as JSON lines")
    if re.search("[\0\ud800-\udfff]", text):
        raise BadRecordError("is no text: it holds a NUL or half a surrogate pair", "extract it again")
    return str(ident), title if isinstance(title, str) else "", text


_Lines = Iterator[tuple[int, bytes | None]]  # as `whole_lines` yields them


def _records(stream: BinaryIO, span: Span) -> Iterator[_Record]:
    """Yields the records that begin in a span, and what stands between them."""
    if not span.begin:
        found: _Lines = (
            (offset, raw) for offset, raw in whole_lines(stream, 0, _MOST_BYTES) if raw is None or raw.strip()
        )
        first = list(islice(found, 1))
        is_json = any(raw is not None and raw.startswith(b"{") for _, raw in first)
        found = chain(first, found)
    else:
        # Which form it is, only the file's beginning tells; the span may begin in the middle of an article.
        is_json = stream.read(2**12).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        # From one byte earlier: it may end a line, and then the span begins with a line of its own.
        stream.seek(span.begin - 1)
        found = whole_lines(stream, span.begin - 1, _MOST_BYTES)
        next(found, None)
    return _objects(found, span) if is_json else _articles(found, span)


def _objects(found: _Lines, span: Span) -> Iterator[_Record]:
    for offset, raw in found:
        if offset >= span.end:
            return
        if raw is None or not is_blank(raw):
            yield _Record(offset, [] if raw is None else [raw])


def _articles(found: _Lines, span: Span) -> Iterator[_Record]:
    # In the middle of a file, what precedes the first article belongs to the span before.
    inside, known = False, not span.begin
    begin, size, lines = 0, 0, list[bytes]()
    for offset, raw in found:
        if raw is not None and _HEAD.match(raw):
            if lines:
                yield _Record(begin, lines)
            if offset >= span.end:
                return
            inside = known = True
            begin, size, lines = offset, len(raw) + 1, [raw]
        elif inside and raw is not None and raw.strip() == _TAIL:
            yield _Record(begin, lines, whole=True)
            inside, lines = False, []
        elif inside or (known and (raw is None or not is_blank(raw))):
            begin, size = (begin, size) if lines else (offset, 0)
            lines.append(raw or b"")
            size += _MOST_BYTES if raw is None else len(raw) + 1
            if size > (_MOST_BYTES if inside else _STRAY_BYTES):
                yield _Record(begin, lines)
                inside, lines = False, []
    if lines:
        yield _Record(begin, lines)
