# SPDX-License-Identifier: Apache-2.0
"""Whole-word n-gram masking (Lan et al. 2019, section 3.1) of many examples at once."""

import dataclasses

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.store import ranges
from albert_jax.data.vocabulary import MASK, Vocabulary
from albert_jax.errors import UserError

# Salts that keep the draws for one example apart.
_ORDER, _LENGTH, _CORRUPTION, _REPLACEMENT = range(100, 104)


def mask_budget(lengths: np.ndarray, rate: float, count: int = 0) -> np.ndarray:
    """How many tokens of an example are predicted: round(rate * length), at least one, at most `count` (the original's
    max_predictions_per_seq).

    Args:
      lengths: int, example lengths with their special tokens.
      rate: share of tokens to predict.
      count: most tokens to predict; 0 sets no such limit.
    """
    share = np.maximum(1, np.rint(lengths * rate)).astype(np.int64)
    return np.minimum(share, count) if count else share


def ngram_probabilities(longest: int) -> np.ndarray:
    """p(n) proportional to 1/n for n = 1..longest; 6/11, 3/11, 2/11 for 3 (paper, section 3.1)."""
    weights = 1.0 / np.arange(1, longest + 1)
    return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """Which tokens of an example are predicted, and what stands in their place.

    Attributes:
      rate: share of an example's tokens that are predicted, special tokens counted.
      count: most tokens that are predicted in an example; 0 sets no such limit.
      longest_ngram: longest masked span, in words.
      starts_word: bool [V], pieces at which a word begins; a segment of text always begins one.
      replacements: int32, the ids that may stand in at random.
      whole_spans: whether 80/10/10 is drawn once for a span and not for each of its tokens.
      across_segments: whether words and spans may run from the first segment into the second, which then begins no
        word, as they do in the original; [SEP] itself is never predicted.

    Raises:
      UserError: where a number is out of range.
    """

    rate: float
    count: int
    longest_ngram: int
    starts_word: np.ndarray
    replacements: np.ndarray
    whole_spans: bool = False
    across_segments: bool = False

    def __post_init__(self) -> None:
        if self.longest_ngram < 1:
            raise UserError(f"masking.max_ngram must be at least 1, not {self.longest_ngram}.")
        if not 0 < self.rate <= 1:
            raise UserError(f"masking.rate {self.rate} must be a share above 0, and at most 1.")
        if self.count < 0:
            raise UserError(
                f"masking.count {self.count} must be a number of tokens, or 0 for no limit beside the rate."
            )

    @classmethod
    def paper(
        cls,
        vocabulary: Vocabulary,
        *,
        rate: float = 0.15,
        count: int = 0,
        longest_ngram: int = 3,
        whole_word: bool = True,
        corrupt_by: str = "token",
    ) -> "MaskRule":
        """The paper's rule: n-grams of whole words or of pieces, within a segment, no special token put in at random.

        Raises:
          UserError: where `corrupt_by` is neither 'token' nor 'span', or a number is out of range.
        """
        if corrupt_by not in ("token", "span"):
            raise UserError(f"masking.corrupt_by must be 'token' or 'span', not {corrupt_by!r}.")
        every = np.ones(vocabulary.size, bool)
        return cls(
            rate=rate,
            count=count,
            longest_ngram=longest_ngram,
            starts_word=vocabulary.starts_word if whole_word else every,
            replacements=vocabulary.replacements,
            whole_spans=corrupt_by == "span",
        )

    def choose(
        self, ids: np.ndarray, segment_begins: np.ndarray, segment_lengths: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chooses the tokens to predict in K examples.

        Args:
          ids: int32 [T], the examples one after the other, special tokens included.
          segment_begins: int64 [K, 2], where in `ids` each segment's text begins.
          segment_lengths: int64 [K, 2], its tokens; the second has none where an example is one segment.
          keys: uint64 [K], random keys of the examples.

        Returns:
          int64 [M], where in `ids` the chosen tokens stand, ascending, and int64 [M], where their spans begin.
        """
        lengths = segment_lengths.ravel()
        text = ranges(segment_begins.ravel(), lengths)
        segment = np.repeat(np.arange(len(lengths)), lengths)
        # What words and spans never leave: a segment, or the whole example.
        unit = segment // 2 if self.across_segments else segment
        starts = self.starts_word[ids[text]]
        starts[np.flatnonzero(np.diff(unit, prepend=-1))] = True
        word_at = np.flatnonzero(starts)
        word_lengths = np.diff(np.append(word_at, len(text)))
        word_unit = unit[word_at]
        ends = np.searchsorted(word_unit, np.arange(len(keys) if self.across_segments else len(lengths)), side="right")
        words_left = ends[word_unit] - np.arange(len(word_at))
        example_words = np.concatenate([[0], ends if self.across_segments else ends[1::2]])
        totals = segment_lengths.sum(1) + np.where(segment_lengths[:, 1] > 0, 3, 2)
        budgets = mask_budget(totals, self.rate, self.count)
        spans = choose_words(example_words, word_lengths, words_left, budgets, keys, self.longest_ngram)
        tokens = np.repeat(spans >= 0, word_lengths)
        return text[tokens], text[word_at[np.repeat(spans, word_lengths)[tokens]]]

    def corrupt(self, labels: np.ndarray, keys: np.ndarray, positions: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """What stands in the input where a token is predicted: [MASK] 80 %, itself 10 %, a random piece 10 %.

        Args:
          labels: int32 [M], the predicted ids.
          keys: uint64 [M], the random keys of their examples.
          positions: int64 [M], their positions within the example.
          spans: int64 [M], the positions at which their spans begin.

        Returns:
          int32 [M].
        """
        draw = counter_rng.uniform(keys, spans if self.whole_spans else positions, _CORRUPTION)
        choice = counter_rng.below(len(self.replacements), keys, positions, _REPLACEMENT)
        return np.where(draw < 0.8, MASK, np.where(draw < 0.9, labels, self.replacements[choice])).astype(np.int32)


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
    words, to what is left of the budget and of its segment, and passed over where it meets a chosen word (the
    original's procedure). One round visits one word of every example.

    Args:
      example_words: int64 [K + 1], where each example's words begin in the two arrays that follow.
      word_lengths: int64 [W], tokens in each word.
      words_left: int64 [W], words from this one to the end of what an n-gram must not leave, itself included.
      budgets: int64 [K], tokens to choose in each example.
      keys: uint64 [K], random keys of the examples.
      longest: the longest n-gram, in words.

    Returns:
      int64 [W], the word at which the n-gram of a chosen word begins; -1 for a word that is not chosen.
    """
    counts = np.diff(example_words)
    example = np.repeat(np.arange(len(counts)), counts)
    ordinal = np.arange(len(word_lengths)) - example_words[example]
    # Sorting by (example, random) in one integer: 2**24 examples, 40 random bits.
    random = counter_rng.fold(counter_rng.bits(keys)[example], ordinal)
    priority = counter_rng.fold(random, _ORDER) >> np.uint64(24)
    visits = _order((example.astype(np.uint64) << np.uint64(40)) | priority)
    thresholds = np.cumsum(ngram_probabilities(longest))[:-1]

    spans = np.full(len(word_lengths) + longest, -1)  # padded, so that n-grams may be read past the end
    ends = np.concatenate([[0], np.cumsum(word_lengths)])
    left = budgets.copy()
    active = np.flatnonzero((counts > 0) & (left > 0))
    visit = 0
    while active.size:
        word = visits[example_words[active] + visit]
        draw = counter_rng.as_uniform(counter_rng.fold(random[word], _LENGTH))
        drawn = np.minimum(1 + np.searchsorted(thresholds, draw, side="right"), words_left[word])
        size = np.zeros_like(word)
        for n in range(1, longest + 1):
            last = np.minimum(word + n, len(word_lengths))
            size = np.where((n <= drawn) & (ends[last] - ends[word] <= left[active]), n, size)
        free = size > 0
        for n in range(longest):
            free &= ~((spans[word + n] >= 0) & (n < size))
        for n in range(longest):
            here = free & (n < size)
            spans[(word + n)[here]] = word[here]
        left[active[free]] -= (ends[word + size] - ends[word])[free]
        visit += 1
        active = active[(left[active] > 0) & (visit < counts[active])]
    return spans[: len(word_lengths)]


def _order(keys: np.ndarray) -> np.ndarray:
    """What a stable argsort gives, in a third of the time: the faster one decides ties otherwise, and they are rare."""
    order = np.argsort(keys)
    ordered = keys[order]
    return np.argsort(keys, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
