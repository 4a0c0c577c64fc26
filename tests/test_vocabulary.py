# SPDX-License-Identifier: Apache-2.0
"""What the stream takes from a SentencePiece vocabulary."""

import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest
import sentencepiece

from albert_jax.data.vocabulary import Vocabulary, is_punctuation
from albert_jax.errors import UserError
from tests.text_store import topics_data

SENTENCES = ["the river (follows) the stone, and the teacher sings.", "a stone: the river!", "winter letters"] * 9


def train(folder: pathlib.Path, **options: Any) -> pathlib.Path:
    """A model of `SENTENCES` with the ids that the options give."""
    common: dict[str, Any] = {"vocab_size": 45, "model_type": "unigram", "minloglevel": 2, "hard_vocab_limit": False}
    prefix = folder / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(prefix), **(common | options)
    )
    return prefix.with_suffix(".model")


ALBERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}


def test_a_word_starts_at_a_marked_piece_and_at_bare_punctuation(tmp_path: pathlib.Path) -> None:
    pieces = ["▁the", "▁", "▁(", "ing", "s", "(", ")", ".", ",", ":", "!", "--", "▁stone", "'s", "1", "é"]
    model = train(tmp_path, **ALBERT, control_symbols=["[CLS]", "[SEP]", "[MASK]"], user_defined_symbols=pieces)
    vocabulary = Vocabulary.load(model)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    starts = {piece for piece in pieces if vocabulary.starts_word[processor.piece_to_id(piece)]}
    assert starts == {"▁the", "▁", "▁(", "(", ")", ".", ",", ":", "!", "--", "▁stone"}


@pytest.mark.parametrize(("piece", "expected"), [("(", True), ("...", True), ("£", True), ("a.", False), ("5", False)])
def test_punctuation_is_punctuation_and_symbols_only(piece: str, expected: bool) -> None:
    assert is_punctuation(piece) is expected


def test_size_digest_and_replacements_are_the_models(
    tmp_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = topics_data(tmp_path_factory) / "spiece.model"
    vocabulary = Vocabulary.load(model)
    assert vocabulary.size == len(vocabulary.starts_word) == 1500
    assert vocabulary.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    np.testing.assert_array_equal(vocabulary.replacements, np.arange(5, 1500))


@pytest.mark.parametrize("kind", ["control_symbols", "user_defined_symbols"])
def test_special_pieces_never_stand_in_for_a_word_however_the_model_declares_them(
    tmp_path: pathlib.Path, kind: str
) -> None:
    vocabulary = Vocabulary.load(train(tmp_path, **ALBERT, **{kind: ["[CLS]", "[SEP]", "[MASK]"]}))
    np.testing.assert_array_equal(vocabulary.replacements, np.arange(5, vocabulary.size))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "'<pad>': 0"),  # SentencePiece's own ids: no <pad>, so that its name gives the unknown id
        (ALBERT, r"'\[CLS\]': 1"),
        (ALBERT | {"control_symbols": ["[SEP]", "[CLS]", "[MASK]"]}, r"'\[CLS\]': 3, '\[SEP\]': 2"),
        (ALBERT | {"unk_id": 0, "pad_id": 1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}, "'<pad>': 1"),
    ],
)
def test_a_vocabulary_with_other_special_ids_is_refused_by_their_names(
    tmp_path: pathlib.Path, options: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        Vocabulary.load(train(tmp_path, **options))


def test_a_missing_file_and_a_file_that_is_no_model_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"absent\.model does not exist; make one"):
        Vocabulary.load(tmp_path / "absent.model")
    for content in (b"", b"\xff\x00 text that is no model"):
        (tmp_path / "other.model").write_bytes(content)
        with pytest.raises(UserError, match=r"other\.model"):
            Vocabulary.load(tmp_path / "other.model")
