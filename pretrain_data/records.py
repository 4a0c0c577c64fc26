# SPDX-License-Identifier: Apache-2.0
"""Tokenized documents to records: bounded runs of whole sentences."""

from collections.abc import Iterator, Sequence
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
    text_bytes: int = 0
    records: int = 0
    split_sentences: int = 0
    split_inside_words: int = 0


class Record(NamedTuple):
    """A run of sentences, and which of them, by number, continue a sentence that was cut."""

    sentences: list[np.ndarray]
    continued: list[int]


@dataclass
class Encoder:
    """Cuts tokenized sentences to records of at most `MAX_RECORD_TOKENS` tokens.

    Args:
        starts_word: bool [V]: pieces that begin with "▁".
    """

    starts_word: np.ndarray
    limit: int = field(default=MAX_RECORD_TOKENS)

    def fit(self, sentence: np.ndarray, counts: Counts) -> list[np.ndarray]:
        """The sentence, or its parts of at most `limit` tokens, each cut at the last word start that fits.

        A word longer than the limit (as in text written without spaces) is cut inside, and counted apart.
        """
        if len(sentence) <= self.limit:
            return [sentence]
        counts.split_sentences += 1
        starts = self.starts_word[sentence]
        cuts = [0]
        while len(sentence) - cuts[-1] > self.limit:
            fits = np.flatnonzero(starts[cuts[-1] + 1 : cuts[-1] + self.limit + 1])
            counts.split_inside_words += not len(fits)
            cuts.append(cuts[-1] + (int(fits[-1]) + 1 if len(fits) else self.limit))
        return np.split(sentence, cuts[1:])

    def records(self, sentences: Sequence[np.ndarray], counts: Counts) -> Iterator[Record]:
        """Yields a document's runs, filled greedily in order.

        Args:
            sentences: token ids of each sentence, none empty.
            counts: added to.
        """
        record, size = Record([], []), 0
        for whole in sentences:
            for nth, sentence in enumerate(self.fit(whole, counts)):
                if size + len(sentence) > self.limit:
                    yield record
                    record, size = Record([], []), 0
                if nth:
                    record.continued.append(len(record.sentences))
                record.sentences.append(sentence)
                size += len(sentence)
        yield record
