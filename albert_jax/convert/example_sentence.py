# SPDX-License-Identifier: Apache-2.0
"""A sentence of a data set with one word masked, for the card of a model that was trained on it."""

import json
import pathlib
import unicodedata
from typing import Any

import numpy as np

from albert_jax.data.store import TextStore
from albert_jax.data.vocabulary import SPECIAL_IDS, Vocabulary, is_punctuation
from albert_jax.errors import UserError
from albert_jax.remote import is_remote
from albert_jax.tokenization import AlbertTokenizer

_RECORDS = 100  # so many are looked at
_PIECES = range(6, 31)  # of a sentence that is easy to read
_MASK = "[MASK]"


def example_sentence(meta: dict[str, Any], vocabulary: pathlib.Path, tokenizer: AlbertTokenizer) -> str | None:
    """The first fit sentence, of letters and punctuation, of the validation split, or of training where there is none.

    Args:
      meta: of the checkpoint: `config`, `data_fingerprint`.
      vocabulary: the run's spiece.model.
      tokenizer: of that vocabulary.

    Returns:
      Its text with "[MASK]" for its longest word of one piece, or None: the data set is not at `data.path` any more,
      is another by now, or no text but Google's records, or has no such sentence.
    """
    path = meta["config"]["data"]["path"]
    if not path or is_remote(path) or meta["config"]["data"]["recipe"] == "baked":
        return None
    try:
        store = TextStore(path, "train")
        if store.fingerprint != meta["data_fingerprint"]:
            return None
        splits = json.loads((pathlib.Path(path) / "manifest.json").read_text("utf-8"))["splits"]
        if "validation" in splits and splits["validation"]["records"]:
            store = TextStore(path, "validation")
        records = np.arange(min(_RECORDS, len(store.sentences_per_record)))
        tokens = store.read(records)[0]
    except (UserError, OSError):
        return None
    known, lengths = Vocabulary.load(vocabulary), store.sentence_lengths[: int(store.record_sentences[len(records)])]
    for ids in np.split(tokens, np.cumsum(lengths, dtype=np.int64)[:-1]):
        word = _word(ids, known)
        if word is not None:
            return _masked([known.pieces[i] for i in ids], word, tokenizer)
    return None


def _word(ids: np.ndarray, vocabulary: Vocabulary) -> int | None:
    """Where the longest word of one piece stands, or the longest piece if no word is one; None in an unfit sentence."""
    if len(ids) not in _PIECES or set(ids.tolist()) & set(SPECIAL_IDS.values()):
        return None
    starts = np.append(vocabulary.starts_word[ids], True)
    letters = [vocabulary.pieces[i].lstrip("▁") for i in ids]
    if not all(is_punctuation(text) or _is_letters(text) for text in letters):
        return None
    rank = [(_is_letters(text), bool(starts[i] and starts[i + 1]), len(text)) for i, text in enumerate(letters)]
    best = max(range(len(ids)), key=rank.__getitem__)
    return best if rank[best][0] else None


def _is_letters(text: str) -> bool:
    return bool(text) and all(unicodedata.category(char)[0] in "LM" for char in text)  # many scripts write with marks


def _masked(pieces: list[str], at: int, tokenizer: AlbertTokenizer) -> str:
    before, after = (tokenizer.convert_tokens_to_string(part).strip() for part in (pieces[:at], pieces[at + 1 :]))
    left, right = (" " * part.startswith("▁") for part in (pieces[at], *pieces[at + 1 : at + 2], "")[:2])
    return f"{before}{left}{_MASK}{right}{after}".strip()
