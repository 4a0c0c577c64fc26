# SPDX-License-Identifier: Apache-2.0
"""What is saved for transformers: the tokenizer as a pipeline of the `tokenizers` library, and its settings."""

import functools
import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from albert_jax.tokenization.cleaning import RULES, Cleaning
from albert_jax.tokenization.vocabulary import (
    CLS,
    HUB_DISTANCE,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    WORD_START,
    is_number_comma,
)

# The names under which transformers knows special tokens.
SPECIAL_NAMES = {
    "bos_token": CLS,
    "eos_token": SEP,
    "unk_token": UNK,
    "sep_token": SEP,
    "pad_token": PAD,
    "cls_token": CLS,
    "mask_token": MASK,
}
# Unicode keeps these out of texts, for programs to use among themselves.
_NONCHARACTER, _JOINER = "\ufdd0", "\ufdd1"
_ZERO_WIDTH_JOINER = "\u200d"


def hub_tokenizer(proto: Any, cleaning: Cleaning) -> tokenizers.Tokenizer:
    """For tokenizer.json: everything in Rust, five added tokens and no more, and number-comma pieces out of reach."""
    names = [p.piece for p in proto.pieces]
    vocabulary = [
        (name, score - HUB_DISTANCE * is_number_comma(name)) for name, score in zip(names, _scores(proto), strict=True)
    ]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=UNK))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec.precompiled_charsmap, cleaning))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(" "), "removed"),
            pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always"),
        ]
    )
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, lstrip=t == "[MASK]", normalized=False, special=True) for t in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.decoder = decoders.Metaspace(WORD_START, prepend_scheme="always")
    return tokenizer


def hub_file(proto: Any, cleaning: Cleaning) -> str:
    """The content of tokenizer.json, for `tokenizers` from 0.13.3 on: those before 0.19 miss a field in its own."""
    content = json.loads(hub_tokenizer(proto, cleaning).to_str())
    for metaspace in (content["pre_tokenizer"]["pretokenizers"][-1], content["decoder"]):
        metaspace["add_prefix_space"] = True
    return json.dumps(content, ensure_ascii=False)


def hub_settings(cleaning: Cleaning, **others: Any) -> dict[str, Any]:
    """tokenizer_config.json.

    The class is the one that keeps tokenizer.json's pipeline; transformers 5's own AlbertTokenizer rebuilds it, with
    other rules for marks and white space.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": cleaning.do_lower_case,
        "remove_space": cleaning.remove_space,
        "keep_accents": cleaning.keep_accents,
        **({} if cleaning.rule == "huggingface" else {"cleaning": cleaning.rule}),
        **others,
        **{name: SPECIAL_TOKENS[i] for name, i in SPECIAL_NAMES.items()},
    }


def _scores(proto: Any) -> list[float]:
    """Scores with which the Rust library finds SentencePiece's paths.

    SentencePiece scores a user-defined symbol not by what the file says but by -0.1 plus, for each byte, the best score
    of the vocabulary where that is above zero, which in a trained vocabulary it is not.
    """
    best = max((p.score for p in proto.pieces if p.type == p.NORMAL), default=0.0)
    return [len(p.piece.encode()) * max(best, 0.0) - 0.1 if p.type == p.USER_DEFINED else p.score for p in proto.pieces]


def _normalizers(charsmap: bytes, cleaning: Cleaning) -> list[normalizers.Normalizer]:
    """Rules 1, 3, 4 of the package and SentencePiece's normalizer, in the library's terms."""
    rule = RULES[cleaning.rule]
    # JavaScript's lower-casing makes sigmas final by itself, so that it may see none.
    lower = [normalizers.Replace("Σ", "σ"), normalizers.Lowercase()] if cleaning.do_lower_case else []
    first = lower if rule.lowers_characters_first else []
    # Lower-casing a text as a whole is lower-casing its characters, but for final sigma.
    last = lower if rule.lowers_characters_first or not lower else [_final_sigma(), *lower]
    steps = [*first, *([_replace_characters(str.isspace, " ")] if cleaning.remove_space else [])]
    if rule.replaces_quotes:
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if rule.keeps_letters:
        steps.append(normalizers.NFC())
    elif cleaning.keep_accents:
        steps += last
    else:
        # The library's StripAccents drops every mark, Python's rule only those with a combining class; Hindi shows it.
        # Precompiled does not put Hangul together again, so NFC does it.
        steps += [normalizers.NFKD(), _replace_characters(unicodedata.combining, ""), *last, normalizers.NFC()]
    if charsmap:
        steps += _invisible_characters(charsmap)
        mapped = normalizers.Precompiled(charsmap)
        # JavaScript has one map of its own for all, which makes a space of the joiner that ours leaves in emoji.
        steps.append(normalizers.Replace(_ZERO_WIDTH_JOINER, _JOINER))
        steps += _with_marks_apart(mapped) if rule.keeps_letters else [mapped]
        steps.append(normalizers.Replace(_JOINER, _ZERO_WIDTH_JOINER))
    # Metaspace puts no second word start before one that stands in the text; SentencePiece does.
    steps.append(normalizers.Replace(tokenizers.Regex(rf"(?<![^ ]){WORD_START}"), WORD_START * 2))
    return steps


def _invisible_characters(charsmap: bytes) -> list[normalizers.Normalizer]:
    """Control and zero-width characters, as the character map has them.

    It would find them by itself, but applied to a grapheme the Rust library drops what follows them in it.
    """
    normalizer = normalizers.Precompiled(charsmap)
    targets: dict[str, set[str]] = {"": set(), " ": set()}
    for c in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp"):
            targets.get(normalizer.normalize_str(c), set()).add(c)
    return [_replace_characters(frozenset(old).__contains__, new) for new, old in targets.items() if old]


def _with_marks_apart(mapped: normalizers.Normalizer) -> list[normalizers.Normalizer]:
    """The character map on text in normal form C, where the Rust library would lose or leave marks.

    Applied to a short grapheme it drops what follows a character that it replaces, such as the vowel mark after an
    Arabic presentation form; a noncharacter between the two makes them two graphemes. And of sequences in the map, such
    as half-width katakana with a voicing mark, it knows the first characters alone; normal form C puts what became of
    them together, but must not do so with a Hangul syllable and the single consonants after it, which the map leaves.
    """
    replaced = _character_class(_has_compatibility_form)
    apart = rf"(?<={replaced})(?=\p{{M}})|(?<=[가-힣])(?=[ㄱ-ㆎﾡ-ￜ])"
    return [
        normalizers.Replace(tokenizers.Regex(apart), _NONCHARACTER),
        mapped,
        normalizers.Replace(tokenizers.Regex(rf"{_NONCHARACTER}(?=\p{{M}})"), ""),
        normalizers.NFC(),
        normalizers.Replace(_NONCHARACTER, ""),
    ]


def _has_compatibility_form(c: str) -> bool:
    """Whether normal forms C and KC of this character differ."""
    return unicodedata.normalize("NFKC", c) != unicodedata.normalize("NFC", c)


def _final_sigma() -> normalizers.Normalizer:
    """Lower-cases the sigmas that Python's str.lower makes final: after a letter, and before none, in their word."""
    letter, between = _character_class(_is_cased), _character_class(_is_passed_over)
    before = "|".join(letter + between * count for count in range(4))
    return normalizers.Replace(tokenizers.Regex(rf"(?<={before})Σ(?!{between}*{letter})"), "ς")


def _is_cased(c: str) -> bool:
    """Whether a sigma after this character has a cased letter before it, by str.lower's own answer."""
    return f"{c}Σ".lower().endswith("ς")


def _is_passed_over(c: str) -> bool:
    """Whether str.lower looks past this character when it looks for the letters around a sigma."""
    return not _is_cased(c) and f"A{c}Σ".lower().endswith("ς")


def _replace_characters(belongs: Callable[[str], Any], content: str) -> normalizers.Normalizer:
    """Replaces every character of which `belongs` is true."""
    return normalizers.Replace(tokenizers.Regex(_character_class(belongs)), content)


@functools.lru_cache(maxsize=16)
def _character_class(belongs: Callable[[str], Any]) -> str:
    """A regular expression for the characters of which `belongs` is true, as ranges."""
    ranges: list[list[int]] = []
    for code in filter(lambda c: belongs(chr(c)) and not 0xD800 <= c < 0xE000, range(sys.maxunicode + 1)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"{_literal(first)}-{_literal(last)}" for first, last in ranges) + "]"


def _literal(code: int) -> str:
    """The character as it stands in a class, the same in Oniguruma and in JavaScript."""
    return f"\\{chr(code)}" if chr(code) in r"\[]^-" else chr(code)
