# SPDX-License-Identifier: Apache-2.0
"""Prose out of docstrings: reStructuredText, NumPy and Google layouts to plain paragraphs.

Left out, because they are not sentences: doctests and their output, literal and fenced code blocks, tables, section
titles and their underlines, the terms of definition lists (a parameter's name and type; its description stays),
directives and the bodies of those that hold no prose (``math``, ``versionadded``, ``code-block``, ...), grammar
productions, and paragraphs that are mostly symbols, lists of names, shorter than four words, or one line that announces
what was left out (it ends in a colon). Inline markup is taken off its text.
"""

import inspect
import re
from collections.abc import Iterator

# The bodies of these directives read as ordinary paragraphs; those of all others (math, code-block, plot, versionadded
# ...) go.
_PROSE_DIRECTIVES = {
    "note",
    "warning",
    "tip",
    "important",
    "caution",
    "hint",
    "attention",
    "danger",
    "admonition",
    "topic",
}
_DIRECTIVE = re.compile(r"^\.\.(\s|$)(?:([\w:-]+?)::)?\s*(.*)$")
_UNDERLINE = re.compile(r"^([=\-~^\"'`*+#:._])\1{2,}$")
_TABLE = re.compile(r"^\s*(\+[-=+]{3,}|\|.*\|$|[=\-]{2,}(\s+[=\-]{2,})+\s*$)")
_BULLET = re.compile(r"^(?:[*+•-]|\(?\d{1,2}[.)]|\(?[a-z][.)]|\(?[ivx]{1,4}[.)])\s+(?=\S)")
_SPHINX_FIELD = re.compile(r"^:(\w+)(?:\s+[^:]*)?:\s*(.*)$")
_FENCE = re.compile(r"^(```|~~~)")
# Google style: `name (type): description` and `name: description`.
_GOOGLE_ENTRY = re.compile(
    r"^[`'\"]*\*{0,2}[\w./]+(?:\[[^\]]*\])?[`'\"]*(?:,\s*[`*]*\w+[`*]*)*(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?:\s+(?=\S)"
)
_GOOGLE_SECTION = re.compile(
    r"^(args|arguments|parameters?|keyword arg(ument)?s|returns?|yields?|raises|attributes?|examples?( usage)?|"
    r"usage|notes?|references?|see also|warnings?|todo|"
    r"side effects|inputs?|outputs?|params|kwargs|methods?|fields)\s*:{0,2}$",
    re.I,
)
_OPENING_WORDS = {"note", "notes", "warning", "returns", "return", "yields"}
# Sections whose entries are names or citations, never prose.
_DROPPED_SECTIONS = {"references", "reference", "see also", "todo"}
_INLINE = [
    (re.compile(r"\[[\w*#.-]+\]_"), ""),
    (re.compile(r":[\w:.+-]+:`([^`<]*?)\s*<[^`>]*>`"), r"\1"),
    (re.compile(r":[\w:.+-]+:`[~!]?([^`]*)`"), r"\1"),
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"\[([^\[\]]+)\]\((?:https?:)?[^()\s]*\)"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*\s](?:[^*]*[^*\s])?)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"<https?://[^>\s]*>"), ""),
    (re.compile(r"\\([*_`|])"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\s+([.,;:!?)])(?=\s|$)"), r"\1"),
]
# Leading quotes and brackets, a plain word, closing punctuation.
_PLAIN_WORD = re.compile(r"^[\"'(\[“‘]*[A-Za-z][A-Za-z'’-]*[\"')\]”’.,;:!?]*$")


def paragraphs(docstring: str) -> list[str]:
    """The prose paragraphs of a docstring, in order, each on one line without markup.

    Args:
        docstring: a docstring as it stands in the source, with its indentation.

    Returns:
        Paragraphs of at least four words, of which most are ordinary words. Empty when the docstring holds no prose.
    """
    found = (_strip_markup(text) for text in _Reader(inspect.cleandoc(docstring).expandtabs().split("\n")).read())
    return [text for text in found if is_prose(text)]


def is_prose(text: str) -> bool:
    """Whether a paragraph reads as sentences: four words or more, six in ten of them plain words, mostly letters."""
    words = text.split()
    if len(words) < 4 or not (text[0].isalnum() or text[0] in "\"'(“‘"):
        return False
    if text[-1] == ":" and ". " not in text:
        return False  # announces a code block, a formula or a list
    if text[0].islower() and not (len(words) >= 6 and text[-1] in ".!?"):
        return False  # the tail of something cut, or a bare description of a type
    if re.search(
        r"::=|>>>|^(?:Copyright|Licensed under|http|def |class |import |from \w+ import|return |@)|\w\(.*\) ?(?:->|=)",
        text,
    ):
        return False
    plain = sum(1 for word in words if _PLAIN_WORD.match(word))
    letters = sum(1 for char in text if char.isalpha())
    return plain >= 0.65 * len(words) and letters >= 0.7 * (len(text) - text.count(" "))


class _Reader:
    """Walks over the lines of a docstring and collects its paragraphs, wrapped lines joined, markup still in them."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = [*_without_fences(lines), ""]
        self._found: list[str] = []
        self._open: list[str] = []
        self._indent = 0

    def read(self) -> list[str]:
        """The paragraphs, in order."""
        position = 0
        while position < len(self._lines):
            position = self._step(position)
        return self._found

    def _close(self) -> None:
        if self._open:
            self._found.append(" ".join(self._open))
        self._open = []

    def _step(self, position: int) -> int:
        """Takes the line at `position`, alone or with what belongs to it; returns where to go on."""
        line = self._lines[position]
        stripped, indent = line.strip(), _indent(line)
        following = self._lines[position + 1] if position + 1 < len(self._lines) else ""
        directive = _DIRECTIVE.match(stripped)
        if not stripped:
            literal = bool(self._open) and self._open[-1].endswith("::")
            self._close()
            return _end_of_body(self._lines, position, self._indent) if literal else position + 1
        if directive:
            return self._directive(directive, position, indent)
        if stripped.startswith((">>>", "$ ", "In [")) or _TABLE.match(line):
            self._close()
            return _end_of_block(self._lines, position)
        if _is_underline(following, stripped) and not self._open:
            return _after_section_title(self._lines, position, stripped)
        if _UNDERLINE.match(stripped) and len(stripped) > 3:
            self._open = []  # what stood above it was a title
            return position + 1
        if _GOOGLE_SECTION.match(stripped) and (not self._open or stripped.endswith(":")):
            self._close()
            drop = stripped.endswith("::") or stripped.rstrip(":").strip().lower() in _DROPPED_SECTIONS
            return _end_of_body(self._lines, position + 1, indent) if drop else position + 1
        if _is_term(stripped, indent, following):
            self._close()
            return position + 1
        self._prose(stripped, indent)
        return position + 1

    def _directive(self, directive: re.Match[str], position: int, indent: int) -> int:
        self._close()
        if directive.group(2) not in _PROSE_DIRECTIVES:
            return _end_of_body(self._lines, position + 1, indent)
        if directive.group(3):
            self._prose(directive.group(3), indent)
        return position + 1

    def _prose(self, stripped: str, indent: int) -> None:
        item = _start_of_item(stripped)
        if item is not None or indent < self._indent:
            self._close()
        if not self._open:
            self._indent = indent
        self._open.append(stripped if item is None else item)


def _start_of_item(stripped: str) -> str | None:
    """The text of a line that opens a list item, a Google entry or a Sphinx field, without its mark; else None."""
    field = _SPHINX_FIELD.match(stripped)
    if field:
        return "" if field.group(1) in {"type", "rtype", "vartype"} else field.group(2)
    unmarked = _BULLET.sub("", stripped, count=1)
    entry = _GOOGLE_ENTRY.match(unmarked)
    # "Note: ..." and other capitalized words open a sentence; lower-case and compound names are entries.
    capitalized = entry and re.fullmatch(r"[A-Z][a-z]+: +", entry.group(0))
    if entry and (not capitalized or entry.group(0).rstrip(": ").lower() in _OPENING_WORDS):
        unmarked = unmarked[entry.end() :]
    return unmarked if unmarked != stripped else None


def _is_term(stripped: str, indent: int, following: str) -> bool:
    """A definition list's term (NumPy's `name : type`): deeper text follows and the line is no sentence."""
    if (
        not following.strip()
        or _indent(following) <= indent
        or _BULLET.match(stripped)
        or _start_of_item(stripped) is not None
    ):
        return False
    return " : " in stripped or (stripped[-1] not in ".,;!?" and len(stripped.split()) <= 6)


def _after_section_title(lines: list[str], position: int, title: str) -> int:
    """The line after a title and its underline, or after the section where those of that name hold no prose."""
    position += 2
    if title.lower() in _DROPPED_SECTIONS:
        while position + 1 < len(lines) and not (
            lines[position].strip() and _UNDERLINE.match(lines[position + 1].strip())
        ):
            position += 1
    return position


def _is_underline(line: str, title: str) -> bool:
    stripped = line.strip()
    return bool(_UNDERLINE.match(stripped)) and len(stripped) >= min(len(title), 4)


def _end_of_block(lines: list[str], position: int) -> int:
    """The next blank line."""
    while position < len(lines) and lines[position].strip():
        position += 1
    return position


def _end_of_body(lines: list[str], position: int, indent: int) -> int:
    """The next line that is not blank and not indented more than `indent`."""
    while position < len(lines) and (not lines[position].strip() or _indent(lines[position]) > indent):
        position += 1
    return position


def _without_fences(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if _FENCE.match(line.strip()):
            inside = not inside
            yield ""
        elif not inside:
            yield line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _strip_markup(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    text = text.strip()
    return text[:-1] if text.endswith("::") else text
