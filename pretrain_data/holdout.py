# SPDX-License-Identifier: Apache-2.0
"""Which documents are held out for validation, and the guard that keeps training text out of them."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from pretrain_data.corpora import Document

SHINGLE_WORDS = 8
# A held-out document of which more than this share of shingles occurs in training documents is a near-duplicate.
MAX_SHARED = 0.2
# A word is a run of letters and digits; scripts written without spaces count each character.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+"
)
_MAX_CACHED_WORDS = 1_000_000


def content_hash(lines: Sequence[str]) -> int:
    """64 bits of a document's content; equal documents fall into the same split, wherever they stand."""
    return int.from_bytes(hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest(), "little")


class Shingler:
    """Hashes runs of `SHINGLE_WORDS` words, lower-cased, punctuation left out."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        # Odd multipliers, fixed for all time: a polynomial in the words' hashes modulo 2**64.
        base = 0x9E3779B97F4A7C15
        self._factors = [np.uint64(pow(base, k, 2**64)) for k in range(SHINGLE_WORDS)]

    def __call__(self, lines: Sequence[str]) -> np.ndarray:
        """uint64 [number of distinct shingles], sorted; one for a text of fewer words, none without words."""
        words = _WORD.findall(" ".join(lines).lower())
        if not words:
            return np.zeros(0, np.uint64)
        hashes = np.array([self._hash(word) for word in words], np.uint64)
        width = min(SHINGLE_WORDS, len(hashes))
        count = len(hashes) - width + 1
        total = np.zeros(count, np.uint64)
        for k in range(width):
            total += hashes[k : k + count] * self._factors[k]
        return np.unique(total)

    def _hash(self, word: str) -> int:
        value = self._hashes.get(word)
        if value is None:
            if len(self._hashes) >= _MAX_CACHED_WORDS:
                self._hashes.clear()
            value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._hashes[word] = value
        return value


class Holdout:
    """Chooses validation documents by a hash of their content, then hands back those that training text resembles.

    Two passes over the corpus: `choose` remembers the shingles of the chosen documents (all that is kept in memory:
    about 17 bytes a held-out word), `guard` streams the other documents past them. A chosen document that shares more
    than a fifth of its shingles with training documents becomes a training document; as that may give others away, it
    is repeated until nothing changes. No document is dropped.

    Args:
        fraction: expected share of documents held out, in (0, 1).
    """

    def __init__(self, fraction: float) -> None:
        self._limit = int(fraction * 2**64)
        self._chosen: dict[int, np.ndarray] = {}
        self._shingle = Shingler()
        self.near_duplicates = 0

    def choose(self, documents: Iterable[Document]) -> None:
        """First pass."""
        for document in documents:
            key = content_hash(document.lines)
            if key < self._limit and key not in self._chosen:
                self._chosen[key] = self._shingle(document.lines)

    def guard(self, documents: Iterable[Document]) -> None:
        """Second pass, over the same documents."""
        all_shingles = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._chosen.values()]))
        in_training = np.zeros(len(all_shingles), bool)
        for document in documents:
            if len(all_shingles) and content_hash(document.lines) not in self._chosen:
                shingles = self._shingle(document.lines)
                places = np.minimum(np.searchsorted(all_shingles, shingles), len(all_shingles) - 1)
                in_training[places[all_shingles[places] == shingles]] = True
        while True:
            leaking = [
                key for key, own in self._chosen.items() if self._shared(own, all_shingles, in_training) > MAX_SHARED
            ]
            for key in leaking:
                in_training[np.searchsorted(all_shingles, self._chosen.pop(key))] = True
            self.near_duplicates += len(leaking)
            if not leaking:
                return

    @staticmethod
    def _shared(own: np.ndarray, all_shingles: np.ndarray, in_training: np.ndarray) -> float:
        return float(in_training[np.searchsorted(all_shingles, own)].mean()) if len(own) else 0.0

    def __len__(self) -> int:
        """How many contents are held out; after both passes, how many will be in validation."""
        return len(self._chosen)

    def __contains__(self, document: Document) -> bool:
        """Whether the document is a validation document (meaningful after both passes)."""
        return content_hash(document.lines) in self._chosen
