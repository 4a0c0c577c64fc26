# SPDX-License-Identifier: Apache-2.0
"""With Google's published English vocabulary the tokenizer gives the ids that others have published.

ALBERT_JAX_SPIECE_MODEL names that vocabulary, Google's 30k-clean.model (the spiece.model of albert-base-v2);
ALBERT_JAX_HELDOUT_TEXT a text file, plain or .xz, of which each line is compared with transformers 4's slow tokenizer.
"""

import hashlib
import lzma
import os
import pathlib

import pytest

from albert_jax.tokenization import SPECIAL_TOKENS, AlbertTokenizer
from tests.peers import transformers4
from tests.tokenizer_samples import ask_peer, unicode_fuzz


def from_environment(name: str, what: str) -> pathlib.Path:
    """The file that an environment variable names, or a skip that says what it should name."""
    if name not in os.environ:
        pytest.skip(f"{name} is not set: it names {what}")
    return pathlib.Path(os.environ[name])


@pytest.fixture
def spiece_model() -> pathlib.Path:
    """The published vocabulary."""
    file = from_environment("ALBERT_JAX_SPIECE_MODEL", "Google's 30k-clean.model, the spiece.model of albert-base-v2")
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith("fefb02b6"), f"{file} is another vocabulary"
    return file


def test_the_published_vocabulary_has_its_pieces_where_they_belong(spiece_model: pathlib.Path) -> None:
    ours = AlbertTokenizer(spiece_model)
    assert len(ours) == ours.vocab_size == 30000
    first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "(", ")", '"', "-", ".", "–", "£", "€", "▁", "▁the", ","]
    assert ours.convert_ids_to_tokens(range(16)) == first
    assert ours.convert_ids_to_tokens(29999) == "▁eloquent"


def test_transformers_own_test_sentences_have_their_published_ids(spiece_model: pathlib.Path) -> None:
    ours = AlbertTokenizer(spiece_model, keep_accents=True)
    assert ours.tokenize("This is a test") == ["▁this", "▁is", "▁a", "▁test"]
    assert ours.encode("This is a test", add_special_tokens=False) == [48, 25, 21, 1289]
    text = "I was born in 92000, and this is falsé."
    tokens = ["▁i", "▁was", "▁born", "▁in", "▁9", "2000", ",", "▁and", "▁this", "▁is", "▁fal", "s", "é", "."]
    ids = [31, 23, 386, 19, 561, 3050, 15, 17, 48, 25, 8256, 18, 1, 9]
    assert ours.tokenize(text) == tokens
    assert ours.encode(text, add_special_tokens=False) == ours.convert_tokens_to_ids(tokens) == ids
    assert ours.convert_ids_to_tokens(ids) == [*tokens[:-2], "<unk>", "."]
    without_accents = AlbertTokenizer(spiece_model).encode(text, add_special_tokens=False)
    assert without_accents == [31, 23, 386, 19, 561, 3050, 15, 17, 48, 25, 4997, 9]


def test_bumblebees_test_sentences_have_their_published_ids(spiece_model: pathlib.Path) -> None:
    ours = AlbertTokenizer(spiece_model)
    assert ours("Test sentence with [MASK].").input_ids == [2, 1289, 5123, 29, 4, 13, 9, 3]
    pair = ours("Question?", "Answer")
    assert pair.input_ids == [2, 1301, 60, 3, 1623, 3]
    assert pair.token_type_ids == [0, 0, 0, 0, 1, 1]


def check_slow(spiece_model: pathlib.Path, texts: list[str], tmp_path: pathlib.Path) -> None:
    """Compares texts with transformers 4's slow tokenizer, given the published file and no settings but its class."""
    ours = AlbertTokenizer(spiece_model)
    ours.save_pretrained(tmp_path)
    theirs = ask_peer(transformers4(), tmp_path, only="slow", texts=texts)["slow"]["texts"]
    mine = ours(texts, truncation=False).input_ids
    assert [ascii(t) for t, a, (b, _) in zip(texts, mine, theirs, strict=True) if a != b] == []
    from_json = AlbertTokenizer.from_pretrained(tmp_path / "tokenizer.json")
    assert from_json(texts, truncation=False).input_ids == mine
    ordinary = [text for text in texts if not any(token in text for token in SPECIAL_TOKENS)]
    assert [ids[1:-1] for ids in ours(ordinary, truncation=False).input_ids] == ours.encode_sentences(ordinary)


def test_any_unicode_is_tokenized_as_by_transformers_slow_tokenizer(
    spiece_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    check_slow(spiece_model, unicode_fuzz(5000), tmp_path)


@pytest.mark.slow
def test_every_line_of_a_text_is_tokenized_as_by_transformers_slow_tokenizer(
    spiece_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = from_environment("ALBERT_JAX_HELDOUT_TEXT", "a text file, plain or .xz")
    content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    lines = content.decode().split("\n")
    print(f"{len(lines):,} lines")
    check_slow(spiece_model, lines, tmp_path)
