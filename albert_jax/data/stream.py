# SPDX-License-Identifier: Apache-2.0
"""Rows of masked, packed sentence-order examples, as a pure function of (data set, settings, seed, position)."""

import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.borrowing import Borrower
from albert_jax.data.masking import MaskRule
from albert_jax.data.mixture import Mixture
from albert_jax.data.plan import Plan, PlanSettings
from albert_jax.data.rows import IGNORED, Batch, Examples, assemble, with_empty_rows
from albert_jax.data.store import TextStore, ranges
from albert_jax.errors import UserError

SENTENCE_ORDERS = ("sop", "sop_parity", "nsp", "none")
# What label 1 means; 'none' has no labels.
LABEL_ONE = {
    "sop": "swapped",
    "sop_parity": "swapped, or B from another document",
    "nsp": "B from another document",
}
BORROWING = ("sop_parity", "nsp")  # those that take text from other documents
_EXAMPLE, _SPLIT, _FLIP = range(301, 304)


class Stream(Protocol):
    """An endless stream of rows: what training and evaluation ask of their data, wherever it comes from.

    Attributes:
      rows: rows in an epoch as planned; epochs may differ from it.
      examples_per_row: their mean number.
      packing: digest of everything besides the text that decides which examples share a row.
      digest: of that, and of how often each row is used.
      fingerprint: of the text.
      unigrams: int64 [V], how often each id occurs in the text.
      source_rows: name -> rows that `fixed_rows` has of each source, one source after the other.
    """

    @property
    def rows(self) -> int: ...

    @property
    def examples_per_row(self) -> float: ...

    @property
    def packing(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def unigrams(self) -> np.ndarray: ...

    @property
    def source_rows(self) -> Mapping[str, int]: ...

    def describe(self) -> str:
        """One line for the log."""

    def epoch(self, position: int) -> float:
        """How many times the text has been gone through when `position` rows are consumed."""

    def batch(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count`: the same whoever asks, whenever."""

    def fixed_rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the first epoch; past its end they are empty, without any target."""

    def examples(self, start: int, count: int) -> list[int | str]:
        """What tells the examples of rows `start` to `start + count` apart, for those who want to look at them."""


class PretrainingStream:
    """The endless stream of rows of one split.

    Row n of the stream is the same whatever batch, host or worker asks for it. An epoch is one pass over the plan's
    rows, each as often as its source's weight says, in a permutation of its own; each visit of a row draws new splits,
    swaps and masks.

    An example of two sentences or more is split in two between sentences, and its sentence order is
      sop: with probability 1/2 the other way round, label 1; else label 0 (paper, section 3.1).
      sop_parity: the same; and an example of one sentence, which has no order, is followed by text of another document,
        label 1, as the original does it.
      nsp: with probability 1/2 the second half is replaced by text of another document, label 1; else label 0; an
        example of one sentence is treated as with `sop_parity` (BERT's objective, Devlin et al. 2018, section 3.1).
      none: as in the document, without a label.
    Text of another document begins with any of its sentences and fills the room that the plan gave the example: what
    does not fit is not counted as cut, as it has its own place elsewhere in the epoch. Where the plan has no room for
    it, the example stays single and without a label.

    Args:
      store: the split.
      plan: its packing plan.
      settings: what the plan was made with.
      rule: what is masked.
      seed: keys everything random.
      sentence_order: one of `SENTENCE_ORDERS`; those in `BORROWING` need a plan made with `pair_singles`.
      weights: name -> weight of each source; without it, each row is used once an epoch.
      shuffle: False, for evaluation, keeps the plan's order and decides every other pair alike, so that a model that
        always gives the same answer scores one half.

    Raises:
      UserError: where there is no sentence order of that name, or no other document to take text from.
    """

    def __init__(
        self,
        store: TextStore,
        plan: Plan,
        settings: PlanSettings,
        rule: MaskRule,
        *,
        seed: int,
        sentence_order: str = "sop",
        weights: Mapping[str, Fraction] | None = None,
        shuffle: bool = True,
    ):
        if sentence_order not in SENTENCE_ORDERS:
            raise UserError(
                f"data.sentence_order must be one of {', '.join(map(repr, SENTENCE_ORDERS))}, not {sentence_order!r}."
            )
        self.store, self.plan, self.settings, self.rule = store, plan, settings, rule
        self.seed, self.sentence_order = seed, sentence_order
        self.fingerprint, self.unigrams = store.fingerprint, store.unigrams
        weights = weights or dict.fromkeys(store.sources, Fraction(1))
        self.mixture = Mixture(plan.source_rows, weights, seed=seed, shuffle=shuffle)
        self.rows, self.examples_per_row = self.mixture.rows, plan.examples_per_row
        self.source_rows = dict(zip(store.sources, np.diff(plan.source_rows).tolist(), strict=True))
        self.packing = plan.digest
        key = [plan.digest, [[name, str(weight)] for name, weight in weights.items()]]
        self.digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self._flips = None if shuffle else np.cumsum(plan.example_sizes > 1) % 2 == 1
        self._borrower = None
        if sentence_order in BORROWING:
            self._borrower = Borrower(store, [name for name, weight in weights.items() if weight])

    def describe(self) -> str:
        """One line for the log."""
        return self.plan.describe(self.settings)

    def epoch(self, position: int) -> float:
        """How many epochs `position` rows are."""
        return self.mixture.epoch(position)

    def examples_at(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Which examples `count` rows from `start` hold, int32 [count, P], -1 where unused, and the rows' visits."""
        rows, visits = self.mixture.at(start, count)
        return self.plan.row_examples[rows], visits

    def examples(self, start: int, count: int) -> list[int | str]:
        """Their numbers in the plan, row by row."""
        examples, _ = self.examples_at(start, count)
        return [int(example) for example in examples[examples >= 0]]

    def batch(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the stream."""
        examples, visits = self.examples_at(start, count)
        row, slot = np.nonzero(examples >= 0)
        drawn = self._draw(examples[row, slot].astype(np.int64), visits[row])
        return assemble(self.store, self.rule, self.settings, drawn, row, slot, np.arange(start, start + count))

    def fixed_rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the first epoch; past its end they are empty, without any target."""
        return with_empty_rows(self.batch(start, max(0, min(count, self.rows - start))), count)

    def _draw(self, example: np.ndarray, visit: np.ndarray) -> Examples:
        """Decides where examples, int64 [K], split, and what their second segments are."""
        plan = self.plan
        key = counter_rng.bits(self.seed, _EXAMPLE, visit, example)
        begin, first_unit = plan.example_begins[example], plan.example_units[example]
        size = plan.example_units[example + 1] - first_unit
        in_a = np.where(size > 1, 1 + counter_rng.below(np.maximum(size - 1, 1), key, _SPLIT), size)
        of = np.repeat(np.arange(len(example)), in_a)
        a = np.bincount(of, plan.unit_lengths[ranges(first_unit, in_a)], len(example)).astype(np.int64)
        b = plan.example_begins[example + 1] - begin - a
        pair = size > 1
        flip = counter_rng.bits(key, _FLIP) >> np.uint64(63) == 1 if self._flips is None else self._flips[example]
        begins, lengths = np.stack([begin, np.where(pair, begin + a, begin)], 1), np.stack([a, b], 1)
        label = np.where(pair, 0, IGNORED)
        if self.sentence_order == "none":
            return Examples(key, begins, lengths, np.full(len(example), IGNORED))
        if self.sentence_order != "nsp":
            swapped = pair & flip
            begins[swapped], lengths[swapped], label[swapped] = begins[swapped, ::-1], lengths[swapped, ::-1], 1
        if self._borrower is not None:
            room = plan.example_slots[example].astype(np.int64) - 3 - a
            other = np.flatnonzero((room > 0) & (np.where(pair, flip, True) if self.sentence_order == "nsp" else ~pair))
            begins[other, 1], lengths[other, 1] = self._borrower.tokens(key[other], begin[other], room[other])
            label[other] = 1
        return Examples(key, begins, lengths, label)
