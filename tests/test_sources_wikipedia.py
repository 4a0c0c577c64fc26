# SPDX-License-Identifier: Apache-2.0
"""Wikipedia: prose from wikitext in several languages, dumps in every shape they come in, WikiExtractor's output."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import random
from collections.abc import Iterable
from xml.sax.saxutils import escape

import fsspec
import pytest
import zstandard

from albert_jax.errors import UserError
from pretrain_data.sources import mediawiki, wikiextractor, wikitext
from pretrain_data.sources.base import QUARANTINE, Document, ReadLog, Source
from pretrain_data.sources.mediawiki import MediaWikiDump
from pretrain_data.sources.wikiextractor import WikiExtractor
from pretrain_data.sources.wikitext import WikitextError, paragraphs

# The local names of the namespaces -2, 6 and 14.
NAMESPACES = {
    "en": ("Media", "File", "Category"),
    "de": ("Medium", "Datei", "Kategorie"),
    "fr": ("Média", "Fichier", "Catégorie"),
    "hi": ("मीडिया", "चित्र", "श्रेणी"),
    "zh": ("Media", "File", "Category"),
    "ja": ("メディア", "ファイル", "Category"),
}
ENGLISH = ("media", "file", "image", "category")


def prose(text: str, language: str = "en") -> list[str]:
    return paragraphs(text, {*ENGLISH, *(name.lower() for name in NAMESPACES[language])})


def collect(source: Source, log: ReadLog | None = None) -> list[Document]:
    log = log or ReadLog()
    return [document for part in source.parts() for document in source.read(part, log)]


# --- wikitext: whole articles -----------------------------------------------------------------------------------------

ENGLISH_ARTICLE = """\
{{Short description|River in England}}
{{Use British English|date=May 2020}}
{{Infobox river
| name        = River Wye
| image       = [[File:Wye at Hay.jpg|300px]]
| length      = {{convert|250|km|mi|abbr=on}}
| mouth       = {{plainlist|
* [[River Severn|Severn]]
* {{flag|England}}
}}
}}
[[File:River Wye map.svg|thumb|upright=1.2|Map of the [[River Wye|Wye]] and its
{{circa|1900}} tributaries<ref>Old map.</ref>]]
The '''River Wye''' ({{IPAc-en|w|aɪ}}; {{lang-cy|Afon Gwy}}) is the [[List of rivers of England|fourth-longest river]]
in the UK, stretching some {{convert|250|km|mi|0}} from its source on [[Plynlimon]] in mid Wales to the
[[Severn Estuary]].<ref name="ea">{{cite web |url=http://example.org/a?b=1&c=2 |title=The Wye {{!}} Facts
|work=[[BBC]]}}</ref><!--
 a comment --> It is a [[Site of Special Scientific Interest]].<ref name="ea" />{{citation needed|date=May 2020}}

For much of its length the river forms part of the ''border'' between England and Wales ( {{IPA|x}} ).&nbsp;The
word is {{lang|cy|gwy}}, &quot;wandering&quot;.

== Course ==
{{main|Course of the River Wye}}
{| class="wikitable" style="float:right"
|+ Gauging stations {{small|(2020)}}
! Station !! Flow
|-
| [[Hereford]] || {{val|41.2}}
|-
| {| class="nested"
| nested
|}
|}
The source of the Wye is in the [[Welsh language|Welsh]] mountains; it flows past:
* [[Rhayader]], the first town, {{convert|5|-|6|mi|km}} on;
* [[Hay-on-Wye]];
** and its ''bookshops''.

<gallery mode="packed">
File:A.jpg|The [[Wye]] at A
File:B.jpg
</gallery>
<div class="quotebox">A box '''of''' text.</div>
<blockquote>The river glideth at his own sweet will.</blockquote>
:<math>Q = A \\times v</math>

=== Pollution ===
In 2020, 60&nbsp;% of the phosphate came from farms<ref>A {{cite|b}}</ref> .

== Bridges ==
* [[Old Wye Bridge, Chepstow]]
* [[Severn Bridge]] (1966)
* [http://bridges.example.org Bridges of the Wye]

== See also ==
* [[Rivers of the United Kingdom]]

== References ==
{{reflist|30em}}
Some note about a source.

=== Sources ===
* {{cite book|last=A}}

== External links ==
* [http://www.wyevalley.example.org Wye Valley, the official site of the area of outstanding natural beauty]
* {{commons category-inline|River Wye}}
{{Rivers of Wales}}
{{DEFAULTSORT:Wye, River}}
[[Category:Rivers of England]]
[[Category:River Wye| ]]
[[de:Wye]]
[[zh-min-nan:Wye Hô]]
"""

GERMAN_ARTICLE = """\
{{Begriffsklärungshinweis}}
[[Datei:Albert Einstein Head.jpg|mini|hochkant|Albert Einstein, 1947<br />
[[Signatur]]: [[Datei:Einstein sig.svg|100px]]]]
'''Albert Einstein''' (* [[14. März]] [[1879]] in [[Ulm]]; † [[18. April]] [[1955]] in
[[Princeton (New Jersey)|Princeton]], [[New Jersey]]) war ein gebürtiger [[Deutschland|deutscher]] [[Physiker]].<ref>
{{Literatur |Autor=A. B. |Titel=„C“}}</ref>
Er schrieb: {{"|Gott würfelt nicht.}} {{Absatz}}

{{Zitat|Phantasie ist wichtiger als Wissen.|Autor=Einstein}}

__KEIN_INHALTSVERZEICHNIS__
== Leben ==
=== Kindheit ===
{{Hauptartikel|Kindheit}}
Einsteins Eltern (engl. {{enS|parents}}) zogen 1880 nach [[München]]<nowiki/>s
Vorort, z.&nbsp;B. wegen des Ver&shy;dienstes.

== Literatur ==
* Abraham Pais: ''Raffiniert ist der Herrgott …'' Spektrum, Heidelberg 2000, ISBN 3-8274-0529-7.
== Weblinks ==
{{Commonscat}}
* {{DNB-Portal|118529579}}
== Einzelnachweise ==
<references />
{{Normdaten|TYP=p}}
[[Kategorie:Physiker (20. Jahrhundert)]]
"""

FRENCH_ARTICLE = """\
{{Voir homonymes|Seine}}
{{Infobox Cours d'eau
 | nom = Seine
 | image = Fichier:Seine.jpg
}}
[[Fichier:Paris Seine.jpg|vignette|La Seine à [[Paris]], vue {{date-|4 mai 2010}}.]]
La '''Seine''' {{API|sɛn}} est un [[fleuve]] français, long de
{{unité|776.6|kilomètres}}<ref>{{Lien web|titre=Sandre}}.</ref>,
qui coule depuis le {{s-|XIX|e}} ; l'''Yonne'' la rejoint{{,}}<ref name=b/>{{refnec}} le {{date|4|mai|1890}}.

Sa population est de {{formatnum:2200000}} habitants (voir {{lien|langue=en|trad=Thames|fr=Tamise|texte=la Tamise}} !).

== Voir aussi ==
=== Bibliographie ===
* {{Ouvrage|auteur1=X}}
=== Articles connexes ===
* [[Liste]] des fleuves
{{Portail|Paris}}
[[Catégorie:Fleuve en France]]
"""

HINDI_ARTICLE = """\
{{ज्ञानसन्दूक भारत के क्षेत्र | नाम = भारत }}
[[चित्र:India map.svg|अंगूठाकार|भारत का [[मानचित्र]]]]
__विषय_सूची__
'''भारत''' (आधिकारिक नाम: भारत गणराज्य, {{lang-en|Republic of India}}) [[दक्षिण एशिया]] में
स्थित एक [[देश]] है।<ref>{{cite web|title=भारत}}</ref> यह
[[क्षेत्रफल]] में सातवाँ सबसे बड़ा देश है ({{IPA|x}})।

== इतिहास ==
* [[सिन्धु घाटी सभ्यता]]
* [[वैदिक सभ्यता]]

== सन्दर्भ ==
{{टिप्पणीसूची}}
यह पाठ नहीं रहता।

[[श्रेणी:भारत]]
"""

CHINESE_ARTICLE = """\
{{NoteTA|G1=IT}}
-{T|zh:计算机;zh-tw:電腦}-
[[File:Computer.jpg|thumb|一台-{zh-hans:计算机;zh-hant:電腦}-]]
'''电子计算机'''（{{lang-en|computer}}；{{IPA|x}}），简称'''-{zh-hans:计算机;zh-hant:電腦}-'''，
是一种[[電子學|电子]]设备。<ref>{{cite book|title=书}}</ref>
它按照-{指令}-处理[[数据]]，
也称{{lang|en|brain}}（ ）。

== 参见 ==
* [[软件]]
== 參考文獻 ==
{{Reflist}}
[[Category:计算机]]
"""

JAPANESE_ARTICLE = """\
{{Otheruses|山}}
[[ファイル:Fuji.jpg|サムネイル|[[富士山]]の姿]]
'''富士山'''（ふじさん、{{Lang-en|Mount Fuji}}、{{IPA|x}}）は、[[日本]]の
{{読み仮名|活火山|かつかざん}}である{{Sfn|山田|2010|p=3}}。
標高は{{convert|3776.12|m|ft}}、
{{仮リンク|成層火山|en|Stratovolcano|label=成層火山}}とされる<ref group="注">注。</ref>。

== 脚注 ==
{{脚注ヘルプ}}
== 関連項目 ==
* [[日本の山一覧]]
[[Category:日本の山]]
"""

ARTICLES = {
    "en": (
        ENGLISH_ARTICLE,
        [
            "The River Wye (Afon Gwy) is the fourth-longest river in the UK, stretching some 250 km from its source on "
            "Plynlimon in mid Wales to the Severn Estuary. It is a Site of Special Scientific Interest.",
            "For much of its length the river forms part of the border between England and Wales. The word is gwy, "
            '"wandering".',
            "The source of the Wye is in the Welsh mountains; it flows past:",
            "Rhayader, the first town, 5–6 mi on;",
            "Hay-on-Wye;",
            "and its bookshops.",
            "The river glideth at his own sweet will.",
            "In 2020, 60 % of the phosphate came from farms.",
        ],
    ),
    "de": (
        GERMAN_ARTICLE,
        [
            "Albert Einstein (* 14. März 1879 in Ulm; † 18. April 1955 in Princeton, New Jersey) war ein gebürtiger "
            'deutscher Physiker. Er schrieb: "Gott würfelt nicht."',
            "Phantasie ist wichtiger als Wissen.",
            "Einsteins Eltern (engl.) zogen 1880 nach Münchens Vorort, z. B. wegen des Verdienstes.",
        ],
    ),
    "fr": (
        FRENCH_ARTICLE,
        [
            "La Seine est un fleuve français, long de 776.6 kilomètres, qui coule depuis le XIXe siècle ; l'Yonne la "
            "rejoint le 4 mai 1890.",
            "Sa population est de 2200000 habitants (voir la Tamise !).",
        ],
    ),
    "hi": (
        HINDI_ARTICLE,
        [
            "भारत (आधिकारिक नाम: भारत गणराज्य, Republic of India) दक्षिण एशिया में स्थित एक देश है। "
            "यह क्षेत्रफल में सातवाँ सबसे बड़ा देश है।",
        ],
    ),
    "zh": (
        CHINESE_ARTICLE,
        ["电子计算机（computer），简称计算机，是一种电子设备。它按照指令处理数据，也称brain（ ）。"],
    ),
    "ja": (
        JAPANESE_ARTICLE,
        [
            "富士山（ふじさん、Mount Fuji）は、日本の活火山（かつかざん）である。標高は3776.12 m、成層火山とされる。",
        ],
    ),
}


@pytest.mark.parametrize("language", ARTICLES)
def test_an_article_becomes_its_prose(language):
    text, expected = ARTICLES[language]
    assert prose(text, language) == expected


# --- wikitext: rule by rule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{convert|30|km|mi}}", "30 km"),
        ("{{Convert|30|km}}", "30 km"),
        ("{{convert|30|-|40|km2|sqmi|abbr=on}}", "30–40 km²"),
        ("{{convert|30|to|40|sqmi}}", "30 to 40 sq mi"),
        ("{{cvt|5|ft|11|in|m}}", "5 ft 11 in"),
        ("{{convert|8|mi|km|1}}", "8 mi"),
        ("{{convert|2|x|4|in}}", "2 × 4 in"),
        ("{{convert|1.5|e6acre}}", "1.5 million acre"),
        ("{{convert|-40|C|F}}", "-40 °C"),
    ],
)
def test_convert_shows_the_figures_that_were_given(text, expected):
    assert prose(f"It is {text} long.") == [f"It is {expected} long."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("traveled over {{x}} of forest", "traveled over of forest"),
        ("the foo {{x}}.", "the foo."),
        ("the foo <ref>x</ref>, the bar", "the foo, the bar"),
        ("the foo,<ref>x</ref> the bar", "the foo, the bar"),
        ("foo<ref>x</ref>bar", "foobar"),
        ("foo ( {{x}} ) bar", "foo bar"),
        ("foo ({{x}}; {{y}}) bar", "foo bar"),
        ("foo (; {{x}}, born 1879) bar", "foo (born 1879) bar"),
        ("foo (Greek: {{x}}; born 1879)", "foo (Greek; born 1879)"),
        ("foo (born 1879, {{x}})", "foo (born 1879)"),
        ("foo ([[a]] ({{x}}), {{y}})", "foo (a)"),
        ("as follows:{{x}}", "as follows:"),
        ("{{x}}, who was", "who was"),
        ("printf() takes f( ) and [ ]", "printf() takes f( ) and [ ]"),
        ("oh ... no, .NET and a , b .", "oh ... no, .NET and a, b."),
    ],
)
def test_holes_are_repaired_and_nothing_else(text, expected):
    assert prose(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("''i'' '''b''' '''''both''''' l''''amour''' don't", "i b both l'amour don't"),
        ("'''open", "open"),
        ("''open", "open"),
        ("de l'''Yonne'' et", "de l'Yonne et"),
        ("<nowiki>[[a]] '''b''' {{c}} &lt;</nowiki>", "[[a]] '''b''' {{c}} <"),
        (
            "[[Foo (bar)|]] [[:File:X.jpg]] [[:fr:Paris|Paris]] [[wikt:word|word]] [[#Top]]",
            "Foo (bar) File:X.jpg Paris word Top",
        ),
        ("[[fr:Paris]]a[[Image:x.png|b]]b[[Bild:Ein Bild.JPG|mini|c]]", "ab"),
        ("[[The Lord of the Rings: A|LotR]] [[Star Trek: Voyager]]", "LotR Star Trek: Voyager"),
        ("[http://a.org the [[site]]] [http://b.org] http://c.org/x end", "the site end"),
        ("{{nihongo|Tokyo|東京|Tōkyō}} {{nihongo|X|東}}", "Tokyo (東京, Tōkyō) X (東)"),
        ("{{nowrap|[[a]] {{lang|fr|b}}}} c{{'}}s {{#if:x|y}}", "a b c's"),
        ("H<sub>2</sub>O <small>''x''</small> <span style='a'>y</span><br/>z <s>gone</s>", "H2O x y z"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp></ruby>字", "漢字"),
        ("<source lang=c>int {{x}} [[y]] '''</source>a<SYNTAXHIGHLIGHT>b</syntaxhighlight>c", "ac"),
        ("__NOTOC__ __init__ a __FORCETOC__", "__init__ a"),
        ("AT&T &amp; &lt;b&gt; &#8211; &copy= &zzz;", "AT&T & <b> – &copy= &zzz;"),
    ],
)
def test_a_construct(text, expected):
    assert prose(text) == [expected]


def test_lines_paragraphs_and_items():
    text = "one\ntwo<!-- c -->\n<!-- alone -->\nthree\n\n* a\n*# b\n: c\n; term : definition\nnext<poem>\nrose</poem>\n"
    text += "----\n<li>x</li>\n\n***"
    assert prose(text) == ["one two three", "a", "b", "c", "term", "definition", "next", "rose", "x"]


def test_sections_that_are_no_prose_are_left_out_in_any_language():
    text = (
        "Lead.\n== Liens ==\n* [[ein langer Verweis]] (2)\n* [http://x.org und noch einer], ja\n"
        "=== Sub ===\nProse of a subsection.\n== Mixed ==\nSome prose.\n* [[link]]\n"
        "== Items ==\n* an item of text with one [[link]]\n"
        "== '''References''' ==\nNotes.\n=== Deeper ===\nMore notes.\n== After ==\nKept."
    )
    expected = ["Lead.", "Prose of a subsection.", "Some prose.", "link", "an item of text with one link", "Kept."]
    assert prose(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{Infobox\n| a = b\n| c = {{d|e}}\n\nProse.", ["Prose."]),
        ("Prose.\n\n{|\n|-\n| cell\n! a !! b\n\nMore.", ["Prose.", "More."]),
        ("[[File:x.jpg|thumb|a [[b]]\n\nProse.", ["Prose."]),
        ("Prose [[link and more.", ["Prose link and more."]),
        ("Prose {{lang|fr|mot and more.", ["Prose lang|fr|mot and more."]),
        ("Prose }} ]] </ref> </div> and more.", ["Prose and more."]),
        ("Prose <ref>no end.\n\nMore <div>box</div> <b>prose.", ["Prose no end.", "More prose."]),
        ("Prose <!-- no end.", ["Prose"]),
    ],
)
def test_what_is_left_open_costs_little_more_than_its_own_line(text, expected):
    assert prose(text) == expected


def test_brackets_left_open_by_the_thousand_are_refused_before_they_cost_minutes():
    with pytest.raises(WikitextError, match="leaves 30,000 brackets and tags open in 120,000 characters"):
        prose("{{a|" * 30000)
    with pytest.raises(WikitextError, match="leaves 20,000 brackets and tags open"):
        prose("<div>\n" * 20000)
    with pytest.raises(WikitextError, match="leaves 20,000 brackets and tags open"):
        prose("[http://a.org b " * 20000)
    with pytest.raises(WikitextError, match=r"has 8,388,609 characters of wikitext, more than any wiki stores"):
        prose("a" * (8 * 2**20 + 1))


@pytest.mark.parametrize(
    "text", ["<ref>" * 50000, "<!--" * 50000, "<ref/>, " * 20000, "(" * 50000 + "{{x}}" + ")" * 50000]
)
def test_our_own_passes_take_linear_time(text):
    assert prose(text) == []  # a quadratic pass would take minutes


def test_balanced_brackets_may_be_nested_deeply():
    assert prose("{{lang|fr|" * 30 + "x" + "}}" * 30) == ["x"]
    prose("<b>" * 500 + "x" + "</b>" * 500)


def test_whatever_the_parser_raises_is_told_as_the_page_s_fault(monkeypatch):
    def parse(*_: object, **__: object) -> None:
        raise IndexError("pop from empty list")

    monkeypatch.setattr(wikitext.Parser, "parse", parse)
    with pytest.raises(WikitextError, match=r"wikitext that the parser fails on \(IndexError: pop from empty list\)"):
        prose("x")


# --- dumps ------------------------------------------------------------------------------------------------------------


def head(language: str = "en") -> str:
    media, file, category = NAMESPACES[language]
    return f"""\
<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xsi:schemaLocation="http://www.mediawiki.org/xml/export-0.11/ http://www.mediawiki.org/xml/export-0.11.xsd" \
version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <base>https://{language}.wikipedia.org/wiki/Main_Page</base>
    <generator>MediaWiki 1.45.0-wmf.3</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-2" case="first-letter">{media}</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
      <namespace key="6" case="first-letter">{file}</namespace>
      <namespace key="14" case="first-letter">{category}</namespace>
    </namespaces>
  </siteinfo>
"""


def page(
    number: int, text: str, title: str = "", namespace: int = 0, redirect: str = "", model: str = "wikitext"
) -> str:
    redirect = f'    <redirect title="{redirect}" />\n' if redirect else ""
    return f"""\
  <page>
    <title>{escape(title or f"Page {number}")}</title>
    <ns>{namespace}</ns>
    <id>{number}</id>
{redirect}    <revision>
      <id>{number + 10**9}</id>
      <parentid>{number + 10**8}</parentid>
      <timestamp>2026-10-01T12:00:00Z</timestamp>
      <contributor>
        <username>A</username>
        <id>1</id>
      </contributor>
      <comment>c</comment>
      <origin>{number + 10**9}</origin>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text.encode())}" sha1="x" xml:space="preserve">{escape(text)}</text>
      <sha1>x</sha1>
    </revision>
  </page>
"""


FOOT = "</mediawiki>\n"


def numbered(count: int) -> list[str]:
    """Pages, every third of them an article; of each the text tells the number. They differ in length."""
    generator = random.Random(0)
    pages = []
    for number in range(1, count + 1):
        words = " ".join(
            generator.choice(["river", "stone", "tree", "house", "&lt;page&gt;", "<page>"])
            for _ in range(generator.randrange(3, 60))
        )
        kind = {"namespace": 1} if number % 3 == 1 else {"redirect": "X"} if number % 3 == 2 else {}
        pages.append(page(number, f"Article {number} is about {words}.", **kind))
    return pages


def multistream(pages: list[str], each: int = 10) -> bytes:
    groups = ["".join(pages[begin : begin + each]) for begin in range(0, len(pages), each)]
    return b"".join(bz2.compress(text.encode()) for text in [head(), *groups, FOOT])


def ids(documents: Iterable[Document]) -> list[int]:
    return [int(document.id.rpartition(":")[2]) for document in documents]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".bz2", bz2.compress), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)],
)
def test_a_dump_is_its_articles(tmp_path, suffix, compress):
    pages = [
        page(10, "#REDIRECT [[Albert]]", "Alberto", redirect="Albert"),
        page(12, GERMAN_ARTICLE, "Albert Einstein"),
        page(13, "Diskussion", "Diskussion:Albert", namespace=1),
        page(14, "{{Vorlage}}", "Leer"),
        page(15, "Zwei '''Berge''' & <ref>x</ref> Täler.", 'Ein "Titel" & <mehr>'),
    ]
    (tmp_path / f"dewiki{suffix}").write_bytes(compress((head("de") + "".join(pages) + FOOT).encode()))
    source, log = MediaWikiDump(str(tmp_path / "dewiki*"), "de"), ReadLog()
    assert collect(source, log) == [
        Document("de:12", ARTICLES["de"][1]),
        Document("de:15", ["Zwei Berge & Täler."]),
    ]
    assert (log.empty_documents, log.bad, source.lines) == (1, [], "paragraph")
    assert "1 file of MediaWiki XML" in source.describe()
    assert source.manifest()["kind"] == "MediaWiki XML"


def test_the_last_revision_counts_and_older_schemas_are_read(tmp_path):
    text = (head() + page(7, "Old text.") + FOOT).replace("export-0.11", "export-0.10").replace(' sha1="x"', "")
    first = text[text.index("    <revision>") : text.index("  </page>")]
    (tmp_path / "d.xml").write_text(text.replace(first, first + first.replace("Old text", "New text")))
    assert collect(MediaWikiDump(str(tmp_path / "d.xml"), "w")) == [Document("w:7", ["New text."])]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(mediawiki, "_RANGE_BYTES", {False: 15_000, True: 2_000})
    monkeypatch.setattr(mediawiki, "_STRIDE_BYTES", {False: 40_000, True: 1_500})
    monkeypatch.setattr(mediawiki, "_BLOCK", 5000)


@pytest.mark.parametrize("kind", ["plain", "multistream", "one stream", "parallel bzip2", "utf-16"])
def test_parts_share_the_articles(tmp_path, small_parts, kind):
    pages = numbered(150)
    xml = head() + "".join(pages) + FOOT
    data = {
        "plain": xml.encode(),
        "multistream": multistream(pages),
        "one stream": bz2.compress(xml.encode()),
        # Streams cut anywhere: entering one of them would lose pages.
        "parallel bzip2": b"".join(bz2.compress(xml.encode()[i : i + 9000]) for i in range(0, len(xml.encode()), 9000)),
        "utf-16": ('<?xml version="1.0" encoding="utf-16"?>' + xml).encode("utf-16"),
    }[kind]
    path = tmp_path / ("d.xml" if kind in ("plain", "utf-16") else "d.xml.bz2")
    path.write_bytes(data)
    source = MediaWikiDump(str(path), "w")
    parts = source.parts()
    assert len(parts) >= 4
    assert all((part.spans[0].stride == 1) == (kind in ("plain", "multistream")) for part in parts)
    assert sum(part.size for part in parts) == source.size == len(data)
    read = [list(source.read(part, ReadLog())) for part in parts]
    assert sorted(ids(document for some in read for document in some)) == list(range(3, 151, 3))
    assert sum(map(bool, read)) >= 4
    for some in read:
        assert all(document.lines[0].startswith(f"Article {document.id[2:]} is about") for document in some)
    again = pickle.loads(pickle.dumps(source))
    assert again.parts() == parts
    assert list(again.read(parts[2], ReadLog())) == read[2]


@pytest.mark.parametrize("step", [7, 100, 101, 4096])
def test_ranges_may_begin_and_end_anywhere(tmp_path, monkeypatch, step):
    pages = numbered(24)
    for name, data in [("d.xml", (head() + "".join(pages) + FOOT).encode()), ("d.bz2", multistream(pages, 3))]:
        path = tmp_path / name
        path.write_bytes(data)
        each = max(step, len(data) // 60)
        monkeypatch.setattr(mediawiki, "_RANGE_BYTES", {False: each, True: each})
        assert ids(collect(MediaWikiDump(str(path), "w"))) == list(range(3, 25, 3))


CONCATENATIONS = {
    "plain": (".xml", lambda pages: (head() + "".join(pages) + FOOT).encode()),
    "no line between": (".xml", lambda pages: (head() + "".join(pages) + FOOT.strip()).encode()),
    "declared": (".xml", lambda pages: ('\n<?xml version="1.0"?>' + head() + "".join(pages) + FOOT).encode().lstrip()),
    "gzip": (".xml.gz", lambda pages: gzip.compress((head() + "".join(pages) + FOOT).encode())),
    "xz": (".xml.xz", lambda pages: lzma.compress((head() + "".join(pages) + FOOT).encode())),
    "zstd": (".xml.zst", lambda pages: zstandard.compress((head() + "".join(pages) + FOOT).encode())),
    "bzip2": (".xml.bz2", lambda pages: bz2.compress((head() + "".join(pages) + FOOT).encode())),
    "multistream": (".xml.bz2", multistream),
}


@pytest.mark.parametrize("kind", CONCATENATIONS)
@pytest.mark.parametrize("each", [None, 3000, 347])
def test_dumps_one_after_the_other_in_a_file_are_all_read(tmp_path, monkeypatch, kind, each):
    if each is not None:
        sizes = {False: each, True: each // 3}
        monkeypatch.setattr(mediawiki, "_RANGE_BYTES", sizes)
        monkeypatch.setattr(mediawiki, "_STRIDE_BYTES", sizes)
        monkeypatch.setattr(mediawiki, "_BLOCK", 101)
    suffix, written = CONCATENATIONS[kind]
    pages, path = numbered(60), tmp_path / f"d{suffix}"
    path.write_bytes(written(pages[:21]) + written(pages[21:24]) + written(pages[24:]))
    assert sorted(ids(collect(MediaWikiDump(str(path), "w")))) == list(range(3, 61, 3))


@pytest.mark.parametrize("each", [10**6, 500])
@pytest.mark.parametrize(
    ("more", "why"),
    [
        (b"this is no XML\n", "syntax error"),
        (b"<html></html>\n", "its root is <html>"),
        ((head() + page(99, "Cut off.")).encode(), "no element found"),
    ],
)
def test_what_follows_a_dump_and_is_none_is_refused(tmp_path, monkeypatch, each, more, why):
    monkeypatch.setattr(mediawiki, "_RANGE_BYTES", {False: each, True: each})
    for encoding in ("utf-8", "utf-16"):
        declared = f'<?xml version="1.0" encoding="{encoding}"?>' + head() + "".join(numbered(24)) + FOOT
        (tmp_path / "d.xml").write_bytes(declared.encode(encoding) + more)
        with pytest.raises(UserError, match="is no whole dump of MediaWiki") as refused:
            collect(MediaWikiDump(str(tmp_path / "d.xml"), "w"))
        assert encoding == "utf-16" or why in str(refused.value)


@pytest.mark.parametrize("each", [10**6, 500])
@pytest.mark.parametrize("kind", ["plain", "gzip", "multistream"])
def test_dumps_of_several_wikis_in_a_file_are_refused(tmp_path, monkeypatch, each, kind):
    monkeypatch.setattr(mediawiki, "_RANGE_BYTES", {False: each, True: each})
    suffix, written = CONCATENATIONS[kind]
    first, second = written(numbered(24)), written(numbered(9))
    if kind == "plain":
        second = second.replace(b"enwiki", b"nlwiki")
    else:
        with monkeypatch.context() as other:
            other.setattr(f"{__name__}.head", lambda of=head: of().replace("enwiki", "nlwiki"))
            second = written(numbered(9))
    (tmp_path / f"d{suffix}").write_bytes(first + second)
    with pytest.raises(UserError, match="holds dumps of several wikis"):
        collect(MediaWikiDump(str(tmp_path / f"d{suffix}"), "w"))


def test_parts_of_real_sizes():
    def strides(size: int, name: str) -> list[tuple[int, int]]:
        spans = MediaWikiDump.spans(object.__new__(MediaWikiDump), mediawiki.File(name, size, ""))
        return [(span.stride, span.offset) for span in spans]

    assert strides(2**20, "a.bz2") == [(1, 0)]
    assert strides(2**21 + 1, "a.bz2") == [(2, 0), (2, 1)]
    assert len(strides(2**30, "a.gz")) == 16
    assert len(strides(2**24, "a.xml")) == 2


def test_the_tree_of_a_dump_does_not_grow(tmp_path, monkeypatch):
    roots = []

    def from_file(stream: object) -> mediawiki.ElementIterator:
        roots.append(from_file_of_mwxml(stream))
        return roots[-1]

    from_file_of_mwxml = mediawiki.ElementIterator.from_file
    monkeypatch.setattr(mediawiki.ElementIterator, "from_file", from_file)
    (tmp_path / "d.xml").write_text(head() + "".join(numbered(300)) + FOOT)
    source = MediaWikiDump(str(tmp_path / "d.xml"), "w")
    (part,) = source.parts()
    for _ in source.read(part, ReadLog()):
        assert len(roots[0].element) < 50  # as many pages as a read of 16 KiB holds


def break_siteinfo(xml: str) -> str:
    return xml[: xml.index("  <siteinfo>")] + xml[xml.index("</siteinfo>") + 11 :]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda xml: xml[: len(xml) // 2], "column"),
        (lambda xml: xml.removesuffix(FOOT), "no element found"),
        (lambda xml: xml.replace("</revision>", "</revisoin>", 1), "mismatched tag"),
        (lambda xml: xml.replace("Article", "\x0b", 1), "not well-formed"),
        (lambda xml: xml.replace("<id>6</id>", "<id>six</id>"), "invalid literal"),
        (lambda xml: xml.replace("<title>", "<titel>").replace("</title>", "</titel>"), "Unexpected tag"),
        (break_siteinfo, "<siteinfo> tag not found"),
        (lambda xml: "<html><body>Not found</body></html>", "its root is <html>"),
        (lambda xml: "", "no element found"),
        (lambda xml: "Albert was born in Ulm.", "syntax error"),
    ],
)
def test_xml_that_is_damaged_is_named(tmp_path, spoil, why):
    path = tmp_path / "d.xml"
    path.write_text(spoil(head() + "".join(numbered(9)) + FOOT))
    with pytest.raises(UserError) as told:
        collect(MediaWikiDump(str(path), "w"), ReadLog(QUARANTINE))
    sentence = str(told.value)
    assert sentence.startswith(f"{str(path)!r} is no whole dump of MediaWiki (") and why in sentence
    assert sentence.endswith("compare its checksum and fetch it again.") and "\n" not in sentence


def test_damaged_ranges_are_named(tmp_path, small_parts):
    data = multistream(numbered(150))
    path = tmp_path / "d.bz2"
    for spoiled, why in [
        (data[: len(data) // 2], r"is cut off near byte \d+ of the archive; check it with bzip2 -t"),
        (data[: data.rindex(b"BZh9")], r"is no whole dump of MediaWiki between bytes \d+ and \d+ \(no element found"),
        (data[:5000] + bytes([data[5000] ^ 0x55]) + data[5001:], r"is damaged|\(not well-formed"),
    ]:
        path.write_bytes(spoiled)
        with pytest.raises(UserError, match=why):
            collect(MediaWikiDump(str(path), "w"))


def test_a_dump_that_changes_is_refused(tmp_path, small_parts):
    path = tmp_path / "d.bz2"
    path.write_bytes(multistream(numbered(100)))
    source = MediaWikiDump(str(path), "w")
    parts = source.parts()
    path.write_bytes(multistream(numbered(99)))
    with pytest.raises(UserError, match="changed while it was read"):
        list(source.read(parts[1], ReadLog()))
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        list(source.read(parts[1], ReadLog()))


@pytest.mark.parametrize("name", ["d.xml", "d.xml.bz2"])
def test_ranges_of_an_object_store_s_dump(small_parts, name):
    pages = numbered(60)
    store = fsspec.filesystem("memory")
    store.pipe_file(
        f"/dumps/{name}", multistream(pages) if name.endswith("bz2") else (head() + "".join(pages) + FOOT).encode()
    )
    try:
        source = MediaWikiDump(f"memory://dumps/{name}", "w")
        assert len(source.parts()) > 1
        assert ids(collect(source)) == list(range(3, 61, 3))
    finally:
        store.rm("/dumps", recursive=True)


def test_pages_without_wikitext_and_those_the_parser_fails_on_are_bad_records(tmp_path):
    monster = "{{a|" * 30000
    item = '{"type":"item","id":"Q1"}'
    pages = [page(1, "One."), page(2, monster, "Monster"), page(3, item, "Q1", model="wikibase-item"), page(4, "Four.")]
    (tmp_path / "d.xml").write_text(head() + "".join(pages) + FOOT)
    source = MediaWikiDump(str(tmp_path / "d.xml"), "w")
    with pytest.raises(
        UserError, match=r"d.xml' page 'Monster' \(id 2\) leaves 30,000 brackets.*; leave the page out of"
    ):
        collect(source)
    log = ReadLog(QUARANTINE)
    assert ids(collect(source, log)) == [1, 4]
    assert [(place.rpartition("xml' ")[2], raw) for place, _, raw in log.bad] == [
        ("page 'Monster' (id 2)", monster.encode()),
        ("page 'Q1' (id 3)", item.encode()),
    ]
    assert log.bad[1][1] == "is no wikitext, but wikibase-item"


def test_an_article_longer_than_a_document_becomes_several(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain_data.sources.base.MAX_DOCUMENT_BYTES", 1000)
    text = "\n\n".join(f"Paragraph {number} has some words in it." for number in range(100))
    (tmp_path / "d.xml").write_text(head() + page(5, text) + FOOT)
    log = ReadLog()
    documents = collect(MediaWikiDump(str(tmp_path / "d.xml"), "w"), log)
    assert [document.id for document in documents][:2] == ["w:5", "w:5#2"]
    assert sum(len(document.lines) for document in documents) == 100 and log.split_documents == 1


# --- WikiExtractor ----------------------------------------------------------------------------------------------------

EXTRACTED = """\
<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Anarchism">
Anarchism

Anarchism is a political philosophy &amp; movement that is sceptical of &lt;authority&gt;.

History.
BULLET::::- The first &quot;item&quot;.
Anarchism

</doc>
<doc id="13" revid="77" url="https://en.wikipedia.org/wiki?curid=13" title="The "A" &amp; B">
The "A" &amp; B

AT&T was founded in &#8211; 1885.
</doc>
<doc id="14" url="https://en.wikipedia.org/wiki?curid=14" title="Stub">
Stub

</doc>
<doc id="15" url="u" title="C" nonfiltered="1" processed="1" dbindex="15">
Not the title.
</doc>
"""
EXTRACTED_DOCUMENTS = [
    Document(
        "w:12",
        [
            "Anarchism is a political philosophy & movement that is sceptical of <authority>.",
            "History.",
            'The first "item".',
            "Anarchism",
        ],
    ),
    Document("w:13", ["AT&T was founded in – 1885."]),
    Document("w:15", ["Not the title."]),
]


def as_json(extracted: str) -> str:
    articles = [record for record in extracted.split("</doc>\n") if record]
    lines = []
    for article in articles:
        first, _, text = article.partition("\n")
        ident, title = first.split('"')[1], first.split('title="')[1].split('" nonf')[0].removesuffix('">')
        lines.append(json.dumps({"id": ident, "revid": "1", "url": "u", "title": title, "text": text.strip("\n")}))
    return "".join(line + "\n" for line in lines)


@pytest.mark.parametrize("form", [str, as_json])
@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".bz2", bz2.compress)])
def test_wikiextractor_s_forms(tmp_path, form, suffix, compress):
    (tmp_path / "AA").mkdir()
    (tmp_path / "AB").mkdir()
    other = EXTRACTED.replace('id="1', 'id="2')
    (tmp_path / "AA" / f"wiki_00{suffix}").write_bytes(compress(form(EXTRACTED).encode()))
    (tmp_path / "AB" / f"wiki_00{suffix}").write_bytes(compress(form(other).encode()))
    source, log = WikiExtractor(str(tmp_path / "**" / "wiki_*"), "w"), ReadLog()
    assert len(source.parts()) == 1
    documents = collect(source, log)
    assert documents[:3] == EXTRACTED_DOCUMENTS
    assert ids(documents) == [12, 13, 15, 22, 23, 25]
    assert (log.empty_documents, log.bad) == (2, [])
    assert "2 files of WikiExtractor output" in source.describe()


REMAINS = """\
<doc id="7" url="u" title="Bracket">
Bracket

The first <a href=""Hello, world!" program">"Hello, world!" program</a> of 1972 prints a line. It is a test.
For its use see the &lt;a href="Bracket"&gt;bracket&lt;/a&gt; there. The codice_1 code runs codice_2, formula_3 too.
One&lt;br&gt;two &lt;nowiki&gt;x&lt;/nowiki&gt; and &amp;nbsp;here, <ref name="a">so</ref>. More (formula_4) is here.
249||24||colspan="2"|-||9||0||258||24
!rowspan="2"|Total!!colspan="2"|OFC
| style="text-align:left" | A cell
{| class="wikitable"
|-
__NOTOC__
Oslo hosted <a href="Nobel%20Peace%20Prize">the prize</a>; see [[Oslo]] and Section 2__TOC__.
</doc>
"""
LEFT_ALONE = [
    "The relation a < b means less, and c > d more; x<y too. It is &lt; in entities.",
    "In C, a || b is true if one is; !x negates, and x != y compares. Wow!! It is!",
    "Call formula_one or codice fiscale, and __init__ of a class; an <authority> said so.",
    "!Kung is a language.",
    "{braces} and [brackets] stay, <3 too.",
]


@pytest.mark.parametrize("form", [str, as_json])
def test_markup_that_wikiextractor_leaves_in_the_text_is_removed_and_counted(tmp_path, form):
    (tmp_path / "wiki_00").write_text(form(REMAINS))
    log = ReadLog()
    (document,) = collect(WikiExtractor(str(tmp_path / "wiki_00"), "w"), log)
    assert document.lines == [
        'The first "Hello, world!" program of 1972 prints a line. It is a test.',
        "For its use see the bracket there. The code runs too.",
        "One two x and here, so. More is here.",
        "Oslo hosted the prize; see Oslo and Section 2.",
    ]
    assert log.markup == (2) + (2 + 3) + (1 + 2 + 1 + 2 + 1) + 5 + 1 + (2 + 2 + 1)


def test_text_that_looks_like_markup_is_left_alone(tmp_path):
    escaped = "\n".join(line.replace("&", "&amp;").replace("<", "&lt;") for line in LEFT_ALONE)
    for text in ("\n".join(LEFT_ALONE).replace("&lt;", "&amp;lt;"), escaped):
        (tmp_path / "wiki_00").write_text(f'<doc id="7" url="u" title="T">\nT\n\n{text}\n</doc>\n')
        log = ReadLog()
        (document,) = collect(WikiExtractor(str(tmp_path / "wiki_00"), "w"), log)
        assert (document.lines, log.markup) == (LEFT_ALONE, 0)


@pytest.mark.parametrize("form", [str, as_json])
@pytest.mark.parametrize("size", [50, 171, 172, 1000])
def test_a_large_file_is_shared_by_bytes(tmp_path, monkeypatch, form, size):
    articles = "".join(
        f'<doc id="{number}" url="u" title="T{number}">\nT{number}\n\n{{"not": "an object"}}\n'
        f"{'word ' * (number % 17)}end.\n\n</doc>\n"
        for number in range(1, 60)
    )
    (tmp_path / "wiki_00").write_text(form(articles))
    monkeypatch.setattr("pretrain_data.sources.files.PART_BYTES", size)
    source, log = WikiExtractor(str(tmp_path / "wiki_00"), "w"), ReadLog()
    assert len(source.parts()) > 5
    documents = collect(source, log)
    assert ids(documents) == list(range(1, 60)) and not log.bad
    assert all(document.lines[0] == '{"not": "an object"}' and len(document.lines) == 2 for document in documents)


def test_a_large_archive_is_shared_by_turns(tmp_path, monkeypatch):
    articles = "".join(f'<doc id="{number}" url="u" title="T">\nText {number}.\n</doc>\n' for number in range(1, 60))
    (tmp_path / "wiki_00.bz2").write_bytes(bz2.compress(articles.encode() + b"stray\n"))
    monkeypatch.setattr("pretrain_data.sources.files.COMPRESSED_PART_BYTES", 100)
    source, log = WikiExtractor(str(tmp_path / "wiki_00.bz2"), "w"), ReadLog(QUARANTINE)
    parts = source.parts()
    assert len({span for part in parts for span in part.spans}) > 1
    assert sorted(ids(collect(source, log))) == list(range(1, 60))
    assert [raw for _, _, raw in log.bad] == [b"stray"]


GOOD = b'<doc id="1" url="u" title="T">\nT\n\nGood.\n</doc>\n'


@pytest.mark.parametrize(
    ("data", "place", "problem", "raw"),
    [
        (b'<doc id="9" url="u" title="T">\nOpen.\n' + GOOD, 0, "opens <doc id='9'> without </doc>", b"Open."),
        (GOOD + b'<doc id="9" url="u" title="T">\nOpen.\n', 47, "opens <doc id='9'> without </doc>", b"Open."),
        (b"Plain text\nof two lines.\n\n" + GOOD, 0, "is no output of WikiExtractor", b"Plain text\nof two lines."),
        (GOOD + b"</doc>\nrest\n" + GOOD, 47, "is no output of WikiExtractor", b"</doc>\nrest"),
        (
            b'<doc id="9" url="u" title="T">\nM\xfcnchen\n</doc>\n' + GOOD,
            0,
            "is not UTF-8: byte 32 is 0xfc",
            b"M\xfcnchen",
        ),
        (
            b'<doc id="9" url="u" title="T">\na\0b\n</doc>\n' + GOOD,
            0,
            "is no text: it holds a NUL byte at byte 32",
            b"a\0b",
        ),
        (b'{"id": "9", "text": \n{"id": "1", "text": "Good."}\n', 0, "is not JSON", b'{"id": "9", "text": '),
        (b'{"id": "9", "title": "T"}\n{"id": 1, "text": "Good."}\n', 0, "is JSON without an id and a text", b"9"),
        (b'{"text": "T"}\n{"id": "1", "text": "Good."}\n', 0, "is JSON without an id and a text", b"T"),
        (b'{"id": "9", "text": "a\\u0000"}\n{"id": "1", "text": "Good."}\n', 0, "a NUL or half", b"a"),
        (b'{"id": "9", "text": "a\\ud800"}\n{"id": "1", "text": "Good."}\n', 0, "a NUL or half", b"a"),
        (b'{"id": "1", "text": "Good."}\nrubbish\n', 29, "is no output of WikiExtractor", b"rubbish"),
    ],
)
def test_what_is_no_article_is_a_bad_record(tmp_path, data, place, problem, raw):
    path = tmp_path / "wiki_00"
    path.write_bytes(data)
    source, log = WikiExtractor(str(path), "w"), ReadLog(QUARANTINE)
    documents = collect(source, log)
    assert {document.id for document in documents} == {"w:1"}
    assert all(document.lines == ["Good."] for document in documents)
    assert len(log.bad) == 1
    assert log.bad[0][0] == f"{str(path)!r} byte {place}"
    assert problem in log.bad[0][1] and raw in log.bad[0][2]
    with pytest.raises(UserError, match="--on-bad-record=quarantine"):
        collect(source)


def test_what_goes_on_without_end_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(wikiextractor, "_MOST_BYTES", 1000)
    monkeypatch.setattr(wikiextractor, "_STRAY_BYTES", 500)
    path = tmp_path / "wiki_00"
    path.write_bytes(b'<doc id="9" url="u" title="T">\n' + b"line\n" * 500 + GOOD + b"x" * 3000 + b"\n" + GOOD)
    log = ReadLog(QUARANTINE)
    assert len(collect(WikiExtractor(str(path), "w"), log)) == 2
    assert all(len(raw) < 1200 for _, _, raw in log.bad) and len(log.bad) > 4
    path.write_bytes(b'{"id": "1", "text": "Good."}\n{"id": "9", "text": "' + b"x" * 3000 + b'"}\n')
    log = ReadLog(QUARANTINE)
    assert ids(collect(WikiExtractor(str(path), "w"), log)) == [1]
    assert log.bad[0][1] == "is a line of more than 1,000 bytes"


def test_an_empty_file_has_no_articles(tmp_path):
    (tmp_path / "wiki_00").write_bytes(b"")
    (tmp_path / "wiki_01").write_bytes(b"\xef\xbb\xbf\n" + GOOD.replace(b"\n", b"\r\n"))
    assert collect(WikiExtractor(str(tmp_path / "wiki_*"), "w")) == [Document("w:1", ["Good."])]
    assert os.path.getsize(tmp_path / "wiki_00") == 0
