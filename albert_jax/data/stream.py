# SPDX-License-Identifier: Apache-2.0
"""Rows of masked, packed sentence-order examples, as a pure function of (data set, settings, seed, position)."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.masking import choose_words, corrupt, mask_budget
from albert_jax.data.plan import Plan, PlanSettings
from albert_jax.data.store import TextStore
from albert_jax.data.vocabulary import CLS, PAD, SEP, Vocabulary
from albert_jax.errors import UserError

Array = Any  # a NumPy array on the host, a JAX array on the devices
IGNORED = -100  # label of a slot without a target, as in transformers
_ROW_ORDER, _EXAMPLE, _SPLIT, _SWAP = range(300, 304)


class Batch(NamedTuple):
    """R rows of S slots, with M mask slots and P example slots each; all int32.

    Attributes:
      input_ids: [R, S], masked; 0 at padding.
      token_type_ids: [R, S], 0 in the first segment and 1 in the second.
      position_ids: [R, S], restarting at 0 with each example.
      example_ids: [R, S], 1..P, 0 at padding.
      mlm_positions: [R, M], ascending; 0 where unused.
      mlm_labels: [R, M], the original ids; -100 where unused.
      cls_positions: [R, P]; 0 where unused.
      sop_labels: [R, P], 0 in order, 1 swapped; -100 where unused or where an example has one sentence only.
      row_ids: [R], position of each row in the stream modulo 2**31, which keys its dropout.
    """

    input_ids: Array
    token_type_ids: Array
    position_ids: Array
    example_ids: Array
    mlm_positions: Array
    mlm_labels: Array
    cls_positions: Array
    sop_labels: Array
    row_ids: Array


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers start, ..., start + length - 1 of each pair, one run after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


@dataclasses.dataclass(frozen=True)
class _Examples:
    """K examples, drawn: sentence order decided, tokens not yet read. All arrays [K]."""

    key: np.ndarray  # uint64, random key
    record: np.ndarray
    begin: np.ndarray  # within the record, of the first segment as it will stand
    length: np.ndarray
    second_begin: np.ndarray
    second_length: np.ndarray  # 0 where there is one sentence only
    label: np.ndarray  # 0, 1 or IGNORED

    @property
    def total(self) -> np.ndarray:
        """Slots with special tokens."""
        return self.length + self.second_length + np.where(self.second_length > 0, 3, 2)


class PretrainingStream:
    """The endless stream of rows of one split.

    Row n of the stream is the same whatever batch, host or worker asks for it. An epoch is one pass over the plan's
    rows in a permutation of its own; each epoch draws new splits, swaps and masks.

    Args:
      store: the split.
      plan: its packing plan.
      settings: what the plan was made with.
      vocabulary: the data set's.
      seed: keys everything random.
      longest_ngram: longest masked span, in words.
      shuffle: False, for evaluation, keeps the plan's order and swaps every other pair, so that a model that always
        gives the same answer scores one half.
    """

    def __init__(
        self,
        store: TextStore,
        plan: Plan,
        settings: PlanSettings,
        vocabulary: Vocabulary,
        *,
        seed: int,
        longest_ngram: int,
        shuffle: bool = True,
    ):
        if longest_ngram < 1:
            raise UserError(f"masking.max_ngram must be at least 1, not {longest_ngram}.")
        self.store, self.plan, self.settings, self.vocabulary = store, plan, settings, vocabulary
        self.seed, self.longest_ngram, self.shuffle = seed, longest_ngram, shuffle
        self._swaps = None if shuffle else np.cumsum(plan.example_sizes > 1) % 2 == 1
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def _rows(self, epoch: int) -> np.ndarray:
        """The plan's rows in the order of an epoch; the latest order is kept."""
        known, rows = self._order  # read once: another thread may replace it
        if known != epoch:
            rows = np.arange(self.plan.rows)
            if self.shuffle:
                rows = np.argsort(counter_rng.bits(self.seed, _ROW_ORDER, epoch, rows), kind="stable")
            self._order = (epoch, rows)
        return rows

    def examples_at(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Which examples `count` rows from `start` hold, int32 [count, P], -1 where unused, and the rows' epochs."""
        position = np.arange(start, start + count)
        epochs = position // self.plan.rows
        rows = np.zeros(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._rows(int(epoch))[position[here] % self.plan.rows]
        return self.plan.row_examples[rows], epochs

    def batch(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the stream."""
        examples, epochs = self.examples_at(start, count)
        row, slot = np.nonzero(examples >= 0)
        drawn = self._draw(examples[row, slot].astype(np.int64), epochs[row])
        return self._assemble(drawn, row, slot, start, count)

    def fixed_rows(self, start: int, count: int) -> Batch:
        """Rows `start` to `start + count` of the first pass; rows past its end are empty, without any target."""
        real = max(0, min(count, self.plan.rows - start))
        batch = self.batch(start, real)
        if real == count:
            return batch
        fill = {"mlm_labels": IGNORED, "sop_labels": IGNORED}
        return Batch(
            *(
                np.pad(
                    array,
                    [(0, count - real)] + [(0, 0)] * (array.ndim - 1),
                    constant_values=fill.get(name, 0),
                )
                for name, array in zip(Batch._fields, batch, strict=True)
            )
        )

    def _draw(self, example: np.ndarray, epoch: np.ndarray) -> _Examples:
        """Decides where A and B split, between sentences, and whether they are swapped."""
        plan = self.plan
        key = counter_rng.bits(self.seed, _EXAMPLE, epoch, example)
        size = plan.example_sizes[example].astype(np.int64)
        first_unit = plan.example_units[example]
        in_a = np.where(size > 1, 1 + counter_rng.below(np.maximum(size - 1, 1), key, _SPLIT), size)
        of = np.repeat(np.arange(len(example)), size)
        units = _ranges(first_unit, size)
        lengths = plan.unit_lengths[units].astype(np.int64)
        within = units - first_unit[of]
        a = np.bincount(of, np.where(within < in_a[of], lengths, 0), len(example)).astype(np.int64)
        b = np.bincount(of, lengths, len(example)).astype(np.int64) - a
        begin = plan.unit_begins[first_unit].astype(np.int64)
        pair = size > 1
        if self._swaps is None:
            swapped = pair & (counter_rng.bits(key, _SWAP) >> np.uint64(63) == 1)
        else:
            swapped = pair & self._swaps[example]
        return _Examples(
            key=key,
            record=plan.example_records[example],
            begin=np.where(swapped, begin + a, begin),
            length=np.where(swapped, b, a),
            second_begin=np.where(swapped, begin, begin + a),
            second_length=np.where(swapped, a, b),
            label=np.where(pair, swapped.astype(np.int64), IGNORED),
        )

    def _tokens(self, e: _Examples, offset: np.ndarray) -> np.ndarray:
        """The unmasked examples one after the other, special tokens included, int32."""
        records, place = np.unique(e.record, return_inverse=True)
        text, record_offsets = self.store.read(records)
        source = record_offsets[place]
        ids = np.full(offset[-1], SEP, np.int32)
        ids[offset[:-1]] = CLS
        ids[_ranges(offset[:-1] + 1, e.length)] = text[_ranges(source + e.begin, e.length)]
        second = _ranges(offset[:-1] + e.length + 2, e.second_length)
        ids[second] = text[_ranges(source + e.second_begin, e.second_length)]
        return ids

    def _choose(self, e: _Examples, ids: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Flat positions of the tokens to predict, ascending."""
        halves = np.stack([offset[:-1] + 1, offset[:-1] + e.length + 2], 1).ravel()  # where each half's text begins
        half_lengths = np.stack([e.length, e.second_length], 1).ravel()
        text = _ranges(halves, half_lengths)
        half = np.repeat(np.arange(len(halves)), half_lengths)
        starts = self.vocabulary.starts_word[ids[text]]
        starts[np.flatnonzero(np.diff(half, prepend=-1))] = True
        word_at = np.flatnonzero(starts)
        word_lengths = np.diff(np.append(word_at, len(text)))
        word_half = half[word_at]
        half_ends = np.searchsorted(word_half, np.arange(len(halves)), side="right")
        words_left = half_ends[word_half] - np.arange(len(word_at))
        example_words = np.concatenate([[0], half_ends[1::2]])
        budgets = mask_budget(e.total, self.settings.mask_rate)
        chosen = choose_words(example_words, word_lengths, words_left, budgets, e.key, self.longest_ngram)
        return text[np.repeat(chosen, word_lengths)]

    def _assemble(self, e: _Examples, row: np.ndarray, slot: np.ndarray, start: int, count: int) -> Batch:
        """Lays drawn examples out in their rows; `row` and `slot` [K] say where each stands, in ascending order."""
        s = self.settings
        total = e.total
        offset = np.concatenate([[0], np.cumsum(total)])
        ids = self._tokens(e, offset)
        of = np.repeat(np.arange(len(total)), total)
        position = np.arange(len(ids)) - offset[of]
        row_offset = offset[np.searchsorted(row, np.arange(count))]
        column = np.arange(len(ids)) - row_offset[row[of]]

        target = self._choose(e, ids, offset)
        target_row = row[of[target]]
        nth = np.arange(len(target)) - np.searchsorted(target_row, np.arange(count))[target_row]
        mlm_positions = np.zeros((count, s.mask_slots), np.int32)
        mlm_labels = np.full((count, s.mask_slots), IGNORED, np.int32)
        mlm_positions[target_row, nth] = column[target]
        mlm_labels[target_row, nth] = ids[target]
        ids[target] = corrupt(ids[target], e.key[of[target]], position[target], self.vocabulary)

        def grid(values: np.ndarray, empty: int = 0) -> np.ndarray:
            out = np.full((count, s.slots), empty, np.int32)
            out[row[of], column] = values
            return out

        cls_positions = np.zeros((count, s.examples), np.int32)
        sop_labels = np.full((count, s.examples), IGNORED, np.int32)
        cls_positions[row, slot] = column[offset[:-1]]
        sop_labels[row, slot] = e.label
        return Batch(
            input_ids=grid(ids, PAD),
            token_type_ids=grid((position >= (e.length + 2)[of]).astype(np.int32)),
            position_ids=grid(position),
            example_ids=grid(slot[of] + 1),
            mlm_positions=mlm_positions,
            mlm_labels=mlm_labels,
            cls_positions=cls_positions,
            sop_labels=sop_labels,
            row_ids=(np.arange(start, start + count) % 2**31).astype(np.int32),
        )
