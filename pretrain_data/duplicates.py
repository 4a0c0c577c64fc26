# SPDX-License-Identifier: Apache-2.0
"""Documents that repeat another one, or nearly so, of which one is kept.

Two documents are near-duplicates if they share at least `THRESHOLD` of the runs of `SHINGLE_WORDS` words that either of
them has (their Jaccard similarity), estimated by MinHash signatures: text in which up to a tenth was replaced by other
passages, or one word in fifty here and there. `signatures` is for one part of the corpus, by any process;
`find_duplicates` joins what the parts gave; `Duplicates.keep` then decides for a document by itself.

Pairs are looked for by locality-sensitive hashing, by the method of section 3.4 of Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets": a pair of similarity s is a candidate with probability 1 - (1 - s^8)^16, which is 0.95 at
0.8 and 0.9999 at 0.9, and counts if its signatures agree in `THRESHOLD` of their entries, an estimate with a standard
error of 0.035 there. What is linked by a chain of pairs is one group, of which the document with the lowest key is
kept.

The result depends on the set of the documents' contents alone, neither on their order nor on their division into parts:
`find_duplicates` numbers contents by their keys, and never looks at where they stand. Only which of several equal
copies is kept, the first, is a matter of order; they are equal.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pretrain_data.holdout import Shingler, contains, content_hash
from pretrain_data.sources.base import Document

THRESHOLD = 0.8
SHINGLE_WORDS = 5
SIGNATURE_SIZE = 128
_BANDS, _BAND_ROWS = 16, 8
_SEED = 0
# A signature of nothing.
_EMPTY = np.uint32(0xFFFFFFFF)
# With how many others a document is compared at most of those that are equal to it in a band, see `_candidates`.
_LEADERS = 8
# Memory of `find_duplicates` for a document, measured.
_BYTES = 650
# Pairs that are compared at once: 64 MiB of signatures.
_PAIRS = 2**16


@functools.cache
def _shingler() -> Shingler:
    """One for each process, as it remembers the hashes of words."""
    return Shingler(SHINGLE_WORDS)


def signatures(documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Keys and MinHash signatures. A document shorter than a run of words is one run.

    10,000 to 25,000 documents of 300 bytes each second on one core; of long documents 40 MB.

    Args:
        documents: D of them; a call for some hundred costs the least for each.

    Returns:
        uint64 [D], `content_hash` of each; uint32 [D, 128], all ones for a document without any word.
    """
    keys = np.array([content_hash(document.lines) for document in documents], np.uint64)
    shingles = [_shingler().runs(document.lines) for document in documents]
    offsets = np.cumsum([0, *map(len, shingles)], dtype=np.uint64)
    flat = np.concatenate([np.zeros(0, np.uint64), *shingles])
    digests = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, SIGNATURE_SIZE, _SEED)
    return keys, np.array(digests.to_rows(), np.uint32).reshape(len(documents), SIGNATURE_SIZE)


@dataclass(frozen=True)
class Duplicates:
    """Which documents are left out; small, and pickled to the processes that tokenize.

    Attributes:
        near: uint64, sorted: contents that nearly repeat another one; all copies are left out.
        repeated: uint64 [R], sorted: other contents that occur more than once.
        first: int64 [R, 2]: part and ordinal in it of the copy that is kept.
        documents: how many there are, copies included.
        contents: how many there are without copies.
    """

    near: np.ndarray
    repeated: np.ndarray
    first: np.ndarray
    documents: int
    contents: int

    def keep(self, key: int, part: int, ordinal: int) -> bool:
        """Whether a document stays, which is true of exactly one of equal documents, or of none.

        Args:
            key: `content_hash` of its lines.
            part: the number of its part, in the order in which `find_duplicates` got them.
            ordinal: its place among the part's documents, from 0.
        """
        if contains(self.near, key):
            return False
        place = int(np.searchsorted(self.repeated, np.uint64(key)))
        if place == len(self.repeated) or int(self.repeated[place]) != key:
            return True
        return (part, ordinal) == tuple(self.first[place].tolist())

    def dropped(self, keys: np.ndarray) -> np.ndarray:
        """bool, for each of the keys whether all documents of this content are left out."""
        return np.isin(keys, self.near)

    def describe(self) -> str:
        """What was found, for the person at the terminal."""
        return (
            f"duplicates: of {self.documents:,} documents {self.documents - self.contents:,} are copies, "
            f"{len(self.near):,} more nearly repeat another (at least {THRESHOLD:.0%} of runs of {SHINGLE_WORDS} words)"
            f", compared in about {self.documents * _BYTES / 1e6:,.0f} MB of memory, {_BYTES} bytes a document"
        )

    def save(self, path: Path) -> None:
        """Writes an .npz."""
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Duplicates":
        """What `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("near", "repeated", "first")}
            return cls(**arrays, documents=int(file["documents"]), contents=int(file["contents"]))


def find_duplicates(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Duplicates:
    """Finds what to leave out, in one process.

    Memory: about 650 bytes for each document, 512 of which are its signature: 6.5 GB for 10 million documents. Parts in
    a list take the same again, parts from a generator do not. Time: some 150,000 documents/s on one core, and never
    more than in proportion to their number; 10,000 documents/s where all are nearly alike but for the threshold.

    Args:
        parts: keys uint64 [D] and signatures uint32 [D, 128] of each part's documents in order, as `signatures` gives
            them; all parts in corpus order.
    """
    waiting = list(parts)
    offsets = np.cumsum([0, *(len(keys) for keys, _ in waiting)])
    all_keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in waiting)])
    matrix = np.empty((len(all_keys), SIGNATURE_SIZE), np.uint32)
    for start in offsets[:-1]:
        _, found = waiting.pop(0)  # its memory is free as the matrix fills
        matrix[start : start + len(found)] = found
    keys, first, counts = np.unique(all_keys, return_index=True, return_counts=True)
    near = _near(matrix, first)
    repeated = (counts > 1) & ~near
    part = np.searchsorted(offsets, first[repeated], side="right") - 1
    places = np.stack([part, first[repeated] - offsets[part]], axis=1)
    return Duplicates(keys[near], keys[repeated], places, len(all_keys), len(keys))


def _near(matrix: np.ndarray, first: np.ndarray) -> np.ndarray:
    """bool [C]: which contents, numbered by their keys, are near-duplicates of one with a lower number.

    Args:
        matrix: signatures [D, 128] of all documents.
        first: int64 [C], the row of each content in the matrix.
    """
    count = len(first)
    group = np.arange(count)  # the lowest number that each is linked with so far
    worded = np.flatnonzero(matrix.min(axis=1, initial=_EMPTY)[first] != _EMPTY)
    links = [np.zeros((2, 0), np.int64)]
    for band in range(_BANDS):
        hashes = _band_hashes(matrix[:, band * _BAND_ROWS : (band + 1) * _BAND_ROWS])[first[worded]]
        for a, b in _candidates(hashes, worded):
            apart = group[a] != group[b]
            a, b = a[apart], b[apart]
            alike = _alike(matrix, first[a], first[b])
            a, b = a[alike], b[alike]
            group[b] = np.minimum(group[a], group[b])
            links.append(np.stack([a, b]))
    a, b = np.concatenate(links, axis=1)
    _, groups = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count)), directed=False)
    near = np.ones(count, bool)
    near[np.unique(groups, return_index=True)[1]] = False  # the lowest number of each group stays
    return near


def _candidates(hashes: np.ndarray, contents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs [P], [P] of contents with equal hashes, each content once at most in the second place.

    All pairs of a long run of equal hashes would be too many. So its `_LEADERS` lowest contents are paired with all
    after them, which are all pairs of a short run, and of a long one as many as it has contents, times a constant. As
    contents are numbered by key, the pairs are the same whatever the order of the corpus.

    Args:
        hashes: uint64 [W] of the band.
        contents: int64 [W], their numbers, ascending.
    """
    order = np.argsort(hashes, kind="stable")
    contents, hashes = contents[order], hashes[order]
    begins = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
    begin = np.repeat(begins, np.diff(begins, append=len(hashes)))  # of each content's run
    place = np.arange(len(begin)) - begin
    for leader in range(_LEADERS):
        after = np.flatnonzero(place > leader)
        yield contents[begin[after] + leader], contents[after]


def _band_hashes(columns: np.ndarray) -> np.ndarray:
    """uint64 [C], equal where all columns [C, 8] are; others may be too, which costs a comparison."""
    hashes = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        hashes ^= column
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _alike(matrix: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool [P]: whether the signatures of the P pairs of rows agree in `THRESHOLD` of their entries."""
    alike = np.zeros(len(a), bool)
    for start in range(0, len(a), _PAIRS):
        block = slice(start, start + _PAIRS)
        equal = np.count_nonzero(matrix[a[block]] == matrix[b[block]], axis=1)
        alike[block] = equal >= THRESHOLD * SIGNATURE_SIZE
    return alike
