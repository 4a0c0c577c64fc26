# SPDX-License-Identifier: Apache-2.0
"""Sentence boundaries by ICU, the library that keeps Unicode's rules (UAX #29) and CLDR's lists of abbreviations.

ICU finds the candidates. Its own filter by those lists (``ss=standard``) is not used, as it compares the ends of words:
by the German "r." and "b." it takes "Dollar." and "schrieb." for abbreviations, and in German and French costs more
boundaries than it saves. The lists are ICU's all the same, looked up here by whole words, with few entries added and
removed. A sentence goes on

- after an abbreviation, and after one capital letter ("J. S. Bach", "U.S. Army");
- after a number of at most two digits, in languages that write ordinals so ("3. Oktober"), and after a number that
  begins a sentence, as it numbers a list;
- after "." "?" "!" without white space before a letter of an alphabet (addresses of web pages);
- after a closing quotation mark before a small letter ('"What?" asks Winston') or a Japanese particle (「雨。」と).

It ends behind a closing mark that white space divides from it (French « … . »), and before an opening one that ICU
leaves at its end ("。「"). Where ICU has a list of abbreviations, a sentence may begin with a number or a small letter:
with a year, or with either if the word before the full stop has five letters or more, too many for an abbreviation that
is not in the list. A line break inside a paragraph ends a sentence, as UAX #29 says.

ICU is the default by the figures of ``scripts/bench/sentences.py`` on Universal Dependencies, F1 of boundaries inside
paragraphs and the lowest MB/s of one core ("zh*": Chinese without the spaces that the treebank has between sentences):

                         ar    zh   zh*    en    fr    de    hi    ru   MB/s
    this module        .996  .997  .993  .850  .996  .997  .994  .997     43
    ICU, general rules .993  .995  .975  .815  .984  .947  .992  .993    108
    ICU, ss=standard   .993  .995  .975  .816  .980  .923  .992  .992     99
    choppa-srx 1.0     .997  .982  .982  .868  .997  .997  .000  .993    1.1
    punkt 2.2             -  .997  .994  .869  .975  .975     -  .990    4.8
    blingfire 0.1      .996  .983  .982  .810  .978  .955  .033  .989     12

The others reach more by over .001 in English only, where the treebank is largely mail and reviews whose sentences begin
with small letters; they cost as much as tokenizing (4.5 MB/s) or four times that, and lack whole languages. So there is
no second splitter to choose. The corrections were written with the errors on these treebanks in view: other text will
show less of their gain.
"""

import functools
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

import icu

from albert_jax.errors import UserError

# Scripts of Southeast Asia and Tibet whose sentences end in a space, or in a mark that ICU does not take for an end.
_WITHOUT_ENDS = frozenset(("Lana", "Laoo", "Tale", "Talu", "Tavt", "Thai", "Tibt"))

# Languages whose orthography writes an ordinal as a figure and a full stop.
_ORDINAL_STOP = "bs cs da de dsb et eu fi fo gsw hr hsb hu is lb lv nb nds nn no pl se sk sl sr tr"

# What dictionaries give as abbreviations, stands before what it belongs to (a name, a number, an example), so that it
# ends no sentence, and is not in ICU's lists.
_ADDED = {
    "de": "Abb. Aufl. Bd. Bde. Hl. Tsd. a. bzw. ca. dgl. hl.",
    "en": "Adm. Apr. Brig. Cmdr. Cpl. Dr. Eq. Eqs. Fig. Figs. Gen. Gov. Hon. Jul. Lieut. Messrs. Mme. Oct. Sen. St. "
    "Supt. Vol. approx. cf. e.g. i.e. resp. subsp. v. viz.",
    "fr": "Dr. Mgr. St. Ste. cf. chap. env. ex. p. vol.",
    "it": "dott.ssa mons. prof. prof.ssa sig.na sig.ra",
    "pt": "Sr. Sra. Sras. Srs. Srta.",
    "ru": "акад. доц. им. напр. рис. св. см. т.е. табл.",
}
# Entries of ICU's lists that are everyday words as well, or abbreviations that end a sentence as often as not.
_REMOVED = {
    "de": "Alt. Art. Best. Do. Max. Mod. PIN. Port. Schweiz. So. Temp. Test. am.",
    "en": "Act. All. As. By. DC. Do. Go. Hat. In. Is. Job. Joe. Link. Long. OK. Ok. On. Or. PC. Pro. To. Up. a.m.",
    "es": "Bien. Kit. Rol. Sol. dom. mar.",
    "fr": "All. J.-C. jeu. mer.",
    "pt": "mar.",
    "ru": "н.э. э.",
}

_LINE_BREAKS = frozenset("\n\r\x85\u2028\u2029")
_OPENING = "([{«‹“‘„‚¿¡「『（《〈【〔［｛"
_CLOSING = frozenset("»›”’)]}")
_QUOTES = frozenset("\"'»«›”“’‘")
_CLOSED = re.compile(r"[»›”’)\]}]++(?:\s+|\Z)")
# Kana that go on after a quotation: particles, of which と and って ("said that") are the most frequent.
_PARTICLES = frozenset("とっのがをはにでもや")
# Behind a full stop, a year, or what ICU does not let begin a sentence if the word is too long for an abbreviation.
_UNUSUAL_START = re.compile(r"\.(?:(?<=[^\W\d_]{5}\.)\s++(?=[^\W_])|(?<=[^\W\d_]{3}\.)\s++(?=[12]\d{3}\s))")
_BEFORE_INITIAL = ".-‐/'’"
_FIRST_CJK = "\u2e80"  # where the scripts begin that are written without spaces even between sentences
_LOOK_BACK = 64  # characters before a candidate that are looked at, so that each costs the same


class Splitters:
    """The splitters of a corpus, made when they are asked for.

    Args:
        language: of sources without one of their own.
        own: source's name -> language.
    """

    def __init__(self, language: str, own: Mapping[str, str]) -> None:
        self._language, self._own = language, own

    def of(self, source: str) -> "SentenceSplitter":
        """The splitter for a source, by its name."""
        return _splitter(self._own.get(source, self._language))


class SentenceSplitter:
    """Splits paragraphs into sentences by a language's rules. It can be pickled: it is made anew where it arrives.

    Args:
        language: an ISO 639 code with an optional script and region, such as ``en``, ``sr-Latn`` or ``pt-BR``.

    Attributes:
        language: as given.
        abbreviations: words, with their full stop, that end no sentence; none where ICU has no list.

    Raises:
        UserError: ICU knows no such language.
    """

    def __init__(self, language: str = "en") -> None:
        locale = icu.Locale(language.replace("-", "_"))
        code = locale.getLanguage()
        if code not in icu.Locale.getISOLanguages():
            raise UserError(
                f"--language {language!r} is no language that ICU knows; give an ISO 639 code such as en, de or pt-BR"
            )
        self.language = language
        self._unsplittable = _script_without_ends(locale)
        self._removed = frozenset(_REMOVED.get(code, "").split())
        self._listed = frozenset(word for entry in _listed(locale) for word in entry.split()) - self._removed
        words = self._listed.union(_ADDED.get(code, "").split())
        # The lists hold a word as it is written inside a sentence; it may begin one.
        self.abbreviations = words.union(word[0].upper() + word[1:] for word in words)
        self._ordinals = code in _ORDINAL_STOP.split()
        self._breaks = icu.BreakIterator.createSentenceInstance(locale)

    def __reduce__(self) -> tuple[type["SentenceSplitter"], tuple[str]]:
        return SentenceSplitter, (self.language,)

    def describe(self) -> str:
        """One line: whose rules divide this language's paragraphs, and what is missing."""
        if self._unsplittable:
            return (
                f"sentences: ICU {icu.ICU_VERSION} finds none in {self._unsplittable} script; lines must be sentences"
            )
        rules = (
            f"sentences: ICU {icu.ICU_VERSION}, Unicode's general rules{' and ordinals (3.)' if self._ordinals else ''}"
        )
        if not self._listed:
            return f"{rules}, as it has no list of abbreviations for {self.language!r}"
        return f"{rules}, with its list of {len(self._listed)} abbreviations for {self.language!r} and more"

    def split(self, paragraph: str) -> list[str]:
        """The sentences of a paragraph, in order, stripped, none empty; nothing but white space is lost.

        Raises:
            UserError: ICU finds no ends of sentences in this language. It is not raised when the splitter is made, as
                such a language can be read all the same where lines are sentences.
        """
        if self._unsplittable:
            raise UserError(
                f"--language {self.language!r} is written in {self._unsplittable} script, in which ICU finds no "
                "sentences; give one sentence a line and --lines sentence"
            )
        sentences = []
        start = 0
        for candidate in self._candidates(paragraph):
            end = self._end(paragraph, start, candidate)
            if end > start:
                sentences.append(paragraph[start:end].strip())
                start = end
        return [sentence for sentence in sentences if sentence]

    def _candidates(self, text: str) -> Iterable[int]:
        """Where a sentence may end, in characters, in order; the end of the text is the last."""
        self._breaks.setText(text)
        ends: Iterable[int] = list(self._breaks)
        units = b"" if text.isascii() else text.encode("utf-16-le", "surrogatepass")
        if len(units) > 2 * len(text):
            # ICU counts UTF-16 units, Python counts characters; they differ beyond the basic plane.
            parts = (units[2 * a : 2 * b] for a, b in pairwise([0, *ends]))
            ends = list(accumulate(len(part.decode("utf-16-le", "surrogatepass")) for part in parts))
        unusual = [match.end() for match in _UNUSUAL_START.finditer(text)] if self._listed else []
        return sorted({*ends, *unusual}) if unusual else ends

    def _end(self, text: str, start: int, candidate: int) -> int:
        """Where the sentence that begins at `start` ends, by this candidate; `start` itself if it goes on."""
        if candidate == len(text):
            return candidate
        tail = text[max(start, candidate - _LOOK_BACK) : candidate]
        bare = tail.rstrip()
        space = tail[len(bare) :]
        if not bare or not _LINE_BREAKS.isdisjoint(space):
            return candidate
        if bare[-1] == "." and self._goes_on(bare, len(tail) == candidate - start):
            return start
        if not space:
            return _end_without_space(text, start, candidate, bare)
        following = text[candidate]
        if following in _CLOSING and (closed := _CLOSED.match(text, candidate)):
            return start if text[closed.end() : closed.end() + 1].islower() else closed.end()
        return start if following.islower() and bare[-1] in _QUOTES else candidate

    def _goes_on(self, bare: str, whole: bool) -> bool:
        """Whether the full stop that `bare` ends with belongs to its word, and so ends no sentence.

        Args:
            bare: what stands before the candidate, without white space at its end.
            whole: whether that is all of the sentence.
        """
        word = bare.rsplit(None, 1)[-1].lstrip(_OPENING + "\"'")
        if word in self._removed:
            return False
        if word in self.abbreviations or (word[-2:-1].isupper() and word[-3:-2] in _BEFORE_INITIAL):
            return True
        digits = word[:-1]
        if not digits.isdecimal():
            return False
        return (self._ordinals and len(digits) <= 2) or (whole and len(digits) <= 3 and bare.strip() == word)


def _end_without_space(text: str, start: int, candidate: int, bare: str) -> int:
    """As `SentenceSplitter._end`, where no white space stands before the candidate, as in Chinese and in addresses."""
    sentence = bare.rstrip(_OPENING)
    end = candidate - (len(bare) - len(sentence))
    if not sentence or (sentence[-1].isascii() and text[end] < _FIRST_CJK):
        return start
    return start if sentence[-1] in "」』" and text[end] in _PARTICLES else end


def _script_without_ends(locale: icu.Locale) -> str:
    """The name of a language's script, as given or by CLDR, if ICU finds no ends of sentences in it, else ''."""
    likely = icu.Locale(locale.getName())
    likely.addLikelySubtags()
    return str(likely.getDisplayScript(icu.Locale.getEnglish())) if likely.getScript() in _WITHOUT_ENDS else ""


def _listed(locale: icu.Locale) -> list[str]:
    """ICU's list of abbreviations for a language ("suppressions"), empty where it has none."""
    data = f"icudt{icu.ICU_VERSION.split('.')[0]}{sys.byteorder[0]}-brkitr"
    try:
        bundle = icu.ResourceBundle(data, locale)
        # For a language that it does not know, ICU gives the bundle of the process's own locale.
        if bundle.getLocale().getLanguage() != locale.getLanguage():
            return []
        entries = bundle.get("exceptions").get("SentenceBreak")
    except icu.ICUError:
        return []
    return [entries.getStringEx(index) for index in range(entries.getSize())]


@functools.cache
def _splitter(language: str) -> SentenceSplitter:
    return SentenceSplitter(language)
