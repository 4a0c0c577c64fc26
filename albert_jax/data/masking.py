# SPDX-License-Identifier: Apache-2.0
"""Whole-word n-gram masking (Lan et al. 2019, section 3.1) of many examples at once."""

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.vocabulary import MASK, Vocabulary

# Salts that keep the draws for one example apart.
_ORDER, _LENGTH, _CORRUPTION, _REPLACEMENT = range(100, 104)


def mask_budget(lengths: np.ndarray, rate: float) -> np.ndarray:
    """How many tokens of an example are predicted: round(rate * length), and at least one (as in the original).

    Args:
      lengths: int, example lengths with their special tokens.
      rate: share of tokens to predict.
    """
    return np.maximum(1, np.rint(lengths * rate)).astype(np.int64)


def ngram_probabilities(longest: int) -> np.ndarray:
    """p(n) proportional to 1/n for n = 1..longest; 6/11, 3/11, 2/11 for 3 (paper, section 3.1)."""
    weights = 1.0 / np.arange(1, longest + 1)
    return weights / weights.sum()


def choose_words(
    example_words: np.ndarray,
    word_lengths: np.ndarray,
    words_left: np.ndarray,
    budgets: np.ndarray,
    keys: np.ndarray,
    longest: int,
) -> np.ndarray:
    """Chooses the words to predict: random n-grams until each example's budget of tokens is spent.

    Every example visits its words in random order and draws an n-gram that starts there; the n-gram is shortened, by
    words, to what is left of the budget and to its sentence pair's half, and passed over where it meets a chosen word
    (the original's procedure, but never across [SEP]). One round visits one word of every example.

    Args:
      example_words: int64 [K + 1], where each example's words begin in the two arrays that follow.
      word_lengths: int64 [W], tokens in each word.
      words_left: int64 [W], words from this one to the end of its half, itself included.
      budgets: int64 [K], tokens to choose in each example.
      keys: uint64 [K], random keys of the examples.
      longest: the longest n-gram, in words.

    Returns:
      bool [W], the chosen words.
    """
    counts = np.diff(example_words)
    example = np.repeat(np.arange(len(counts)), counts)
    ordinal = np.arange(len(word_lengths)) - example_words[example]
    # Sorting by (example, random) in one integer: 2**24 examples, 40 random bits.
    priority = counter_rng.bits(keys[example], ordinal, _ORDER) >> np.uint64(24)
    visits = np.argsort((example.astype(np.uint64) << np.uint64(40)) | priority, kind="stable")  # a tie is no chance
    thresholds = np.cumsum(ngram_probabilities(longest))[:-1]
    drawn = 1 + np.searchsorted(thresholds, counter_rng.uniform(keys[example], ordinal, _LENGTH), side="right")
    drawn = np.minimum(drawn, words_left)

    chosen = np.zeros(len(word_lengths) + longest, bool)  # padded, so that spans may be read past the end
    ends = np.concatenate([[0], np.cumsum(word_lengths)])
    left = budgets.copy()
    active = np.flatnonzero((counts > 0) & (left > 0))
    visit = 0
    while active.size:
        word = visits[example_words[active] + visit]
        span = np.zeros_like(word)
        for n in range(1, longest + 1):
            last = np.minimum(word + n, len(word_lengths))
            span = np.where((n <= drawn[word]) & (ends[last] - ends[word] <= left[active]), n, span)
        free = span > 0
        for n in range(longest):
            free &= ~(chosen[word + n] & (n < span))
        for n in range(longest):
            chosen[(word + n)[free & (n < span)]] = True
        left[active[free]] -= (ends[word + span] - ends[word])[free]
        visit += 1
        active = active[(left[active] > 0) & (visit < counts[active])]
    return chosen[: len(word_lengths)]


def corrupt(labels: np.ndarray, keys: np.ndarray, positions: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """What stands in the input where a token is predicted: [MASK] 80 %, itself 10 %, a random piece 10 %, token by
    token.

    Args:
      labels: int32 [T], the predicted ids.
      keys: uint64 [T], the random keys of their examples.
      positions: int64 [T], their positions within the example.
      vocabulary: says which pieces may stand in at random: any but the special ones.

    Returns:
      int32 [T].
    """
    draw = counter_rng.uniform(keys, positions, _CORRUPTION)
    choice = counter_rng.below(len(vocabulary.replacements), keys, positions, _REPLACEMENT)
    return np.where(draw < 0.8, MASK, np.where(draw < 0.9, labels, vocabulary.replacements[choice])).astype(np.int32)
