# SPDX-License-Identifier: Apache-2.0
"""Which documents are held out for validation, and the guard that keeps training text out of them.

A document is a candidate if a hash of its content is low, so that equal documents fall into the same split wherever
they stand. Of the candidates those with the lowest hashes are held out, up to `MAX_VALIDATION_BYTES`: one percent of a
terabyte would be more than anybody evaluates. Then all other documents are streamed past them: a held-out document of
which more than a share of the word runs occur in training documents goes to training, and as that may give others away,
this is repeated until nothing changes. No document is dropped. Where validation has sources of its own, their documents
stay there, and those that would have gone are counted.

Parts of the corpus are looked at by different processes, twice: `Candidates` collects what one part has to offer,
`choose` joins these; `seen_in_training` looks at one part for what was chosen, `settle` joins those. The result
depends on the documents alone. Memory: about 10 bytes a word of held-out text in each process, so some 70 MB at most,
and twice that for candidates; these are as many as a part has where near-duplicates are to be removed from them first.
"""

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pretrain_data.sources.base import Document

SHINGLE_WORDS = 8
# Unless another share is given, a held-out document of which more shingles occur in training is a near-duplicate.
MAX_SHARED = 0.2
MAX_VALIDATION_BYTES = 32 * 2**20
# A word is a run of letters and digits; in scripts written without spaces each character is one: Thai and Lao, Burmese,
# Khmer, kana, Han.
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
_OTHER, _LETTER, _ALONE = range(3)
_BLOCK_CHARACTERS = 2**15
# An odd number, fixed for all time, and its inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_TABLE_BITS = 24  # 16 MB, and at most half full with `MAX_VALIDATION_BYTES` of text
_POWERS: dict[int, np.ndarray] = {}


def content_hash(lines: Sequence[str]) -> int:
    """64 bits of a document's content."""
    return int.from_bytes(hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest(), "little")


class Shingler:
    """Hashes runs of words, lower-cased, punctuation left out: a polynomial in the words' hashes modulo 2**64.

    Args:
        width: words in a run.
    """

    def __init__(self, width: int = SHINGLE_WORDS) -> None:
        self._factors = _powers(_BASE, width)

    def __call__(self, lines: Sequence[str]) -> np.ndarray:
        """uint64 [number of distinct shingles], sorted; one for a text of fewer words, none without words."""
        return np.unique(self.runs(lines))

    def runs(self, lines: Sequence[str]) -> np.ndarray:
        """uint64, the shingles in the order of the text."""
        words = np.concatenate([np.zeros(0, np.uint64), *(word_hashes(block) for block in _blocks(lines))])
        width = min(len(self._factors), len(words))
        count = len(words) - width + 1 if width else 0
        total = np.zeros(count, np.uint64)
        for k in range(width):
            total += words[k : k + count] * self._factors[k]
        return total


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    """The lines in pieces that fit into a processor's cache."""
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line) + 1
        if size > _BLOCK_CHARACTERS:
            yield "\n".join(block)
            block, size = [], 0
    yield "\n".join(block)


def word_hashes(text: str) -> np.ndarray:
    """uint64, a hash of each word of a text, in order: a polynomial in its lower-cased characters, mixed.

    All words at once: with c the characters and b odd, the sum of c[i] * b**i over a word that begins at s is a
    difference of prefix sums, and b**s has an inverse modulo 2**64.
    """
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    if not len(codes):
        return np.zeros(0, np.uint64)
    kind = _kinds()[codes]
    joined = (kind[1:] == _LETTER) & (kind[:-1] == _LETTER)  # character i + 1 goes on with the word of character i
    in_word = kind != _OTHER
    starts = np.flatnonzero(in_word & np.append(True, ~joined))
    ends = np.flatnonzero(in_word & np.append(~joined, True)) + 1
    powers = _powers(_BASE, len(codes))
    sums = np.append(np.uint64(0), np.cumsum((codes + np.uint64(1)) * powers, dtype=np.uint64))
    values = (sums[ends] - sums[starts]) * _powers(_INVERSE, len(codes))[starts]
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray(values ^ (values >> np.uint64(29)))


def _powers(base: int, count: int) -> np.ndarray:
    """uint64: base**0, base**1, ... modulo 2**64, at least `count` of them cached and that many returned."""
    known = _POWERS.get(base)
    if known is None or len(known) < count:
        size = max(count, 2 * _BLOCK_CHARACTERS)
        known = np.cumprod(np.append(np.uint64(1), np.full(size - 1, base, np.uint64)), dtype=np.uint64)
        _POWERS[base] = known
    return known[:count]


@functools.cache
def _kinds() -> np.ndarray:
    """uint8 [0x110000]: whether a character is a letter or digit of a word, a word of its own, or neither."""
    kinds = np.full(sys.maxunicode + 1, _OTHER, np.uint8)
    characters = "".join(map(chr, range(sys.maxunicode + 1)))
    for run in re.finditer(r"[^\W_]+", characters):
        kinds[slice(*run.span())] = _LETTER
    for run in re.finditer(_UNSPACED, characters):
        kinds[slice(*run.span())] = _ALONE
    return kinds


@dataclass
class Candidates:
    """The documents of a part that may be held out.

    Attributes:
        fraction: expected share of documents, in [0, 1].
        bounded: whether those are forgotten that `choose` would not take in any case.
        keys: `content_hash` of each.
        sizes: bytes of each.
        shingles: uint64, of each.
    """

    fraction: float
    bounded: bool = True
    keys: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    shingles: list[np.ndarray] = field(default_factory=list)
    _bytes: int = 0

    def offer(self, document: Document, key: int, shingler: Shingler) -> None:
        """Adds the document if its key is low enough."""
        if key < int(self.fraction * 2**64):
            self.keys.append(key)
            self.sizes.append(document.size)
            self.shingles.append(shingler(document.lines))
            self._bytes += self.sizes[-1]
            if self.bounded and self._bytes > 2 * MAX_VALIDATION_BYTES:
                self._forget()

    def _forget(self) -> None:
        """Keeps what `choose` takes of these, and the next one, which ends its choice among all candidates too."""
        keys, sizes = np.array(self.keys, np.uint64), np.array(self.sizes, np.int64)
        lowest = np.unique(keys, return_index=True)[1][: len(choose(keys, sizes)) + 1].tolist()
        self.keys, self.sizes = [self.keys[i] for i in lowest], [self.sizes[i] for i in lowest]
        self.shingles = [self.shingles[i] for i in lowest]
        self._bytes = sum(self.sizes)


def choose(keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The keys that are held out of all candidates: the lowest, until `MAX_VALIDATION_BYTES`, and one if there is any.

    Args:
        keys: uint64 [C], in any order; equal keys are equal documents.
        sizes: int64 [C], bytes.

    Returns:
        uint64, sorted.
    """
    unique, first = np.unique(keys, return_index=True)
    within = np.cumsum(sizes[first]) <= MAX_VALIDATION_BYTES
    return unique[: max(1, int(np.count_nonzero(within)))]


@dataclass(frozen=True)
class HeldOut:
    """Documents that are held out, with their shingles.

    Attributes:
        keys: uint64 [C], sorted.
        offsets: int64 [C + 1], where each document's shingles begin.
        shingles: uint64, one document's after the other's.
    """

    keys: np.ndarray
    offsets: np.ndarray
    shingles: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "HeldOut":
        """Picks the chosen `keys` from the parts' (keys, offsets, shingles)."""
        found: dict[int, np.ndarray] = {}
        for part_keys, offsets, shingles in parts:
            for i in np.flatnonzero(np.isin(part_keys, keys)):
                found.setdefault(int(part_keys[i]), shingles[offsets[i] : offsets[i + 1]])
        chosen = [found[int(key)] for key in keys]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in chosen], dtype=np.int64)])
        return cls(keys, offsets, np.concatenate([np.zeros(0, np.uint64), *chosen]))

    @property
    def vocabulary(self) -> np.ndarray:
        """uint64, the distinct shingles, sorted."""
        return np.unique(self.shingles)

    def shared(self, seen: np.ndarray) -> np.ndarray:
        """float64 [C]: which share of each document's shingles was seen, of `vocabulary`; 0 where it has none."""
        places = np.searchsorted(self.vocabulary, self.shingles)
        sums = np.append(0, np.cumsum(seen[places]))
        return (sums[self.offsets[1:]] - sums[self.offsets[:-1]]) / np.maximum(np.diff(self.offsets), 1)


def contains(keys: np.ndarray, key: int) -> bool:
    """Whether a sorted uint64 array has the key."""
    place = int(np.searchsorted(keys, np.uint64(key)))
    return place < len(keys) and int(keys[place]) == key


def seen_in_training(
    vocabulary: np.ndarray, documents: Iterable[Document], in_training: Callable[[Document], bool]
) -> np.ndarray:
    """bool [len(vocabulary)]: which shingles occur in the documents of a part that are training documents.

    Args:
        vocabulary: `HeldOut.vocabulary`.
        documents: a part's.
        in_training: tells training documents from others.
    """
    seen = np.zeros(len(vocabulary), bool)
    shingler = Shingler()
    # Nearly all runs are in no held-out document, which a table over some of their bits tells faster than a search.
    possible = np.zeros(2**_TABLE_BITS, bool)
    possible[_table_place(vocabulary)] = True
    for document in documents:
        if in_training(document):
            runs = shingler.runs(document.lines)
            runs = runs[possible[_table_place(runs)]]
            places = np.minimum(np.searchsorted(vocabulary, runs), len(vocabulary) - 1)
            seen[places[vocabulary[places] == runs]] = True
    return seen


def _table_place(runs: np.ndarray) -> np.ndarray:
    return np.asarray(runs >> np.uint64(64 - _TABLE_BITS))


def settle(held_out: HeldOut, seen: np.ndarray, most: float) -> np.ndarray:
    """Which documents stay held out, as training text does not give them away.

    Args:
        held_out: the chosen documents.
        seen: bool, which of `HeldOut.vocabulary` occurs in training documents.
        most: the share of a document's shingles that may.

    Returns:
        uint64 keys, sorted.
    """
    vocabulary, seen = held_out.vocabulary, seen.copy()
    staying = np.ones(len(held_out.keys), bool)
    while True:
        leaking = staying & (held_out.shared(seen) > most)
        for i in np.flatnonzero(leaking):
            own = held_out.shingles[held_out.offsets[i] : held_out.offsets[i + 1]]
            seen[np.searchsorted(vocabulary, own)] = True
        staying &= ~leaking
        if not leaking.any():
            return held_out.keys[staying]
