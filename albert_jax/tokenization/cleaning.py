# SPDX-License-Identifier: Apache-2.0
"""What ALBERT does to a text before SentencePiece sees it, and where each character that is left came from."""

import dataclasses
import functools
import re
import unicodedata

from albert_jax.errors import UserError

Span = tuple[int, int]  # first character and the one past the last


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where implementations differ; the flags of `Cleaning` are theirs in common.

    Attributes:
      replaces_quotes: two back quotes, or two apostrophes, become a double quote.
      lowers_characters_first: lower-cases character by character before anything else, and again at the end. Without
        it the text is lower-cased once, at the end and as a whole, which tells a word's final sigma from others.
    """

    replaces_quotes: bool
    lowers_characters_first: bool


RULES = {
    "huggingface": Rule(replaces_quotes=True, lowers_characters_first=True),  # transformers 4's slow tokenizer
    "google": Rule(replaces_quotes=False, lowers_characters_first=False),  # the code that trained the published models
}


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """Rules 1, 3 and 4 of the package: a text in, a clean text out.

    Raises:
      UserError: where `rule` is no name in `RULES`, or a flag is not a bool.
    """

    do_lower_case: bool = True
    remove_space: bool = True
    keep_accents: bool = False
    rule: str = "huggingface"

    def __post_init__(self) -> None:
        """Refuses what is no setting."""
        if self.rule not in RULES:
            raise UserError(f"cleaning={self.rule!r} is none of the rules {', '.join(map(repr, RULES))}; name one.")
        for name in ("do_lower_case", "remove_space", "keep_accents"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r} must be true or false.")

    def __call__(self, text: str) -> str:
        """The clean text."""
        rule = RULES[self.rule]
        if self.do_lower_case and rule.lowers_characters_first:
            text = text.replace("Σ", "σ").lower()  # the one letter whose lower case depends on its neighbors
        if self.remove_space:
            text = " ".join(text.split())
        if rule.replaces_quotes:
            text = text.replace("``", '"').replace("''", '"')
        if not self.keep_accents and not text.isascii():
            text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        return text.lower() if self.do_lower_case else text

    def with_spans(self, text: str) -> tuple[str, list[Span]]:
        """The clean text and, for each of its characters, the span of `text` that it was made from.

        It works because every rule is local: what becomes of a character depends on no other, but for white space and
        quotes, which are taken as units here, and for sigma, which is one character in either form.
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
        space = [r"\s+"] if self.remove_space else []
        quotes = ["``", "''"] if RULES[self.rule].replaces_quotes else []
        return re.compile("|".join([*space, *quotes, "."]), re.DOTALL)

    @functools.cached_property
    def _inside(self) -> "Cleaning":
        """The rules for one unit; white space at the edges of a text is another matter."""
        return dataclasses.replace(self, remove_space=False)


@functools.lru_cache(maxsize=1 << 16)
def _length(unit: str, cleaning: Cleaning) -> int:
    """How many characters a unit becomes."""
    return len(cleaning(unit))


def clean(
    text: str,
    do_lower_case: bool = True,
    keep_accents: bool = False,
    remove_space: bool = True,
    cleaning: str = "huggingface",
) -> str:
    """What `AlbertTokenizer` with these settings makes of a text before SentencePiece sees it.

    Raises:
      UserError: as `Cleaning`.
    """
    return _cleaning(do_lower_case, remove_space, keep_accents, cleaning)(text)


_cleaning = functools.lru_cache(maxsize=64)(Cleaning)
