# SPDX-License-Identifier: Apache-2.0
"""What ALBERT does to a text before SentencePiece sees it, and where each character that is left came from."""

import dataclasses
import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

from albert_jax.errors import UserError

_BEYOND_MARKS = 0x20000  # no character from here on combines with another; to go through all takes a third of a second
Span = tuple[int, int]  # first character and the one past the last


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where implementations differ; the flags of `Cleaning` are theirs in common.

    Attributes:
      replaces_quotes: two back quotes, or two apostrophes, become a double quote.
      lowers_characters_first: lower-cases character by character before anything else, and again at the end. Without
        it the text is lower-cased once, at the end and as a whole, which tells a word's final sigma from others.
      keeps_letters: case and accents stay, whatever the language does with them, so that the flags have one value
        each; of several ways to write the same letter one is left, Unicode's normal form C.
    """

    replaces_quotes: bool = False
    lowers_characters_first: bool = False
    keeps_letters: bool = False


# `unicode` needs a normal form, as SentencePiece's own (nmt_nfkc) does not put marks in order: in Vietnamese "ệ" typed
# as e, circumflex, dot would be other pieces than e, dot, circumflex, in Arabic shadda after fatha others than before.
# It is C and not KC, since C changes nothing that a reader sees. What KC does on top, such as letters for ﬁ and full
# width, nmt_nfkc does by itself, but for what it leaves alone on purpose (～), and a vocabulary may be trained without.
# There is no lower-casing, which is a language's own affair: Turkish İ and I, German ẞ, Greek Σ.
RULES = {
    "huggingface": Rule(replaces_quotes=True, lowers_characters_first=True),  # transformers 4's slow tokenizer
    "google": Rule(),  # the code that trained the published models
    "unicode": Rule(keeps_letters=True),  # for languages other than English
}


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """Rules 1, 3 and 4 of the package: a text in, a clean text out.

    Raises:
      UserError: where `rule` is no name in `RULES`, a flag is not a bool, or one contradicts the rule.
    """

    do_lower_case: bool = True
    remove_space: bool = True
    keep_accents: bool = False
    rule: str = "huggingface"

    @classmethod
    def named(
        cls, rule: str, do_lower_case: bool | None = None, keep_accents: bool | None = None, remove_space: bool = True
    ) -> "Cleaning":
        """A rule, and flags that may be left to it by None.

        Raises:
          UserError: as the class.
        """
        keeps = rule in RULES and RULES[rule].keeps_letters
        lower = not keeps if do_lower_case is None else do_lower_case
        return cls(lower, remove_space, keeps if keep_accents is None else keep_accents, rule)

    def __post_init__(self) -> None:
        """Refuses what is no setting."""
        if self.rule not in RULES:
            raise UserError(f"cleaning={self.rule!r} is none of the rules {', '.join(map(repr, RULES))}; name one.")
        for name in ("do_lower_case", "remove_space", "keep_accents"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r} must be true or false.")
        if RULES[self.rule].keeps_letters and (self.do_lower_case or not self.keep_accents):
            raise UserError(
                f"do_lower_case={self.do_lower_case} with keep_accents={self.keep_accents} contradicts "
                f"cleaning={self.rule!r}, which keeps case and accents; leave the two away, or name another rule."
            )

    def __call__(self, text: str) -> str:
        """The clean text."""
        return self._letters(" ".join(text.split()) if self.remove_space else text)

    def many(self, texts: Sequence[str]) -> list[str]:
        """The clean texts, for less than one by one: no rule looks past the end of a line."""
        if self.remove_space:
            texts = [" ".join(text.split()) for text in texts]
        joined = "\n".join(texts)
        if not texts or joined.count("\n") != len(texts) - 1:  # only where white space is kept
            return [self._letters(text) for text in texts]
        return self._letters(joined).split("\n")

    def _letters(self, text: str) -> str:
        """All rules but that of white space, which no other one makes or takes away."""
        rule = RULES[self.rule]
        if self.do_lower_case and rule.lowers_characters_first:
            text = text.replace("Σ", "σ").lower()  # the one letter whose lower case depends on its neighbors
        if rule.replaces_quotes:
            text = text.replace("``", '"').replace("''", '"')
        if rule.keeps_letters:
            text = unicodedata.normalize("NFC", text)
        if not self.keep_accents and not text.isascii():
            text = _without_marks(unicodedata.normalize("NFKD", text))
        return text.lower() if self.do_lower_case else text

    def with_spans(self, text: str) -> tuple[str, list[Span]]:
        """The clean text and, for each of its characters, the span of `text` that it was made from.

        It works because every rule is local: what becomes of a character depends on no other, but for white space,
        quotes and a letter with its marks, which are taken as units here, and for sigma, which is one character in
        either form.
        """
        spans: list[Span] = []
        for unit in self._units.finditer(text):
            if self.remove_space and unit.group().isspace():
                length = int(unit.start() > 0 and unit.end() < len(text))
            else:
                length = _length(unit.group(), self._inside)
            spans += [unit.span()] * length
        return self(text), spans

    @functools.cached_property
    def _units(self) -> re.Pattern[str]:
        rule = RULES[self.rule]
        space = [r"\s+"] if self.remove_space else []
        quotes = ["``", "''"] if rule.replaces_quotes else []
        letters = [rf".?[{_composing_characters()}]+"] if rule.keeps_letters else []
        return re.compile("|".join([*space, *quotes, *letters, "."]), re.DOTALL)

    @functools.cached_property
    def _inside(self) -> "Cleaning":
        """The rules for one unit; white space at the edges of a text is another matter."""
        return dataclasses.replace(self, remove_space=False)


def _without_marks(text: str) -> str:
    """The text without characters that combine with one before them (those of a combining class other than 0)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    marks = _is_mark()[np.minimum(codes, _BEYOND_MARKS)]
    return codes[~marks].tobytes().decode("utf-32-le", "surrogatepass") if marks.any() else text


@functools.cache
def _is_mark() -> np.ndarray:
    """bool, for each code point up to `_BEYOND_MARKS`."""
    return np.array([unicodedata.combining(chr(code)) > 0 for code in range(_BEYOND_MARKS + 1)])


@functools.cache
def _composing_characters() -> str:
    """All characters that normal form C may put together with one before them, or move before it."""
    known = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c) or unicodedata.decomposition(c)]
    marks = {c for c in known if unicodedata.combining(unicodedata.normalize("NFD", c)[0])}
    pairs = [parts for c in known if len(parts := unicodedata.decomposition(c).split()) == 2]
    seconds = {chr(int(second, 16)) for first, second in pairs if not first.startswith("<")}
    jamo = map(
        chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]
    )  # Hangul is composed by arithmetic, not by a table
    return "".join(sorted(marks.union(seconds, jamo)))


@functools.lru_cache(maxsize=1 << 16)
def _length(unit: str, cleaning: Cleaning) -> int:
    """How many characters a unit becomes."""
    return len(cleaning(unit))


def clean(
    text: str,
    do_lower_case: bool | None = None,
    keep_accents: bool | None = None,
    remove_space: bool = True,
    cleaning: str = "huggingface",
) -> str:
    """What `AlbertTokenizer` with these settings makes of a text before SentencePiece sees it.

    Raises:
      UserError: as `Cleaning`.
    """
    return _named(cleaning, do_lower_case, keep_accents, remove_space)(text)


_named = functools.lru_cache(maxsize=64)(Cleaning.named)
