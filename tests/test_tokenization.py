# SPDX-License-Identifier: Apache-2.0
"""The tokenizer follows ALBERT's rules, and what it saves makes transformers 4 and 5 follow them too."""

import itertools
import json
import pathlib
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from albert_jax.errors import UserError
from albert_jax.tokenization import SPECIAL_TOKENS, AlbertTokenizer, AlbertTokenizerFast, clean
from albert_jax.tokenization.cleaning import RULES
from albert_jax.tokenization.vocabulary import is_number_comma, parse_vocabulary
from tests.peers import node_packages, transformers4
from tests.tokenizer_samples import (
    FLAGS,
    ask_peer,
    corpus,
    spiece,
    train,
    transformers5,
    unicode_fuzz,
)

Open = Callable[..., AlbertTokenizer]


@pytest.fixture
def tokenizer(tmp_path: pathlib.Path) -> Open:
    """Opens a vocabulary by its name in `FLAGS`, with its flags or others."""

    def get(name: str = "uncased", raw: bool = False, **flags: Any) -> AlbertTokenizer:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        return AlbertTokenizer(spiece(directory, name, raw), **(FLAGS[name] | flags))

    return get


# --- the rules --------------------------------------------------------------------------------------------------------


def test_both_of_transformers_names_are_one_tokenizer() -> None:
    assert AlbertTokenizerFast is AlbertTokenizer


def test_a_number_and_the_comma_after_it_are_never_one_token(tokenizer: Open) -> None:
    ours = tokenizer(raw=True)
    glued = [piece for piece in ours.get_vocab() if is_number_comma(piece)]
    assert glued, "the vocabulary has no piece on which to try this"
    text = " ".join(p.lstrip("▁") for p in glued)
    tokens = ours.convert_ids_to_tokens(ours.encode_sentences([text])[0])
    assert not set(tokens) & set(glued)
    assert tokens.count(",") == len(glued)
    assert "".join(tokens).replace("▁", " ").strip() == text
    assert ours.tokenize(text) == tokens


def test_special_tokens_spelled_in_a_text_count_in_encode_and_are_mere_text_in_data(tokenizer: Open) -> None:
    text = "one [MASK] two <pad> [SEP] <unk> [CLS] end"
    for name in ("uncased", "cased", "no comma"):
        ours = tokenizer(name)
        assert [i for i in ours.encode(text) if i < 5] == [2, 4, 0, 3, 1, 2, 3]
        assert [t for t in ours.tokenize(text) if t in SPECIAL_TOKENS] == ["[MASK]", "<pad>", "[SEP]", "<unk>", "[CLS]"]
        known = [i for i in ours.encode_sentences([text])[0] if i != 1]
        assert min(known) > 4


def test_an_unknown_text_that_reads_like_a_special_token_is_unknown(tmp_path: pathlib.Path) -> None:
    # No bracket and no capital letter is in this vocabulary, so that "[MASK]" is one unknown piece.
    file = tmp_path / "spiece.model"
    file.write_bytes(train(["a b c d e f g h"] * 20, vocab_size=20, user_defined_symbols=[]))
    ours = AlbertTokenizer(file, do_lower_case=False)
    assert "," not in ours.get_vocab()
    assert set(ours.encode_sentences(["[MASK]"])[0]) == {1, ours.convert_tokens_to_ids("▁")}


def test_a_text_of_nothing_gives_no_tokens_and_keeps_its_place(tokenizer: Open) -> None:
    got = tokenizer().encode_sentences(["", "word", " \t\n\u200b", "word"])
    assert got[0] == got[2] == []
    assert got[1] == got[3] != []


def test_case_accents_quotes_and_space_are_cleaned_as_the_flags_say(tokenizer: Open) -> None:
    def same(name: str, a: str, b: str) -> bool:
        first, second = tokenizer(name).encode_sentences([a, b])
        return first == second

    assert same("uncased", "ÉTÉ  à``Orléans''", 'ete\n a"orleans"')
    assert not same("cased", "Word", "word")
    assert same("cased", "été", "ete")
    assert not same("accents", "été", "ete")
    assert same("accents", "ÉTÉ", "été")
    assert same("uncased", "a\x1cb", "a b")
    assert not same("spaces", "a\x1cb", "a b")  # SentencePiece's normalizer drops this one
    assert same("spaces", " a  b\n", "a b")


@pytest.mark.parametrize("flags", [{}, {"do_lower_case": False}, {"keep_accents": True}, {"remove_space": False}])
def test_googles_cleaning_leaves_quotes_and_knows_final_sigma_whatever_the_other_flags(flags: dict[str, Any]) -> None:
    lower = flags.get("do_lower_case", True)
    assert clean("``A'' ΟΔΟΣ", cleaning="google", **flags) == ("``a'' οδος" if lower else "``A'' ΟΔΟΣ")
    assert clean("``A'' ΟΔΟΣ", **flags) == ('"a" οδοσ' if lower else '"A" ΟΔΟΣ')


def test_googles_cleaning_is_googles_four_steps_on_any_unicode() -> None:
    def google(text: str) -> str:
        text = unicodedata.normalize("NFKD", " ".join(text.strip().split()))
        return "".join(c for c in text if not unicodedata.combining(c)).lower()

    for text in [*corpus()[::20], *unicode_fuzz(3000)]:
        assert clean(text, cleaning="google") == google(text)


def test_decoding_skips_special_tokens_and_gives_back_the_cleaned_text(tokenizer: Open) -> None:
    ours = tokenizer()
    texts = [clean(line) for line in corpus()[::10]]
    known = [text for text in texts if text.isascii()]  # SentencePiece puts letters of other scripts together
    assert len(known) > 100 and all(1 not in ours.encode(text) for text in known)
    assert ours.batch_decode([ours.encode(text) for text in known], skip_special_tokens=True) == known


# --- equal to transformers --------------------------------------------------------------------------------------------


def peer_texts() -> list[Any]:
    """Texts, texts with special tokens in odd places, and pairs."""
    lines = corpus()[::5]
    special = [
        "[MASK]",
        "a [MASK]b",
        "a\x85 \x85[MASK]",
        "x[SEP] .[MASK]. <pad>",
        "",
        " ",
        "a\x0bb\x1cc\x1d\x85d\u2028e",
        "▁a ▁▁b c▁",
    ]
    sigmas = ["ΟΔΟΣ, ΑΣ'Σ ΣΑΣ. Σ", "ΑΣ\u0301 Α\u0301Σ ΑʰΣ Α.Σ.Α ΟΔΟΣ-ΟΔΟΣ", "``ΑΣ'' ''' ```"]
    pairs = [list(pair) for pair in itertools.pairwise(lines[:100])]
    return [*lines, *special, *sigmas, *pairs, ["", "b [MASK]"], *unicode_fuzz(2000)]


def check_peer(program: str | tuple[str, ...], tmp_path: pathlib.Path) -> set[str]:
    """Compares a peer, given what we save, with ours, for every vocabulary; returns the peer's tokenizers."""
    texts = peer_texts()
    peers: set[str] = set()
    for name, flags in FLAGS.items():
        ours = AlbertTokenizer(spiece(tmp_path, name), **flags)
        ours.save_pretrained(tmp_path / name)
        encoded = [ours(*([text] if isinstance(text, str) else text)) for text in texts]
        for peer, got in ask_peer(program, tmp_path / name, texts=texts).items():
            rows = zip(texts, encoded, got["texts"], strict=True)
            different = [text for text, a, b in rows if [a.input_ids, a.token_type_ids] != b]
            exact = EXACT[peer, flags.get("cleaning", "huggingface")]
            assert [ascii(text) for text in different if exact(text)] == [], (name, peer)
            peers.add(peer)
    return peers


def outside_rust(text: str | list[str]) -> bool:
    """Whether a text is free of letters younger than Unicode 9, and of marks after modifier letters and other marks."""
    if not isinstance(text, str):
        return True
    if any(unicodedata.normalize("NFKD", c) != c and unicodedata.ucd_3_2_0.category(c) == "Cn" for c in text):
        return False
    kinds = [unicodedata.category(c) for c in text]
    return not any((a == "Lm" or a[0] == "M") and b[0] == "M" for a, b in itertools.pairwise(kinds))


def outside_rust_unicode(text: str | list[str]) -> bool:
    """Whether a text is free of letters and marks younger than Unicode 9, and of marks after an accent by itself."""
    if not isinstance(text, str):
        return True
    changed = [c for c in text if unicodedata.combining(c) or unicodedata.normalize("NFKD", c) != c]
    pairs = itertools.pairwise(unicodedata.normalize("NFKD", c) for c in text)
    return not any(unicodedata.ucd_3_2_0.category(c) == "Cn" for c in changed) and not any(
        a != " " and a[0] == " " and unicodedata.combining(b[0]) for a, b in pairs
    )


def outside_google(text: str | list[str]) -> bool:
    """Whether a text is free of what transformers' slow tokenizer cleans unlike Google's code."""
    return not any(part in unicodedata.normalize("NFKD", str(text)).upper() for part in ("``", "''", "Σ"))


def outside_unicode(text: str | list[str]) -> bool:
    """Whether a text is free of what transformers' slow tokenizer cleans unlike our rule of that name."""
    return not any(part in str(text) for part in ("``", "''")) and unicodedata.is_normalized("NFC", str(text))


def outside_javascript(text: str | list[str]) -> bool:
    """Whether a text's marks are in the order of normal forms, and no white space in it that JavaScript misses."""
    decomposed = "".join(unicodedata.normalize("NFKD", c) for c in str(text))
    return decomposed == unicodedata.normalize("NFKD", str(text)) and "\x85" not in text


# Which texts get the same ids, by tokenizer and cleaning; save_pretrained's docstring names the exceptions.
EXACT: dict[tuple[str, str], Callable[[str | list[str]], bool]] = {
    ("auto", "huggingface"): outside_rust,
    ("auto", "google"): outside_rust,
    ("auto", "unicode"): outside_rust_unicode,
    ("slow", "huggingface"): lambda text: True,
    ("slow", "google"): outside_google,
    ("slow", "unicode"): outside_unicode,
    **{(peer, rule): outside_javascript for peer in ("tokenizers.js", "transformers.js 3") for rule in RULES},
}


def test_what_is_saved_makes_transformers_4_slow_and_auto_equal(tmp_path: pathlib.Path) -> None:
    assert check_peer(transformers4(), tmp_path) == {"auto", "slow"}


def test_what_is_saved_makes_transformers_5_auto_equal(tmp_path: pathlib.Path) -> None:
    assert check_peer(transformers5(), tmp_path) == {"auto"}


def test_what_is_saved_makes_javascripts_tokenizers_equal(tmp_path: pathlib.Path) -> None:
    node, packages = node_packages()
    command = (node, str(pathlib.Path(__file__).with_name("tokenizer_peers.mjs")), packages)
    assert check_peer(command, tmp_path) == {"tokenizers.js", "transformers.js 3"}


@pytest.mark.parametrize("name", FLAGS)
def test_what_is_saved_has_no_regular_expression_that_only_one_reader_knows(
    name: str, tokenizer: Open, tmp_path: pathlib.Path
) -> None:
    tokenizer(name).save_pretrained(tmp_path)
    saved = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    patterns = [step["pattern"] for step in every_object(json.loads(saved)) if "pattern" in step]
    assert all(step.keys() == {"Regex"} or " " not in step["String"] for step in patterns)  # as JavaScript splits
    for pattern in (step["Regex"] for step in patterns if "Regex" in step):
        assert set(re.findall(r"\\(.)", pattern, re.DOTALL)) <= set("\\[]^-p")
        outside = re.sub(r"\[(?:\\.|[^]\\])*\]", "", pattern, flags=re.DOTALL)
        assert set(re.findall(r"\(\?(?:<?[=!]|.)", outside)) <= {"(?=", "(?!", "(?<=", "(?<!"}
        assert not re.search(r"[*+?][*+?]|\{", outside.replace(r"\p{M}", ""))


def every_object(value: Any) -> list[dict[str, Any]]:
    """All objects in a JSON value."""
    inside = list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else [])
    return [value] * isinstance(value, dict) + [found for part in inside for found in every_object(part)]


def test_an_unknown_number_before_an_unknown_comma_is_two_unknowns_as_for_transformers_4_slow(
    tokenizer: Open, tmp_path: pathlib.Path
) -> None:
    ours = tokenizer("no comma")
    text = "٣٤, x"
    assert ours.tokenize(text)[:3] == ["▁", "٣٤", ","]
    ours.save_pretrained(tmp_path / "saved")
    got = ask_peer(transformers4(), tmp_path / "saved", texts=[text], only="slow")["slow"]["texts"]
    assert got[0][0] == ours.encode(text) == [2, *ours.encode_sentences([text])[0], 3]
    assert got[0][0].count(1) == 2


def test_transformers_5_masks_and_names_the_special_tokens_and_no_others(
    tokenizer: Open, tmp_path: pathlib.Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer().save_pretrained(tmp_path, model_max_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert set(theirs.all_special_tokens) == set(SPECIAL_TOKENS)
    assert (theirs.mask_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id) == (4, 2, 3, 0)
    assert theirs.model_max_length == 64
    ids = theirs("A (b).")["input_ids"]
    assert theirs.get_special_tokens_mask(ids, already_has_special_tokens=True) == [int(i < 5) for i in ids]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_raw_vocabularys_scores_come_back_from_its_tokenizer_json(tmp_path: pathlib.Path) -> None:
    first = AlbertTokenizer(spiece(tmp_path, raw=True))
    first.save_pretrained(tmp_path / "saved")
    again = AlbertTokenizer.from_pretrained(tmp_path / "saved" / "tokenizer.json")
    old, new = (parse_vocabulary(t._model).pieces for t in (first, again))
    glued = [i for i, piece in enumerate(old) if is_number_comma(piece.piece)]
    assert glued and all(old[i].score == new[i].score for i in glued)
    vocabulary = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(vocabulary[i][1] < -500 for i in glued)  # out of transformers' reach


@pytest.mark.parametrize("name", FLAGS)
def test_a_saved_directory_and_its_tokenizer_json_alone_give_the_same_ids_and_settings(
    name: str, tokenizer: Open, tmp_path: pathlib.Path
) -> None:
    settings = {"model_max_length": 77, "padding_side": "left", "truncation_side": "left"}
    first = tokenizer(name, **settings)
    first.save_pretrained(tmp_path / "saved")
    texts = corpus()[::10] + unicode_fuzz(500)
    for path in ("", "tokenizer.json", "spiece.model"):
        again = AlbertTokenizer.from_pretrained(tmp_path / "saved" / path)
        for setting in ("do_lower_case", "remove_space", "keep_accents", "cleaning", *settings):
            assert getattr(again, setting) == getattr(first, setting)
        assert again.encode_sentences(texts) == first.encode_sentences(texts)
    assert (tmp_path / "saved" / "spiece.model").read_bytes() == first.vocab_file.read_bytes()


@pytest.mark.parametrize(("version", "peers"), [(4, ["auto", "slow"]), (5, ["auto"])])
def test_what_transformers_saves_opens_with_the_same_ids_and_settings(
    version: int, peers: list[str], tokenizer: Open, tmp_path: pathlib.Path
) -> None:
    ours = tokenizer("cased", model_max_length=77)
    ours.save_pretrained(tmp_path / "ours")
    python = transformers4() if version == 4 else transformers5()
    for peer in peers:
        saved = tmp_path / peer
        answer = ask_peer(python, tmp_path / "ours", only=peer, calls=[["save_pretrained", [str(saved)], {}]])
        assert "error" not in answer[peer]["calls"][0] and (saved / "tokenizer_config.json").exists()
        again = AlbertTokenizer.from_pretrained(saved)
        assert (again.do_lower_case, again.model_max_length) == (False, 77)
        assert again.encode_sentences(corpus()[::10]) == ours.encode_sentences(corpus()[::10])


def test_what_is_asked_for_on_opening_wins_over_what_is_recorded(tokenizer: Open, tmp_path: pathlib.Path) -> None:
    tokenizer("cased").save_pretrained(tmp_path)
    again = AlbertTokenizer.from_pretrained(tmp_path, do_lower_case=True, model_max_length=9)
    assert (again.do_lower_case, again.model_max_length) == (True, 9)
    assert AlbertTokenizer.from_pretrained(tmp_path).model_max_length == 512


def test_what_is_no_albert_vocabulary_is_refused_with_its_reason(tmp_path: pathlib.Path) -> None:
    def refused(message: str, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            AlbertTokenizer(tmp_path / name)

    with pytest.raises(UserError, match="does not exist"):
        AlbertTokenizer.from_pretrained(tmp_path)
    refused("not a SentencePiece model", "text.model", b"not a model")
    refused(r"not a unigram tokenizer\.json", "tokenizer.json", b'{"model": {"type": "BPE"}}')
    other = train(corpus(), control_symbols=["[SEP]", "[CLS]", "[MASK]"])
    refused(r"2 is '\[SEP\]', not '\[CLS\]'", "other.model", other)
    refused("not a unigram model", "bpe.model", train(corpus(), model_type="bpe"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cleaning": "bert"}, "'bert' is none of the rules 'huggingface', 'google'"),
        ({"do_lower_case": "False"}, "do_lower_case='False' must be true or false"),
        ({"model_max_length": 0}, "model_max_length=0"),
        ({"padding_side": "top"}, "padding_side='top'"),
        ({"mask_token": {"content": "<mask>"}}, r"mask_token is '<mask>'; ALBERT's is '\[MASK\]'"),
        ({"additional_special_tokens": ["<new>"]}, "adds '<new>'"),
        ({"added_tokens_decoder": {"1500": {"content": "<new>"}}}, "adds '<new>'"),
    ],
)
def test_recorded_settings_that_cannot_be_honored_are_refused(
    settings: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    spiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        AlbertTokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_json_with_tokens_of_its_own_is_refused(tokenizer: Open, tmp_path: pathlib.Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["added_tokens"].append(values["added_tokens"][-1] | {"content": "<new>", "id": 1500})
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="adds '<new>'"):
        AlbertTokenizer.from_pretrained(file)
