# SPDX-License-Identifier: Apache-2.0
"""Tokenized documents to records: bounded runs of whole sentences."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

MAX_RECORD_TOKENS = 2048


@dataclass
class Counts:
    """What went into a split and what was changed on the way. Bytes: of the sentences in UTF-8, before cleaning."""

    documents: int = 0
    single_sentence_documents: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    word_starts: int = 0
    text_bytes: int = 0
    records: int = 0
    split_sentences: int = 0
    split_inside_words: int = 0


class Record(NamedTuple):
    """A run of sentences: its tokens, how many each sentence has, and which, by number, continue one that was cut."""

    tokens: np.ndarray
    lengths: np.ndarray
    continued: np.ndarray


@dataclass
class Encoder:
    """Cuts tokenized sentences to records of at most `MAX_RECORD_TOKENS` tokens.

    Args:
        starts_word: bool [V]: pieces that begin with "▁".
    """

    starts_word: np.ndarray
    limit: int = field(default=MAX_RECORD_TOKENS)

    def fit(self, tokens: np.ndarray, lengths: np.ndarray, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Cuts sentences of more than `limit` tokens, each time at the last word start that fits.

        A word longer than the limit (as in text written without spaces) is cut inside, and counted apart.

        Returns:
            int64, tokens of each sentence or part of one; bool, whether it continues the one before.
        """
        long = np.flatnonzero(lengths > self.limit)
        if not long.size:
            return lengths, np.zeros(len(lengths), bool)
        counts.split_sentences += len(long)
        ends = np.cumsum(lengths)
        parts = [np.array([length]) for length in lengths]
        for sentence in long:
            starts = self.starts_word[tokens[ends[sentence] - lengths[sentence] : ends[sentence]]]
            cuts = [0]
            while len(starts) - cuts[-1] > self.limit:
                fits = np.flatnonzero(starts[cuts[-1] + 1 : cuts[-1] + self.limit + 1])
                counts.split_inside_words += not len(fits)
                cuts.append(cuts[-1] + (int(fits[-1]) + 1 if len(fits) else self.limit))
            parts[sentence] = np.diff([*cuts, len(starts)])
        continued = np.concatenate([np.arange(len(part)) > 0 for part in parts])
        return np.concatenate(parts), continued

    def records(self, tokens: np.ndarray, lengths: np.ndarray, counts: Counts) -> Iterator[Record]:
        """Yields a document's runs, filled greedily in order.

        Args:
            tokens: int [T], of the document's sentences, one after the other.
            lengths: int64 [N], of each sentence, at least 1.
            counts: added to.
        """
        lengths, continued = self.fit(tokens, lengths, counts)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(lengths):
            last = int(np.searchsorted(bounds, bounds[first] + self.limit, side="right")) - 1
            inside = slice(first, last)
            yield Record(tokens[bounds[first] : bounds[last]], lengths[inside], np.flatnonzero(continued[inside]))
            first = last
