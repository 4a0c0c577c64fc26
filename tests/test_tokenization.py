# SPDX-License-Identifier: Apache-2.0
"""Both tokenizers follow ALBERT's rules, equal each other, and what they save makes transformers 4 and 5 equal too."""

import functools
import io
import itertools
import json
import os
import pathlib
import pydoc_data.topics
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece

from albert_jax.errors import UserError
from albert_jax.tokenization import SPECIAL_TOKENS, AlbertTokenizer, AlbertTokenizerFast, clean, settle_scores

PEERS = pathlib.Path(__file__).parent / "tokenizer_peers.py"
CASED = {"do_lower_case": False}
ACCENTS = {"keep_accents": True}
OTHER_SCRIPTS = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ο ΟΔΟΣ της Αθήνας, 1 αγάπη.",
    "モデルは文の順序を学ぶ。한국어 문장도 있습니다.",
    "हिन्दी में क्या लिखा है?",
    "Bộ não người Việt; über Straße, été à Orléans, £5 – €7.",
    "اللُّغَة العربية والعبرية: שָׁלוֹם",
]


def corpus() -> list[str]:
    """Prose that every Python carries, other scripts, and plenty of numbers with commas."""
    prose = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
    numbers = [f"In {year}, {year % 9},{year:03d} of {year - 70}, that is 1, 2, 3." for year in range(1900, 2030)]
    return prose[:3000] + OTHER_SCRIPTS * 5 + numbers * 5


def train(file: pathlib.Path, lines: list[str], **options: Any) -> pathlib.Path:
    """Trains a small vocabulary by ALBERT's recipe; `raw` leaves its scores as they came."""
    raw = options.pop("raw", False)
    flags = {name: options.pop(name) for name in ("do_lower_case", "keep_accents") if name in options}
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": 1500,
        "character_coverage": 1.0,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        "user_defined_symbols": ["(", ")", '"', "-", ".", "–", "£", "€"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([clean(line, **flags) for line in lines]), model_writer=model, **(defaults | options)
    )
    file.write_bytes(model.getvalue() if raw else settle_scores(model.getvalue()))
    return file


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """spiece.model files by their flags, each trained once and alone in its directory."""
    made: dict[str, pathlib.Path] = {}

    def get(**flags: bool) -> pathlib.Path:
        key = json.dumps(flags)
        if key not in made:
            made[key] = train(tmp_path_factory.mktemp("vocabulary") / "spiece.model", corpus(), **flags)
        return made[key]

    return get


@pytest.fixture(scope="module")
def uncased(vocabulary: Callable[..., pathlib.Path]) -> pathlib.Path:
    """The uncased vocabulary."""
    return vocabulary()


@functools.cache
def unicode_fuzz(count: int) -> list[str]:
    """Short strings of everything: accents, scripts, marks, invisible characters, numbers with commas."""
    chance = random.Random(1)
    assigned = [chr(c) for c in range(0x3FFFF) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    marks = [c for c in assigned if unicodedata.category(c).startswith("M")]
    invisible = [c for c in assigned if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp")]
    usual = list("aeiouAEIOUßıİéÉñΣςσ0123456789 ,,..'`\"()-–£€%&\t\n🙂") + list("".join(OTHER_SCRIPTS))
    kinds = [usual] * 12 + [marks, invisible, assigned]
    return ["".join(chance.choice(chance.choice(kinds)) for _ in range(chance.randint(1, 14))) for _ in range(count)]


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_a_number_and_the_comma_after_it_are_never_one_token(kind: Any, tmp_path: pathlib.Path) -> None:
    tokenizer = kind(train(tmp_path / "spiece.model", corpus(), raw=True))
    glued = [
        p for p in tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size)) if p[-2:-1].isdigit() and p[-1] == ","
    ]
    assert glued, "the vocabulary has no piece on which to try this"
    text = " ".join(p.lstrip("▁") for p in glued)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode_sentences([text])[0])
    assert not set(tokens) & set(glued)
    assert tokens.count(",") == len(glued)
    assert "".join(tokens).replace("▁", " ").strip() == text


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_special_tokens_spelled_in_a_text_count_in_encode_and_are_mere_text_in_data(
    kind: Any, vocabulary: Callable[..., pathlib.Path]
) -> None:
    for flags in ({}, CASED):
        tokenizer = kind(vocabulary(**flags), **flags)
        text = "one [MASK] two <pad> [SEP] <unk> [CLS] end"
        ids = tokenizer.encode(text)["input_ids"]
        assert [i for i in ids if i < 5] == [2, 4, 0, 3, 1, 2, 3]
        known = [i for i in tokenizer.encode_sentences([text])[0] if i != 1]
        assert min(known) > 4


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_a_pair_has_token_types_0_through_the_first_sep_and_1_after_it(kind: Any, uncased: pathlib.Path) -> None:
    tokenizer = kind(uncased)
    a, b = tokenizer.encode_sentences(["The first one.", "And another"])
    assert tokenizer.encode("The first one.", "And another") == {
        "input_ids": [2, *a, 3, *b, 3],
        "token_type_ids": [0] * (len(a) + 2) + [1] * (len(b) + 1),
        "attention_mask": [1] * (len(a) + len(b) + 3),
    }


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_a_text_of_nothing_gives_no_tokens_and_keeps_its_place(kind: Any, uncased: pathlib.Path) -> None:
    got = kind(uncased).encode_sentences(["", "word", " \t\n\u200b", "word"])
    assert got[0] == got[2] == []
    assert got[1] == got[3] != []


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_case_accents_quotes_and_space_are_cleaned_as_the_flags_say(
    kind: Any, vocabulary: Callable[..., pathlib.Path]
) -> None:
    def same(a: str, b: str, **flags: bool) -> bool:
        first, second = kind(vocabulary(**flags), **flags).encode_sentences([a, b])
        return first == second

    assert same("ÉTÉ  à``Orléans''", 'ete\n a"orleans"')
    assert not same("Word", "word", **CASED)
    assert same("été", "ete", **CASED)
    assert not same("été", "ete", **ACCENTS)
    assert same("ÉTÉ", "été", **ACCENTS)


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_decoding_gives_back_the_cleaned_text(kind: Any, uncased: pathlib.Path) -> None:
    tokenizer = kind(uncased)
    encoded = tokenizer.encode("The [MASK] of a class, 2,000 times.")["input_ids"]
    assert tokenizer.decode(encoded) == "[CLS] the [MASK] of a class, 2,000 times. [SEP]"
    assert tokenizer.decode(encoded, skip_special_tokens=True) == "the of a class, 2,000 times."


# --- fast == slow -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, CASED, ACCENTS], ids=["uncased", "cased", "accents"])
def test_fast_equals_slow_on_prose_and_on_any_unicode(
    flags: dict[str, bool], vocabulary: Callable[..., pathlib.Path]
) -> None:
    file = vocabulary(**flags)
    texts = corpus() + unicode_fuzz(5000)
    slow = AlbertTokenizer(file, **flags).encode_sentences(texts)
    fast = AlbertTokenizerFast(file, **flags).encode_sentences(texts)
    assert [ascii(t) for t, a, b in zip(texts, slow, fast, strict=True) if a != b] == []


def test_user_defined_symbols_win_in_fast_where_they_win_in_slow(tmp_path: pathlib.Path) -> None:
    # Long ones compete with ordinary pieces ("▁statement", "ing"), and with one another.
    symbols = ["statementing", "import", "//", "///", "ab", "bc", "1."]
    file = train(tmp_path / "spiece.model", corpus(), user_defined_symbols=symbols)
    texts = [*corpus(), "statementing", "statements", "1.//import", "/////", "/// //", "abc", "xabcabx"]
    slow, fast = AlbertTokenizer(file), AlbertTokenizerFast(file)
    assert fast.encode_sentences(texts) == slow.encode_sentences(texts)
    assert "statementing" in fast.convert_ids_to_tokens(fast.encode_sentences(["statementing"])[0])


def test_fast_equals_slow_but_for_ties_where_scores_are_as_the_trainer_left_them(tmp_path: pathlib.Path) -> None:
    file = train(tmp_path / "spiece.model", corpus(), raw=True)
    # Rows of one character have many segmentations of the same score, between which rounding decides.
    texts = [text for text in corpus() if not any(c * 4 in text for c in set(text))]
    assert AlbertTokenizerFast(file).encode_sentences(texts) == AlbertTokenizer(file).encode_sentences(texts)


def test_fast_equals_slow_where_the_vocabulary_has_no_comma(tmp_path: pathlib.Path) -> None:
    file = train(tmp_path / "spiece.model", [line.replace(",", "") for line in corpus()])
    texts = corpus()
    assert AlbertTokenizerFast(file).encode_sentences(texts) == AlbertTokenizer(file).encode_sentences(texts)


# --- equal to transformers --------------------------------------------------------------------------------------------


def peer_texts() -> list[Any]:
    """Texts, texts with special tokens in odd places, and pairs."""
    lines = corpus()[::3]
    special = ["[MASK]", "a [MASK]b", "x[SEP] .[MASK]. <pad>", "", " ", "a\x0bb\x1cc\x1d\x85d\u2028e", "▁a ▁▁b c▁"]
    return lines + special + list(itertools.pairwise(lines[:200])) + [("", "b [MASK]")]


def ask_peer(python: str, directory: pathlib.Path, texts: list[Any]) -> dict[str, list[Any]]:
    """What transformers makes of the texts in the environment of `python`; see tokenizer_peers.py."""
    run = subprocess.run(
        [python, str(PEERS), str(directory)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def transformers4() -> str:
    """The interpreter of an environment with transformers 4, or a skip that says how to have one."""
    beside = pathlib.Path(__file__).parents[1] / ".venv-transformers4" / "bin" / "python"
    python = os.environ.get("ALBERT_JAX_TRANSFORMERS4_PYTHON", str(beside) if beside.exists() else "")
    if not python:
        pytest.skip("no transformers 4: set ALBERT_JAX_TRANSFORMERS4_PYTHON to a python that has transformers 4.57.6")
    return python


def check_peer(python: str, file: pathlib.Path, flags: dict[str, bool], tmp_path: pathlib.Path) -> list[str]:
    """Compares a peer, given what we save, with the slow tokenizer; returns the peer's tokenizers."""
    ours = AlbertTokenizer(file, **flags)
    ours.save_pretrained(tmp_path)
    texts = peer_texts() + unicode_fuzz(2000)
    wanted = [list(ours.encode(*([t] if isinstance(t, str) else t)).values())[:2] for t in texts]
    answers = ask_peer(python, tmp_path, texts)
    for name, got in answers.items():
        different = [t for t, a, b in zip(texts, wanted, got, strict=True) if a != b]
        # The exceptions that save_pretrained's docstring names touch the Rust pipelines alone.
        assert [ascii(t) for t in different if name == "slow" or not isinstance(t, str) or ordinary(t)] == [], name
    return sorted(answers)


def ordinary(text: str) -> bool:
    """Whether a text is free of letters younger than Unicode 9, and of marks after modifier letters and other marks."""
    if any(unicodedata.normalize("NFKD", c) != c and unicodedata.ucd_3_2_0.category(c) == "Cn" for c in text):
        return False
    kinds = [unicodedata.category(c) for c in text]
    return not any((a == "Lm" or a[0] == "M") and b[0] == "M" for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("flags", [{}, CASED, ACCENTS], ids=["uncased", "cased", "accents"])
def test_what_is_saved_makes_transformers_4_slow_and_auto_equal(
    flags: dict[str, bool], vocabulary: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert check_peer(transformers4(), vocabulary(**flags), flags, tmp_path) == ["auto", "slow"]


@pytest.mark.parametrize("flags", [{}, CASED, ACCENTS], ids=["uncased", "cased", "accents"])
def test_what_is_saved_makes_transformers_5_auto_equal(
    flags: dict[str, bool], vocabulary: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if transformers.__version__.startswith("4."):
        pytest.skip(f"this environment has transformers {transformers.__version__}, not 5")
    assert check_peer(sys.executable, vocabulary(**flags), flags, tmp_path) == ["auto"]


def test_transformers_5_masks_and_names_the_special_tokens_and_no_others(
    uncased: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    AlbertTokenizer(uncased).save_pretrained(tmp_path, model_max_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert set(theirs.all_special_tokens) == set(SPECIAL_TOKENS)
    assert (theirs.mask_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id) == (4, 2, 3, 0)
    assert theirs.model_max_length == 64
    ids = theirs("A (b).")["input_ids"]
    assert theirs.get_special_tokens_mask(ids, already_has_special_tokens=True) == [int(i < 5) for i in ids]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
@pytest.mark.parametrize("flags", [{}, CASED, ACCENTS], ids=["uncased", "cased", "accents"])
def test_a_saved_directory_and_its_tokenizer_json_alone_give_the_same_ids_and_flags(
    kind: Any, flags: dict[str, bool], vocabulary: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    first = kind(vocabulary(**flags), **flags)
    first.save_pretrained(tmp_path)
    texts = corpus()[::10] + unicode_fuzz(500)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = kind.from_pretrained(path)
        assert (again.do_lower_case, again.keep_accents) == (first.do_lower_case, first.keep_accents)
        assert again.encode_sentences(texts) == first.encode_sentences(texts)
    assert (tmp_path / "spiece.model").read_bytes() == first.vocab_file.read_bytes()


@pytest.mark.parametrize("kind", [AlbertTokenizer, AlbertTokenizerFast])
def test_what_is_no_albert_vocabulary_is_refused_with_its_reason(kind: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        kind.from_pretrained(tmp_path)
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        kind(tmp_path / "text.model")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match=r"not a unigram tokenizer\.json"):
        kind(tmp_path / "tokenizer.json")
    other = train(tmp_path / "other.model", corpus(), control_symbols=["[SEP]", "[CLS]", "[MASK]"])
    with pytest.raises(UserError, match=r"2 is '\[SEP\]', not '\[CLS\]'"):
        kind(other)
    pairs = train(tmp_path / "bpe.model", corpus(), model_type="bpe")
    with pytest.raises(UserError, match="not a unigram model"):
        kind(pairs)
