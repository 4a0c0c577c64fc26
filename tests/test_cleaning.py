# SPDX-License-Identifier: Apache-2.0
"""What the three cleaning rules make of languages, and that a vocabulary and its tokenizers keep to them."""

import json
import pathlib
import random
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
import sentencepiece

from albert_jax.errors import UserError
from albert_jax.tokenization import RULES, AlbertTokenizer, clean
from albert_jax.tokenization.cleaning import _BEYOND_MARKS, Cleaning
from albert_jax.tokenization.hub import hub_tokenizer
from albert_jax.tokenization.vocabulary import parse_vocabulary
from pretrain_data.vocabulary import train_vocabulary
from tests.tokenizer_samples import ask_peer, spiece, transformers5, unicode_fuzz, vocabulary

# Language: text, what Google's and Hugging Face's rules make of it (both the same but in Greek), what `unicode` does.
GOLDEN = {
    "Vietnamese": ("Tiếng Việt:  đẹp", "tieng viet: đep", "Tiếng Việt: đẹp"),
    "Vietnamese, typed apart": ("Vie\u0323\u0302t Vie\u0302\u0323t", "viet viet", "Vi\u1ec7t Vi\u1ec7t"),
    "Hindi": (
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u0958\u0932\u092e",  # the virama goes, vowel signs stay
        "\u0939\u093f\u0928\u0926\u0940 \u0915\u0932\u092e",
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093c\u0932\u092e",
    ),
    "Arabic": (
        "\u0627\u0644\u0644\u0651\u064f\u063a\u064e\u0629\u064f \u0623\u0628",  # with harakat, shadda first
        "\u0627\u0644\u0644\u063a\u0629 \u0627\u0628",
        "\u0627\u0644\u0644\u064f\u0651\u063a\u064e\u0629\u064f \u0623\u0628",
    ),
    "Thai": ("\u0e19\u0e49\u0e33 ไทย", "\u0e19\u0e4d\u0e32 ไทย", "\u0e19\u0e49\u0e33 ไทย"),
    "Turkish": ("İzmir IĞDIR ışık", "izmir igdir ısık", "İzmir IĞDIR ışık"),
    "German": ("Straße GROẞ ``Öl''", 'straße groß "ol"', "Straße GROẞ ``Öl''"),
    "Korean": ("한국\u1112\u1161\u11ab", unicodedata.normalize("NFD", "한국한"), "한국한"),
    "Greek": ("Ο ΟΔΥΣΣΕΥΣ ήταν", "ο οδυσσευς ηταν", "Ο ΟΔΥΣΣΕΥΣ ήταν"),
    "Russian": ("Ещё ЙОД", "еще иод", "Ещё ЙОД"),
    "French": ("Ça\u00a0va,  l’été ?", "ca va, l’ete ?", "Ça va, l’été ?"),
}


@pytest.mark.parametrize("language", GOLDEN)
def test_what_each_rule_makes_of_a_language(language: str) -> None:
    text, plain, unicode = GOLDEN[language]
    assert clean(text, cleaning="unicode") == unicode
    assert clean(text, cleaning="huggingface") == plain.replace("ς", "σ")  # it lower-cases character by character
    assert clean(text, cleaning="google") == plain.replace('"', "``", 1).replace('"', "''", 1)  # it leaves quotes


def test_unicode_writes_what_looks_the_same_in_one_way_and_leaves_what_looks_different() -> None:
    for text, _, _ in GOLDEN.values():
        forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD")} | {text}
        assert len({clean(form, cleaning="unicode") for form in forms}) == 1
    for text in unicode_fuzz(1000):
        assert unicodedata.is_normalized("NFC", clean(text, cleaning="unicode"))
    for text in ["ﬁ", "x²", "Ａ～", "ㅋㅋ", "…", "™", "''`` \"", "[MASK]"]:
        assert clean(text, cleaning="unicode") == text


@pytest.mark.parametrize("flags", [{"do_lower_case": True}, {"keep_accents": False}])
def test_flags_that_contradict_unicode_are_refused_with_a_remedy(flags: dict[str, Any], tmp_path: pathlib.Path) -> None:
    (tmp_path / "spiece.model").write_bytes(vocabulary("unicode"))
    for call in (
        lambda: clean("a", cleaning="unicode", **flags),
        lambda: AlbertTokenizer(tmp_path / "spiece.model", cleaning="unicode", **flags),
        lambda: train_vocabulary(["a"], tmp_path / "out", cleaning="unicode", **flags),
    ):
        with pytest.raises(UserError, match="contradicts cleaning='unicode', which keeps case and accents; leave"):
            call()
    assert not (tmp_path / "out").exists()


def test_flags_that_are_left_out_are_the_rules_own() -> None:
    flags = {rule: (Cleaning.named(rule).do_lower_case, Cleaning.named(rule).keep_accents) for rule in RULES}
    assert flags == {"huggingface": (True, False), "google": (True, False), "unicode": (False, True)}
    assert Cleaning.named("unicode", False, True) == Cleaning.named("unicode")


def test_a_letter_and_its_marks_have_the_spans_of_their_own_parts() -> None:
    text = "  e\u0323\u0302x\u1112\u1161\u11ab \u0301"
    cleaned, spans = Cleaning.named("unicode").with_spans(text)
    assert cleaned == "\u1ec7x한 \u0301"
    assert spans == [(2, 5), (5, 6), (6, 9), (9, 10), (10, 11)]


# --- vocabularies -----------------------------------------------------------------------------------------------------

SENTENCES = {
    "hi": ["हिन्दी में क्या लिखा है?", "वह घर जाता है और किताब पढ़ता है।", "क़लम मेज़ पर रखी हुई थी।", "बच्चे विद्यालय में पढ़ते हैं।"],
    "vi": ["Tiếng Việt là ngôn ngữ của Việt Nam.", "Hà Nội là thủ đô.", "Trời hôm nay đẹp quá!", "Ủa, em ăn phở chưa?"],
}
SIZES = {"hi": 48, "vi": 56}  # between the letters there are and the pieces that so little text allows


@pytest.mark.parametrize("language", SENTENCES)
def test_a_vocabulary_of_a_language_keeps_its_marks_and_so_does_transformers(
    language: str, tmp_path: pathlib.Path
) -> None:
    sentences = SENTENCES[language]
    train_vocabulary(sentences * 30, tmp_path, size=SIZES[language], cleaning="unicode", character_coverage=1.0)
    recorded = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert recorded == {"cleaning": "unicode", "do_lower_case": False, "keep_accents": True}
    ours = AlbertTokenizer.from_pretrained(tmp_path)
    assert ours.cleaning == "unicode"

    marks = {c for text in sentences for c in unicodedata.normalize("NFD", text) if unicodedata.combining(c)}
    pieces = "".join(ours.get_vocab())
    assert marks and marks <= set(unicodedata.normalize("NFD", pieces))
    apart = [unicodedata.normalize("NFD", text) for text in sentences]
    ids = [ours.encode(text) for text in sentences]
    assert not any(ours.unk_token_id in one for one in ids)
    assert ids == [ours.encode(text) for text in apart]
    wanted = [unicodedata.normalize("NFC", text) for text in sentences]
    assert ours.batch_decode(ids, skip_special_tokens=True) == wanted

    ours.save_pretrained(tmp_path / "saved")
    again = AlbertTokenizer.from_pretrained(tmp_path / "saved")
    assert (again.cleaning, again.encode_sentences(apart)) == ("unicode", ours.encode_sentences(apart))
    theirs = ask_peer(transformers5(), tmp_path / "saved", texts=[*sentences, *apart])["auto"]["texts"]
    assert [one for one, _ in theirs] == [*ids, *ids]


def test_text_without_spaces_is_one_word_for_us_and_for_transformers(tmp_path: pathlib.Path) -> None:
    sentences = ["今天天气很好。", "我们去公园散步。", "他在图书馆读书，她在家里写信。"]
    train_vocabulary(sentences * 30, tmp_path, size=39, cleaning="unicode", character_coverage=1.0)
    ours = AlbertTokenizer.from_pretrained(tmp_path)
    assert [token.startswith("▁") for token in ours.tokenize(sentences[2])].count(True) == 1
    words: list[Any] = ours(sentences[2]).word_ids()
    assert words[0] is words[-1] is None and set(words[1:-1]) == {0}
    ours.save_pretrained(tmp_path / "saved")
    call: list[Any] = ["__call__", [sentences[2]], {}]
    theirs = ask_peer(transformers5(), tmp_path / "saved", calls=[call])["auto"]["calls"][0]
    assert theirs["input_ids"] == ours(sentences[2]).input_ids
    assert theirs["word_ids"] == [words]


# --- the pipeline in Rust ---------------------------------------------------------------------------------------------

# What the Rust library's own character map gets wrong.
COMPATIBILITY = [
    "ﾊﾞﾝｸ",
    "\ufe91\u064e\ufeae",  # Arabic letters in their forms by place, one with a vowel mark
    "\ufe91\u0001\u064e",
    "네ㄳ ㄱㅏㄳ ㅋㅋㅋ",
    "ª\u0300 ⓐ\u0301",
    "می\u200cخواهم",
]


@pytest.mark.parametrize("rule", RULES)
def test_the_saved_pipeline_makes_of_texts_what_cleaning_and_sentencepiece_do(rule: str) -> None:
    model = vocabulary("unicode")
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    pipeline = hub_tokenizer(parse_vocabulary(model), Cleaning.named(rule)).normalizer
    texts = [unicodedata.normalize(form, text) for text, _, _ in GOLDEN.values() for form in ("NFC", "NFD", "NFKC")]
    if rule == "unicode":
        texts += COMPATIBILITY
    for text in texts:
        wanted = processor.normalize(clean(text, cleaning=rule)).replace("▁", " ").strip()
        assert " ".join(pipeline.normalize_str(text).split()) == wanted, ascii(text)


@pytest.mark.parametrize("name", ["uncased", "no comma", "not English"])
def test_ids_come_alike_in_lists_and_in_arrays(tmp_path: pathlib.Path, name: str) -> None:
    tokenizer = AlbertTokenizer(spiece(tmp_path, name, raw=True))
    texts = [*unicode_fuzz(200), "", "on 3,000, 12, and 4,5,6, or 1,", "7,", " ", "1, 2, 3,"]
    tokens, lengths = tokenizer.encode_sentences_flat(texts)
    found = [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
    assert found == tokenizer.encode_sentences(texts)


def test_many_texts_are_cleaned_as_one_by_one() -> None:
    characters = [chr(code) for code in range(0xD800)] + [chr(code) for code in range(0x10000, 0x30000)]
    generator = random.Random(0)
    texts = ["".join(generator.choices(characters, k=20)) for _ in range(3000)]
    texts += ["", " \n ", "a\nb\x85c\u2028d", "ΟΔΥΣΣΕΥΣ", "``x''", "''", "'", "'\n'", "\u0301", "e\u0301", "1,000, 2,5"]
    for rule in RULES:
        for remove_space in (True, False):
            cleaning = Cleaning.named(rule, remove_space=remove_space)
            assert cleaning.many(texts) == [cleaning(text) for text in texts]
    one_by_one = Cleaning.named("google")
    for text in texts:
        letters = unicodedata.normalize("NFKD", " ".join(text.split()))
        assert one_by_one(text) == "".join(c for c in letters if not unicodedata.combining(c)).lower()


def test_no_character_above_the_table_of_marks_is_one() -> None:
    assert not any(unicodedata.combining(chr(code)) for code in range(_BEYOND_MARKS, sys.maxunicode + 1))
