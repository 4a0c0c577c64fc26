# SPDX-License-Identifier: Apache-2.0
"""Google's own pipeline as a stream: its chunks, pairs and masks, quirk for quirk, but seeded and never stored.

What create_pretraining_data.py of google-research/albert draws, in its distribution, not in its random numbers:
  - Documents are gone through again and again, each pass with chunks of its own. A document draws one target length for
    all its chunks of a pass, so that more than `short_fraction` of the examples are short. Sentences are appended until
    the target is reached, so a chunk may be longer than a row; a document's last chunk has any length.
  - A chunk of one sentence is followed by text of another document and labelled 1, also where the objective is sentence
    order. Otherwise the chunk is cut in two between sentences and swapped, with label 1, with probability 1/2. As NSP,
    the second half comes from another document, with label 1, with probability 1/2, and is then used again.
  - What is longer than a row loses tokens from its longer segment, from either end with probability 1/2 each.
  - Words and masked spans may run over [SEP], and a word starts by Google's rule. 80/10/10 is drawn for each token, and
    a random piece may be a special one.
  - There are 40 passes (dupe_factor), of which the 41st is the first again: the original writes these to disk.
What is not reproduced: the order of examples (the original shuffles all passes together; here they follow each other),
and do_permutation, which is off by default.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.borrowing import Borrower
from albert_jax.data.google_words import google_starts_word
from albert_jax.data.latest import Latest
from albert_jax.data.masking import MaskRule
from albert_jax.data.plan import PlanSettings
from albert_jax.data.rows import Batch, Examples, assemble, with_empty_rows
from albert_jax.data.store import TextStore, bounds, ranges
from albert_jax.data.stream import BORROWING
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.errors import UserError

PASSES = 40
_SHORT, _TARGET, _ORDER, _EXAMPLE, _SPLIT, _FLIP, _OTHER, _CUT = range(400, 408)


def google_rule(vocabulary: Vocabulary, *, rate: float, count: int, longest_ngram: int, whole_word: bool) -> MaskRule:
    """Google's masking: its words, spans that may run over [SEP], and random pieces of the whole vocabulary.

    Args:
      vocabulary: the data set's.
      rate, count, longest_ngram: see `MaskRule`; the original's are 0.15, 20 and 3.
      whole_word: False takes each piece as a word.
    """
    starts = google_starts_word(vocabulary.pieces) if whole_word else np.ones(vocabulary.size, bool)
    every = np.arange(vocabulary.size, dtype=np.int32)
    return MaskRule(rate, count, longest_ngram, starts_word=starts, replacements=every, across_segments=True)


def check_google(sentence_order: str, corrupt_by: str, weights: Mapping[str, Fraction] | None) -> None:
    """Refuses settings that Google's pipeline does not have.

    Raises:
      UserError: naming the first one.
    """
    if sentence_order not in BORROWING:
        raise UserError(
            f"data.recipe 'google' has data.sentence_order {' or '.join(map(repr, BORROWING))}, not {sentence_order!r}."
        )
    if corrupt_by != "token":
        raise UserError(f"data.recipe 'google' has masking.corrupt_by 'token', not {corrupt_by!r}.")
    if weights and set(weights.values()) != {1}:
        ones = ",".join(f"{name}=1" for name in weights)
        raise UserError(f"data.recipe 'google' has no weights of sources; pass --config.data.weights={ones}.")


@dataclasses.dataclass(frozen=True)
class _Pass:
    """The chunks of one pass over the documents, X of them, in the order in which they are taken.

    Attributes:
      first: int64 [X], the sentence with which each chunk begins.
      size: int32 [X], its sentences.
    """

    first: np.ndarray
    size: np.ndarray


class GoogleStream:
    """The endless stream of a split's rows as Google's pipeline draws them, one example a row.

    A row is a pure function of its position. To know the pass of a position, the chunks of the passes before it are
    counted once, of `PASSES` at most.

    Args:
      store: the split.
      settings: S, M, the share of short documents, and P, which is 1.
      rule: `google_rule`.
      seed: keys everything random.
      next_sentence: whether the objective is NSP (the original's --random_next_sentence) and not sentence order.
      shuffle: False, for evaluation, keeps the documents' order.

    Raises:
      UserError: where more than one example is to share a row, or there is no other document to take text from.
    """

    def __init__(
        self,
        store: TextStore,
        settings: PlanSettings,
        rule: MaskRule,
        *,
        seed: int,
        next_sentence: bool = False,
        shuffle: bool = True,
    ):
        if settings.examples != 1:
            raise UserError(
                f"data.recipe 'google' has one example a row, not {settings.examples}; pass "
                "--config.data.examples_per_row=1."
            )
        self.store, self.settings, self.rule, self.seed = store, settings, rule, seed
        self.next_sentence, self.shuffle = next_sentence, shuffle
        self.fingerprint, self.unigrams = store.fingerprint, store.unigrams
        self._borrower = Borrower(store, list(store.sources))
        self._chunks = Latest(self._pass)
        self._begins = [0, len(self._chunks(0).first)]  # the positions at which the passes begin, as far as known
        self._counting = threading.Lock()
        self.rows, self.examples_per_row = self._begins[1], 1.0
        self.source_rows = {"all": self.rows}
        key = ["google", 1, dataclasses.asdict(settings), next_sentence]
        self.packing = self.digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"Google's pipeline, {self.rows:,} rows of {self.settings.slots} slots in the first of {PASSES} passes "
            f"over {len(self.store.records_per_document):,} documents, one example a row"
        )

    # --- positions ----------------------------------------------------------------------------------------------------

    def _place(self, position: int) -> tuple[int, int]:
        """The pass of a position, counted on beyond `PASSES`, and where in it the position is."""
        begins = self._begins
        with self._counting:  # the loader's threads ask too
            while len(begins) <= PASSES and begins[-1] <= position:
                begins.append(begins[-1] + len(self._chunks(len(begins) - 1).first))
        rounds, rest = divmod(position, begins[-1]) if len(begins) > PASSES else (0, position)
        number = int(np.searchsorted(begins, rest, side="right")) - 1
        return rounds * PASSES + number, rest - begins[number]

    def epoch(self, position: int) -> float:
        """How many passes over the text `position` rows are."""
        number, offset = self._place(position)
        begin, end = self._begins[number % PASSES : number % PASSES + 2]
        return number + offset / (end - begin)

    # --- chunks -------------------------------------------------------------------------------------------------------

    def _targets(self, number: int | np.ndarray, documents: np.ndarray) -> np.ndarray:
        """int64 [D], the length that the chunks of each document aim at in a pass."""
        s = self.settings
        short = counter_rng.uniform(self.seed, _SHORT, number, documents) < s.short_fraction
        drawn = 2 + counter_rng.below(s.budget - 1, self.seed, _TARGET, number, documents)
        return np.where(short, drawn, s.budget)

    def _pass(self, number: int) -> _Pass:
        """Chunks all documents; they advance together, one chunk a turn."""
        documents = np.arange(len(self.store.records_per_document))
        ends = bounds(self.store.sentence_lengths)
        target = self._targets(number, documents)
        start, stop = self.store.document_sentences[:-1], self.store.document_sentences[1:]
        firsts, sizes = [], []
        while start.size:
            size = np.minimum(np.searchsorted(ends, ends[start] + target), stop) - start
            firsts.append(start)
            sizes.append(size.astype(np.int32))
            following = start + size
            if self.next_sentence:
                key = self._keys(number, start)
                following = np.where(self._takes_other(key, size), start + self._sentences_in_a(key, size), following)
            more = following < stop
            start, stop, target = following[more], stop[more], target[more]
        first, size = np.concatenate(firsts), np.concatenate(sizes)
        order = np.argsort(counter_rng.bits(self.seed, _ORDER, number, first) if self.shuffle else first, kind="stable")
        return _Pass(first[order], size[order])

    def _keys(self, number: int | np.ndarray, first: np.ndarray) -> np.ndarray:
        return counter_rng.bits(self.seed, _EXAMPLE, number, first)

    def _sentences_in_a(self, key: np.ndarray, size: np.ndarray) -> np.ndarray:
        """int64 [K], uniform between 1 and all sentences but one; 1 where there is only one."""
        return 1 + counter_rng.below(np.maximum(size - 1, 1), key, _SPLIT)

    def _takes_other(self, key: np.ndarray, size: np.ndarray) -> np.ndarray:
        """bool [K], chunks whose second segment comes from another document."""
        coin = counter_rng.bits(key, _OTHER) >> np.uint64(63) == 1
        return (size == 1) | (coin & self.next_sentence)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def examples(self, start: int, count: int) -> list[int | str]:
        """The pass and the first sentence of each."""
        number, first, _ = self._chunks_at(start, count)
        return [f"pass {n}, sentence {sentence}" for n, sentence in zip(number, first, strict=True)]

    def _chunks_at(self, start: int, count: int) -> tuple[np.ndarray, ...]:
        """Pass, first sentence and sentences of each row's chunk, int64 [count] each."""
        parts = []
        position, left = start, count
        while left:
            number, offset = self._place(position)
            chunks = self._chunks(number % PASSES)
            some = slice(offset, offset + left)
            first = chunks.first[some]
            parts.append((np.full(len(first), number % PASSES), first, chunks.size[some].astype(np.int64)))
            position, left = position + len(first), left - len(first)
        empty = np.zeros(0, np.int64)
        return tuple(np.concatenate(arrays) for arrays in zip(*(parts or [(empty,) * 3]), strict=True))

    def batch(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the stream."""
        drawn = self._draw(*self._chunks_at(start, count))
        row_ids = np.arange(start, start + count)
        rows = np.arange(count)
        return assemble(self.store, self.rule, self.settings, drawn, rows, np.zeros_like(rows), row_ids)

    def fixed_rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the first pass; past its end they are empty, without any target."""
        return with_empty_rows(self.batch(start, max(0, min(count, self.rows - start))), count)

    def _draw(self, number: np.ndarray, first: np.ndarray, size: np.ndarray) -> Examples:
        """Makes pairs of chunks, given by pass, first sentence and sentences, int64 [K] each."""
        key = self._keys(number, first)
        in_a = np.where(size > 1, self._sentences_in_a(key, size), 1)
        begin, a = self.store.sentence_begins(first), self._tokens(first, in_a)
        other = self._takes_other(key, size)
        begins, lengths = np.stack([begin, begin + a], 1), np.stack([a, self._tokens(first + in_a, size - in_a)], 1)
        document = np.searchsorted(self.store.document_begins, begin[other], side="right") - 1
        wanted = self._targets(number[other], document) - a[other]
        begins[other, 1], lengths[other, 1] = self._other_text(key[other], begin[other], wanted)
        swapped = ~other & (counter_rng.bits(key, _FLIP) >> np.uint64(63) == 1) & (not self.next_sentence)
        begins[swapped], lengths[swapped] = begins[swapped, ::-1], lengths[swapped, ::-1]
        begins, lengths = _truncate(key, begins, lengths, self.settings.budget)
        return Examples(key, begins, lengths, (other | swapped).astype(np.int64))

    def _tokens(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """int64 [K], how many tokens runs of sentences have."""
        of = np.repeat(np.arange(len(first)), count)
        return np.bincount(of, self.store.sentence_lengths[ranges(first, count)], len(first)).astype(np.int64)

    def _other_text(self, key: np.ndarray, begin: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole sentences of other documents until `wanted` tokens are reached or the document ends; one at least."""
        sentence, end = self._borrower.sentences(key, begin)
        most = np.minimum(end - sentence, np.maximum(wanted, 1))  # a sentence has a token or more
        sums = bounds(self.store.sentence_lengths[ranges(sentence, most)])
        at = bounds(most)
        enough = np.searchsorted(sums, sums[at[:-1]] + np.maximum(wanted, 1))
        return self.store.sentence_begins(sentence), sums[np.minimum(enough, at[1:])] - sums[at[:-1]]


def _truncate(key: np.ndarray, begins: np.ndarray, lengths: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes tokens from the longer segment, the second where they are equal, until a pair fits the budget.

    Each token goes from the front or from the back with probability 1/2.

    Args:
      key: uint64 [K], random keys of the examples.
      begins, lengths: int64 [K, 2].
      budget: tokens that both segments may have together.

    Returns:
      int64 [K, 2], new begins, and int64 [K, 2], new lengths.
    """
    excess = np.maximum(lengths.sum(1) - budget, 0)
    longer = np.where(lengths[:, 0] > lengths[:, 1], 0, 1)
    until_equal = np.abs(lengths[:, 0] - lengths[:, 1])
    rest = np.maximum(excess - until_equal, 0)  # taken from both in turn, the second first
    cut = np.stack([rest // 2, rest - rest // 2], 1)
    cut[np.arange(len(key)), longer] += np.minimum(excess, until_equal)
    front = np.stack([_heads(cut[:, side], key, side) for side in (0, 1)], 1)
    return begins + front, lengths - cut


def _heads(tosses: np.ndarray, key: np.ndarray, side: int) -> np.ndarray:
    """int64 [K], how many of some fair tosses, int64 [K], come up heads, 64 of them at a time."""
    heads = np.zeros(len(tosses), np.int64)
    for word in range(-(-int(tosses.max(initial=0)) // 64)):
        left = np.clip(tosses - 64 * word, 0, 64)
        bits = counter_rng.bits(key, _CUT, side, word)
        unused = np.where(left > 0, 64 - left, 0).astype(np.uint64)  # a shift by 64 is undefined
        heads += np.where(left > 0, np.bitwise_count(bits >> unused), 0)
    return heads
