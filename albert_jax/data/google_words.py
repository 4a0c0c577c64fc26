# SPDX-License-Identifier: Apache-2.0
"""Where a word starts by the rule of Google's ALBERT, which its n-gram masking and its `token_boundary` go by."""

from collections.abc import Sequence

import numpy as np

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
# Google's list leaves out ' < = > of ASCII's punctuation, so that "'s" starts a word, and "!s" does not.
_PUNCTUATION = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~')


def google_starts_word(pieces: Sequence[str]) -> np.ndarray:
    """Which pieces start a word in the data of Google's ALBERT (its create_pretraining_data.py, SentencePiece path).

    A piece does if it begins with "▁" or "<", is one punctuation character, or has a character that is neither an
    English letter nor punctuation: a digit, an apostrophe, any letter of another script. [CLS] and [SEP] do not by this
    rule; they are no part of any word there, and their `token_boundary` is 1.

    Args:
      pieces: the V pieces of a vocabulary, as text.

    Returns:
      bool [V].
    """
    return np.array([_starts_word(piece) for piece in pieces], bool)


def _starts_word(piece: str) -> bool:
    return (
        piece.startswith(("▁", "<"))
        or piece in _PUNCTUATION
        or not all(char.lower() in _LETTERS or char in _PUNCTUATION for char in piece)
    )
