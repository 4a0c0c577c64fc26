# SPDX-License-Identifier: Apache-2.0
"""Tokenized documents to records: bounded runs of whole sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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


@dataclass
class Dropped:
    """What holds no token after cleaning, and so is in no split."""

    sentences: int = 0
    documents: int = 0


@dataclass
class Encoder:
    """Cuts tokenized sentences to records of at most `MAX_RECORD_TOKENS` tokens.

    Args:
        starts_word: bool [V]: pieces that begin with "▁".
    """

    starts_word: np.ndarray
    limit: int = field(default=MAX_RECORD_TOKENS)

    def fit(self, sentence: Sequence[int], counts: Counts) -> list[Sequence[int]]:
        """The sentence, or its parts of at most `limit` tokens, each cut at the last word start that fits.

        A word longer than the limit (as in text written without spaces) is cut inside, and counted apart.
        """
        if len(sentence) <= self.limit:
            return [sentence]
        counts.split_sentences += 1
        parts = []
        start = 0
        while len(sentence) - start > self.limit:
            fits = np.flatnonzero(self.starts_word[np.asarray(sentence[start + 1 : start + self.limit + 1])])
            counts.split_inside_words += not len(fits)
            end = start + (int(fits[-1]) + 1 if len(fits) else self.limit)
            parts.append(sentence[start:end])
            start = end
        return [*parts, sentence[start:]]

    def records(self, sentences: Sequence[Sequence[int]], counts: Counts) -> Iterator[tuple[list[int], list[int]]]:
        """Yields (tokens, tokens per sentence) of a document's runs, filled greedily in order.

        Args:
            sentences: token ids of each sentence, none empty.
            counts: added to.
        """
        tokens: list[int] = []
        lengths: list[int] = []
        for sentence in (part for whole in sentences for part in self.fit(whole, counts)):
            if len(tokens) + len(sentence) > self.limit:
                yield tokens, lengths
                tokens, lengths = [], []
            tokens = [*tokens, *sentence] if not tokens else tokens + list(sentence)
            lengths.append(len(sentence))
        yield tokens, lengths
