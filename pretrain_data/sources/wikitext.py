# SPDX-License-Identifier: Apache-2.0
"""Wikitext to paragraphs of prose.

Text is picked by the type of its node, since a page without its markup characters is still full of captions, table
cells and categories. Kept: running text, what links show, the items of lists, quotations. Left out:

- templates, except those of `_SHOWN`, whose text readers see in the middle of sentences;
- tables, boxes (``<div>``), galleries, footnotes, formulas, code, comments, magic words, bare addresses;
- links that show nothing or a picture: files, categories, other languages;
- headings, and whole sections that are no prose: those called as `_APPENDICES` says, with their subsections, and in
  any language those that hold list items only, more than half of whose text is links.

What a left out node leaves behind is repaired: ``( )``, ``(; born 1879)``, doubled spaces, a space before a comma.
"""

import html
import re
from collections.abc import Callable, Collection, Iterator

from mwparserfromhell.nodes import Argument, ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink
from mwparserfromhell.parser import Parser
from mwparserfromhell.wikicode import Wikicode

# Marks in the text between the parse and the end. XML 1.0 has no such characters, so that no dump holds them.
_HOLE, _ITEM, _LINK, _LINK_END = "\x01", "\x02", "\x03", "\x04"
_MARKS = re.compile(f"[{_HOLE}{_ITEM}{_LINK}{_LINK_END}]")

# MediaWiki stores no page above 2 MiB, in characters about as many.
_MOST_CHARACTERS = 8 * 2**20
# The parser reads on to the end of the page for each bracket that is left open. This product of their number and the
# page's length takes it seconds, half a minute at worst; articles leave none or a few open.
_MOST_WORK = 10**8


class WikitextError(ValueError):
    """A page that cannot be parsed; says why as the predicate of a sentence."""


def paragraphs(wikitext: str, hidden: Collection[str]) -> list[str]:
    """The paragraphs of a page, stripped, none of them empty.

    Args:
        wikitext: the page's source.
        hidden: names, in lower case, of the namespaces whose links show no text, such as ``file`` and ``category`` and
            the wiki's own words for them. Links to pictures are also known by the suffix, to languages by the code.

    Raises:
        WikitextError: the parser fails, or would take many times as long as it should.
    """
    text = _without_extensions(_MARKS.sub("", wikitext))
    kept: list[str] = []
    appendix = 0  # level of the heading of a section that is left out with its subsections
    for level, title, body in _sections(_parsed(text), _Prose(hidden)):
        if appendix and level > appendix:
            continue
        appendix = level if _cleaned(title).rstrip(" :").casefold() in _APPENDICES else 0
        if not appendix:
            kept += _prose(_lines(body))
    return kept


# --- before the parse -------------------------------------------------------------------------------------------------

# What stands between such tags is no wikitext. MediaWiki takes it out first, up to the first closing tag, and so do we:
# the parser would look for templates in it.
_EXTENSIONS = (
    "categorytree|ce|chem|dynamicpagelist|gallery|graph|hiero|imagemap|indicator|inputbox|mapframe|maplink|math|nowiki|"
    "pre|ref|references|score|section|source|syntaxhighlight|templatedata|templatestyles|timeline"
)
_OPENING = re.compile(rf"^[ \t]*<!--|<!--|<({_EXTENSIONS})(?=[\s/>])[^<>]*>", re.IGNORECASE | re.MULTILINE)
_CLOSING = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _EXTENSIONS.split("|")}
_REST_OF_LINE = re.compile(r"[ \t]*\n")
# Pairs of brackets, and what opens and closes HTML elements that need a closing tag.
_BRACKETS = (("{{", "}}"), ("[", "]"), ("{|", "|}"))
_ELEMENT = re.compile(r"<(?!br|hr|wbr|li|d[dt]|t[dhr])[a-z]", re.IGNORECASE)
_ELEMENT_END = re.compile(r"</[a-z]|/>", re.IGNORECASE)


def _without_extensions(text: str) -> str:
    """Takes out comments and what extensions draw; text under ``<nowiki>`` is escaped, so that it stays as it is."""
    out: list[str] = []
    begin = 0
    unclosed: set[str] = set()  # so that a page full of them is not searched to the end for each
    while opening := _OPENING.search(text, begin):
        out.append(text[begin : opening.start()])
        name = (opening[1] or "").lower()
        begin = opening.end()
        if not name:
            begin = _after_comment(text, opening)
        elif opening[0].endswith("/>") or name in unclosed:
            out.append(_HOLE)
        elif closing := _CLOSING[name].search(text, begin):
            out.append(_escaped(text[begin : closing.start()]) if name == "nowiki" else _HOLE)
            begin = closing.end()
        else:
            unclosed.add(name)
    return "".join([*out, text[begin:]])


def _after_comment(text: str, opening: re.Match[str]) -> int:
    end = text.find("-->", opening.end())
    if end < 0:
        return len(text)
    # A line of nothing but a comment is no blank line, which would end the paragraph.
    alone = not opening.start() or text[opening.start() - 1] == "\n"
    rest = _REST_OF_LINE.match(text, end + 3) if alone else None
    return rest.end() if rest else end + 3


def _escaped(text: str) -> str:
    """Text that the parser leaves alone; entities in it stay entities."""
    return re.sub(
        rf"{_ENTITY.pattern}|[^\w\s]", lambda found: found[0] if found[0][1:] else f"&#{ord(found[0])};", text
    )


def _parsed(text: str) -> Wikicode:
    if len(text) > _MOST_CHARACTERS:
        raise WikitextError(f"has {len(text):,} characters of wikitext, more than any wiki stores")
    unclosed = sum(max(0, text.count(opening) - text.count(closing)) for opening, closing in _BRACKETS)
    unclosed += max(0, len(_ELEMENT.findall(text)) - len(_ELEMENT_END.findall(text)))
    if unclosed * len(text) > _MOST_WORK:
        raise WikitextError(f"leaves {unclosed:,} brackets and tags open in {len(text):,} characters of wikitext")
    try:
        # Quotes for bold and italics need no parse, and are often left open.
        return Parser().parse(text, skip_style_tags=True)
    except Exception as error:  # whatever the parser raises, the next page is another
        raise WikitextError(f"has wikitext that the parser fails on ({type(error).__name__}: {error})") from error


# --- nodes to text with marks -----------------------------------------------------------------------------------------

_INLINE_NAMES = (
    "abbr|b|bdi|bdo|big|cite|code|data|dfn|em|font|i|includeonly|ins|kbd|mark|nowiki|onlyinclude|q|rb|ruby|samp|small|"
    "span|strong|sub|sup|time|tt|u|var"
)
_BLOCK_NAMES = "blockquote|center|dl|ol|p|poem|ul"
_INLINE, _BLOCK = frozenset(_INLINE_NAMES.split("|")), frozenset(_BLOCK_NAMES.split("|"))
_LIST_ITEMS = frozenset(("dd", "dt", "li"))
# Codes of languages, which are what links to other Wikipedias begin with; projects and catalogues are named likewise.
_LANGUAGE = re.compile(r"(?!(?:doi|mw|pmc|rfc|wp)$)[a-z]{2,3}(?:-[a-z]+)*|simple")
_MEDIA_FILE = re.compile(
    r":.*\.(?:djvu|flac|gif|jpe?g|mid|mp3|oga|ogg|ogv|opus|pdf|png|svg|tiff?|wav|webm|webp|xcf)$", re.IGNORECASE
)


class _Prose:
    """Renders nodes as text with marks.

    Args:
        hidden: as for `paragraphs`.
    """

    def __init__(self, hidden: Collection[str]) -> None:
        self._hidden = hidden
        self._renderers: dict[type, Callable[..., str]] = {
            Text: str,
            HTMLEntity: str,
            Wikilink: self._wikilink,
            Template: self._template,
            Tag: self._tag,
            ExternalLink: self._external_link,
            Argument: lambda argument: self.render(argument.default),
        }

    def render(self, code: Wikicode | None) -> str:
        """The text of all nodes; comments, and headings within other nodes, have none."""
        return "".join(map(self.node, code.nodes)) if code is not None else ""

    def node(self, node: object) -> str:
        renderer = self._renderers.get(type(node))
        return renderer(node) if renderer else ""

    def _wikilink(self, link: Wikilink) -> str:
        target = str(link.title).strip()
        prefix, colon, _ = target.partition(":")
        # With a colon in front it is an ordinary link to the page of a file, a category or another language.
        if colon and prefix and self._shows_nothing(prefix.strip(), target):
            return _HOLE
        shown = self.render(link.text).replace("\n", " ")
        return f"{_LINK}{shown if shown.strip() else self.render(link.title).strip().lstrip(':#')}{_LINK_END}"

    def _shows_nothing(self, prefix: str, target: str) -> bool:
        return bool(
            prefix.replace("_", " ").lower() in self._hidden
            or _LANGUAGE.fullmatch(prefix)
            or _MEDIA_FILE.search(target.partition("#")[0])
        )

    def _external_link(self, link: ExternalLink) -> str:
        shown = self.render(link.title).strip() if link.brackets else ""
        return f"{_LINK}{shown}{_LINK_END}" if shown else _HOLE

    def _tag(self, tag: Tag) -> str:
        name = str(tag.tag).strip().lower()
        if name in _LIST_ITEMS:
            # In wikitext, the item's text is what follows, to the end of the line.
            return _ITEM if tag.wiki_markup else f"\n{_ITEM}{self.render(tag.contents)}\n"
        if name in _INLINE:
            return self.render(tag.contents)
        if name in _BLOCK:
            return f"\n\n{self.render(tag.contents)}\n\n"
        return {"br": " ", "hr": "\n\n", "wbr": ""}.get(name, _HOLE)

    def _template(self, template: Template) -> str:
        name = str(template.name).strip().replace("_", " ").lower()
        if name.startswith("formatnum:"):
            return self.render(template.name).partition(":")[2].strip()
        if name in ("convert", "cvt"):
            return _converted([self.render(given.value).strip() for given in template.params if not given.showkey])
        shown = "{1}" if name.startswith("lang-") else _SHOWN.get(name, "")
        given = {str(parameter.name).strip(): parameter.value for parameter in template.params} if shown else {}

        def fill(slot: re.Match[str]) -> str:
            texts = (self.render(given.get(key)).strip() for key in slot[1].split("|"))
            return next(filter(None, texts), _HOLE)

        return re.sub(r"\{([^{}]+)\}", fill, shown) or _HOLE


# --- templates that show text -----------------------------------------------------------------------------------------

# What they show, by their names in lower case: {2} is the second argument, {1|text} the first or the one called text.
# Names that mean something else on another wiki, as the French {{s}}, a century, does, are left out.
_SHOWN = {
    # foreign words
    "lang": "{2}",
    "langx": "{2}",
    "langue": "{2}",
    "rtl-lang": "{2}",
    "script": "{2}",
    "transl": "{3|2}",
    "transliteration": "{3|2}",
    "nihongo": "{1} ({2}, {3})",
    "nihongo2": "{1}",
    "nihongo3": "{3} ({2}, {1})",
    "読み仮名": "{1}（{2}）",
    "ルビ": "{1}",
    "angbr": "⟨{1}⟩",
    # figures and dates
    "val": "{1} {u}",
    "math": "{1}",
    "mvar": "{1}",
    "circa": "c. {1}",
    "c.": "c. {1}",
    "as of": "As of {1}",
    "unité": "{1} {2}",
    "nombre": "{1} {2}",
    "date": "{1} {2} {3}",
    "date-": "{1} {2} {3}",
    "s-": "{1}{2} siècle",
    # type and links
    "nowrap": "{1}",
    "nobr": "{1}",
    "nobreak": "{1}",
    "small": "{1}",
    "smaller": "{1}",
    "em": "{1}",
    "strong": "{1}",
    "sc": "{1}",
    "sup": "{1}",
    "sub": "{1}",
    "abbr": "{1}",
    "sic": "{1}",
    "not a typo": "{1}",
    "vanchor": "{1}",
    "flag": "{1}",
    "ill": "{lt|1}",
    "interlanguage link": "{lt|1}",
    "lien": "{texte|fr|1}",
    "仮リンク": "{label|1}",
    # punctuation
    "'": "'",
    "'s": "'s",
    '"': '"{1}"',
    "ndash": "–",
    "mdash": "—",
    "snd": " – ",
    "spnd": " – ",
    "spaced ndash": " – ",
    "nbsp": " ",
    # quotations
    "quote": "\n\n{1|text|quote}\n\n",
    "blockquote": "\n\n{1|text|quote}\n\n",
    "quotation": "\n\n{1|text|quote}\n\n",
    "cquote": "\n\n{1|text|quote}\n\n",
    "zitat": "\n\n{1|text}\n\n",
    "citation bloc": "\n\n{1|text}\n\n",
}
# {{convert|30|-|40|km2}}: words between figures, and units that are written otherwise.
_RANGES = {
    "-": "–",
    "–": "–",
    "to": " to ",
    "and": " and ",
    "or": " or ",
    "by": " by ",
    "x": " × ",
    "×": " × ",
    "+/-": " ± ",
    "to about": " to about ",
}
_UNITS = {
    "sqmi": "sq mi",
    "sqft": "sq ft",
    "cuft": "cu ft",
    "C": "°C",
    "F": "°F",
    "USgal": "US gal",
    "impgal": "imp gal",
}
_POWERS = {"e3": "thousand ", "e6": "million ", "M": "million ", "e9": "billion "}
_FIGURE = re.compile(r"[-−+]?[\d.,]*\d[\d.,/⁄+ -]*")


def _converted(given: list[str]) -> str:
    """What ``{{convert}}`` shows before the bracket: figures, words between them, and the unit; "30 to 40 km"."""
    out = ""
    for index, word in enumerate(given):
        following = given[index + 1] if index + 1 < len(given) else ""
        if _FIGURE.fullmatch(word) and following:
            out += word
        elif word in _RANGES and _FIGURE.fullmatch(following):
            out += _RANGES[word]
        else:
            out += f" {_unit(word)}"
            # 5|ft|11|in goes on; in 30|km|0 the last is a precision, and otherwise a unit to convert to follows.
            if not (_FIGURE.fullmatch(following) and index + 2 < len(given)):
                return out
            out += " "
    return out


def _unit(word: str) -> str:
    power = re.match(r"e[369]|M(?=USgal)", word)
    name = word[power.end() :] if power else word
    name = _UNITS.get(name) or re.sub(r"(?<=[a-z])[23]$", lambda found: "²³"[int(found[0]) - 2], name)
    return (_POWERS[power[0]] if power else "") + name


# --- sections and lines -----------------------------------------------------------------------------------------------

# Headings of what follows an article, in lower case, by language.
_APPENDICES = frozenset(
    "|".join(
        (
            # English, German, French
            "references|notes|notes and references|footnotes|citations|sources|bibliography|works cited|external links",
            "see also|further reading|einzelnachweise|weblinks|literatur|siehe auch|quellen|anmerkungen|belege",
            "fußnoten|notes et références|références|voir aussi|bibliographie|liens externes|lien externe",
            "articles connexes|annexes",
            # Spanish, Italian, Portuguese, Dutch, Russian
            "referencias|enlaces externos|véase también|bibliografía|notas|note|collegamenti esterni|voci correlate",
            "altri progetti|bibliografia|referências|ligações externas|ver também|externe links|zie ook|bronnen",
            "примечания|литература|ссылки|см. также|источники",
            # Hindi, Chinese, Japanese, Korean, Arabic
            "सन्दर्भ|संदर्भ|बाहरी कड़ियाँ|बाहरी कड़ियां|इन्हें भी देखें|यह भी देखें|参考文献|參考文獻|参考资料|參考資料",
            "外部链接|外部連結|外部鏈接|参见|參見|参看|註釋|注释|脚注|出典|関連項目|外部リンク|注釈|같이 보기|각주",
            "외부 링크|مراجع|المراجع|وصلات خارجية|انظر أيضا|انظر أيضًا",
        )
    ).split("|")
)
# Lines of templates, tables and picture links that were left open.
_REMAINS = re.compile(r"\||\{[{|]|\}\}|!.*!!|\[\[.*\|")


def _sections(code: Wikicode, prose: _Prose) -> Iterator[tuple[int, str, str]]:
    """Yields (level, heading, text up to the next heading, with marks); what precedes the first heading has level 0."""
    level, title, body = 0, "", list[str]()
    for node in code.nodes:
        if type(node) is Heading:
            yield level, title, "".join(body)
            level, title, body = node.level, prose.render(node.title), []
        else:
            body.append(prose.node(node))
    yield level, title, "".join(body)


def _lines(text: str) -> list[str]:
    """Paragraphs and list items with marks; an item begins with the mark for one."""
    found: list[str] = []
    open_paragraph = False
    for line in re.sub(f"{_ITEM}+", f"\n{_ITEM}", text).split("\n"):
        bare = _MARKS.sub("", line).strip()
        if not bare or _REMAINS.match(bare):
            open_paragraph = False
        elif open_paragraph and not line.startswith(_ITEM):
            found[-1] += "\n" + line
        else:
            found.append(line)
            open_paragraph = not line.startswith(_ITEM)
    return found


def _prose(lines: list[str]) -> list[str]:
    """The lines without marks; none if they are a list of links."""
    if all(line.startswith(_ITEM) for line in lines):
        linked = sum(len(shown) for line in lines for shown in re.findall(f"{_LINK}(.*?){_LINK_END}", line))
        if 2 * linked > sum(len(_MARKS.sub("", line).strip()) for line in lines):
            return []
    cleaned = (_cleaned(line) for line in lines)
    return [line for line in cleaned if any(map(str.isalnum, line))]


# --- repairs ----------------------------------------------------------------------------------------------------------

_QUOTES = re.compile(r"'{2,}")
# What remains of brackets and tags that were left open; __NOTOC__ and its translations.
_OPEN_BRACKETS = re.compile(r"\[\[|\]\]|\{\{+|\}\}+")
_OPEN_TAGS = re.compile(
    rf"</?(?:{_EXTENSIONS}|{_INLINE_NAMES}|{_BLOCK_NAMES}|br|dd|del|div|dt|hr|li|noinclude|rp|rt|s|strike|table|tbody|td|"
    r"th|tr|wbr)\b[^<>]*>",
    re.IGNORECASE,
)
_MAGIC_WORD = re.compile(r"__(?:[^\s\d_a-z]+_)*[^\s\d_a-z]+__")
_ENTITY = re.compile(r"&(?:#\d+|#[xX][\da-fA-F]+|[a-zA-Z][\da-zA-Z]*);")
# -{zh-hans:计算机;zh-hant:電腦}- shows the first, -{word}- the word, -{T|...}- and other flags nothing.
_VARIANTS = re.compile(r"-\{(?!\{)([^{}]*)\}-")
_EAST_ASIAN = "\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60"
_EAST_ASIAN_LINE_END = re.compile(rf"(?<=[{_EAST_ASIAN}])({_HOLE}*)\n(?={_HOLE}*[{_EAST_ASIAN}])")
# Spaces and what separates the parts of a list.
_SEPARATORS = r"\s,;:、，；：·،؛"
_STOPS = ".!?。！？।؟۔"
_EMPTIED = re.compile(rf"[(（\[⟨][{_SEPARATORS}]*[/–-]?{_HOLE}[{_SEPARATORS}/–{_HOLE}-]*[)）\]⟩]")
_AROUND_HOLES = re.compile(rf"(?<![{_SEPARATORS}{_HOLE}])[{_SEPARATORS}]*+{_HOLE}[{_SEPARATORS}{_HOLE}]*+")
_SPACE_BEFORE_STOP = re.compile(r" +(?=[,.](?: |$))")


def _cleaned(line: str) -> str:
    """A line with marks as readers see it."""
    text = re.sub(f"[{_ITEM}{_LINK}{_LINK_END}]", "", line)
    text = "\n".join(map(_without_quotes, text.split("\n")))
    for remains in (_OPEN_BRACKETS, _OPEN_TAGS, _MAGIC_WORD):
        text = remains.sub("", text)
    text = _VARIANTS.sub(_first_variant, unescaped(text)).replace("\xad", "")
    return _closed(re.sub(r"\s+", " ", _EAST_ASIAN_LINE_END.sub(r"\1", text)))


def _closed(text: str) -> str:
    """A line without holes, and without the brackets, spaces and separators that they leave."""
    for _ in range(3):  # brackets in brackets
        text = _EMPTIED.sub(_HOLE, text)
    text = _AROUND_HOLES.sub(_mended, text)
    return re.sub(" {2,}", " ", _SPACE_BEFORE_STOP.sub("", text)).strip()


def _mended(gap: re.Match[str]) -> str:
    """What stays of a hole, or several, with the spaces and separators on both sides.

    "(; born" becomes "(born", "Greek: ; born" becomes "Greek; born" and "south of  ." becomes "south of.".
    """
    preceding, following = gap.string[: gap.start()][-1:], gap.string[gap.end() : gap.end() + 1]
    before, *_, after = gap[0].split(_HOLE)
    if not following:
        return before.rstrip()
    if preceding in "(（" or following in f")）{_STOPS}":  # or begins the line
        return ""
    if after.strip():
        return after.lstrip()
    return before.rstrip() + " " * (" " in gap[0])


# What WikiExtractor puts where code and formulas stood, and rows of tables that it takes for text.
_PLACEHOLDER = re.compile(r"\b(?:codice|formula)_\d+\b")
_SPACE = re.compile(r"<br\s*/?>|&nbsp;", re.IGNORECASE)
_LINK_TAG = re.compile(r"<a\s+href=[^<>]*>|</a>", re.IGNORECASE)
_TABLE_ROW = re.compile(r"^\s*(?:\{\||\|[-}+]|[!|](?![!?.\s]*$).*(?:\|\||!!|=\s*\"))|\|\|.*\|\||\b(?:col|row)span\s*=")


def without_remains(line: str) -> tuple[str, int]:
    """A line of text that other programs have extracted, without the markup that they have left in it.

    Returns:
        The line, empty if it is a row of a table, and how many tags, brackets, magic words and placeholders went.
    """
    text, count = unescaped(line), 0
    if _TABLE_ROW.search(text):
        return "", 1
    for remains, instead in (
        (_SPACE, " "),
        (_PLACEHOLDER, _HOLE),
        (_LINK_TAG, ""),
        (_OPEN_TAGS, ""),
        (_OPEN_BRACKETS, ""),
        (_MAGIC_WORD, ""),
    ):
        text, found = remains.subn(instead, text)
        count += found
    if not count:
        return text.strip(), 0
    return _closed(re.sub(r"\s+", " ", text)), count


def unescaped(text: str) -> str:
    """Characters for HTML entities that end in a semicolon; ``AT&T`` and ``&copy=`` stay."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def _without_quotes(line: str) -> str:
    """A line without the quotes for italics, bold and both, which are two, three and five.

    Four are an apostrophe and bold, and so are those beyond five. Where neither italics nor bold is closed, as in
    ``l'''Yonne''``, MediaWiki takes a bold one for an apostrophe and italics, by choice one behind a single letter.
    """
    runs = list(_QUOTES.finditer(line))
    counts = [len(run[0]) for run in runs]
    bold, italic = (sum(count >= 5 or count in of for count in counts) for of in ((3, 4), (2,)))
    apostrophes = ["'" * (1 if count == 4 else max(0, count - 5)) for count in counts]
    threes = [index for index, count in enumerate(counts) if count == 3]
    if bold % 2 and italic % 2 and threes:
        begins = [runs[index].start() for index in threes]
        ranks = [(line[:begin][-1:] in ("", " "), line[:begin][-2:-1] not in ("", " ")) for begin in begins]
        apostrophes[threes[ranks.index(min(ranks))]] = "'"
    replacements = iter(apostrophes)
    return _QUOTES.sub(lambda _: next(replacements), line) if runs else line


def _first_variant(markup: re.Match[str]) -> str:
    flags, bar, rest = markup[1].rpartition("|")
    if bar and flags.strip() not in ("", "A", "R", "S"):
        return _HOLE
    return rest.split(";")[0].rpartition(":")[2].strip()
