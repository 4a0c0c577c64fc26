# SPDX-License-Identifier: Apache-2.0
"""Sentence boundaries by ICU (Unicode's UAX #29 with the locale's list of abbreviations, ``ss=standard``).

The English list has "Mr.", "Mrs." and "Prof." but not "Dr.", which ICU takes for the end of a sentence.
"""

import icu

from albert_jax.errors import UserError


class SentenceSplitter:
    """Splits paragraphs into sentences by a language's rules.

    Args:
        language: an ISO 639 code with an optional region, such as ``en``, ``de`` or ``pt-BR``.

    Raises:
        UserError: ICU knows no such language.
    """

    def __init__(self, language: str = "en") -> None:
        locale = icu.Locale(language.replace("-", "_"))
        if locale.getLanguage() not in icu.Locale.getISOLanguages():
            raise UserError(
                f"--language {language!r} is no language that ICU knows; give an ISO 639 code such as en, de or pt-BR"
            )
        self.language = language
        self._breaks = icu.BreakIterator.createSentenceInstance(icu.Locale(f"{locale.getName()}@ss=standard"))

    def split(self, paragraph: str) -> list[str]:
        """The sentences of a paragraph, in order, stripped, none empty; nothing but white space is lost."""
        self._breaks.setText(paragraph)
        ends = list(self._breaks)
        if max(paragraph, default="") > "\uffff":
            # ICU counts UTF-16 units, Python counts characters; they differ beyond the basic plane.
            units = paragraph.encode("utf-16-le")
            parts = [units[2 * a : 2 * b].decode("utf-16-le") for a, b in zip([0, *ends], ends, strict=False)]
        else:
            parts = [paragraph[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [part.strip() for part in parts if part.strip()]
