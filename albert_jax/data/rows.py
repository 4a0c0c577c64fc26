# SPDX-License-Identifier: Apache-2.0
"""Laying drawn examples out in rows: their text is read, masked, and put in its place."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from albert_jax.data.masking import MaskRule
from albert_jax.data.plan import PlanSettings
from albert_jax.data.store import TextStore, ranges
from albert_jax.data.vocabulary import CLS, PAD, SEP

Array = Any  # a NumPy array on the host, a JAX array on the devices
IGNORED = -100  # label of a slot without a target, as in transformers


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
      sop_labels: [R, P], 0 in order, 1 swapped or from two documents; -100 where unused or where nothing is to be
        predicted.
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


@dataclasses.dataclass(frozen=True)
class Examples:
    """K examples, drawn but not yet read.

    Attributes:
      key: uint64 [K], random keys.
      begin: int64 [K, 2], the token of the split with which each segment begins, in the order in which they will stand.
      length: int64 [K, 2], tokens of each segment; the second has none where an example is one segment.
      label: int64 [K], 0, 1 or IGNORED.
    """

    key: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    label: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """int64 [K], slots with special tokens."""
        return self.length.sum(1) + np.where(self.length[:, 1] > 0, 3, 2)


def _read(store: TextStore, e: Examples, offset: np.ndarray) -> np.ndarray:
    """int32 [T], the unmasked examples one after the other from `offset` on, special tokens included."""
    begin, length = e.begin.ravel(), e.length.ravel()
    first = np.searchsorted(store.record_begins, begin, side="right") - 1
    last = np.searchsorted(store.record_begins, begin + np.maximum(length, 1), side="left") - 1
    records = np.unique(ranges(first, last - first + 1))
    text, record_offsets = store.read(records)
    # Records that follow each other in the split are read one after the other, so a segment may span several.
    source = record_offsets[np.searchsorted(records, first)] + begin - store.record_begins[first]
    ids = np.full(offset[-1], SEP, np.int32)
    ids[offset[:-1]] = CLS
    ids[ranges(_text_begins(e, offset).ravel(), length)] = text[ranges(source, length)]
    return ids


def _text_begins(e: Examples, offset: np.ndarray) -> np.ndarray:
    """int64 [K, 2], where each segment's text begins when the examples stand one after the other."""
    return np.stack([offset[:-1] + 1, offset[:-1] + e.length[:, 0] + 2], 1)


def assemble(
    store: TextStore,
    rule: MaskRule,
    settings: PlanSettings,
    e: Examples,
    row: np.ndarray,
    slot: np.ndarray,
    row_ids: np.ndarray,
) -> Batch:
    """Reads and masks K examples and lays them out in R rows.

    Args:
      store: the split.
      rule: what is masked.
      settings: S, P and M.
      e: the examples.
      row: int64 [K], the row of each, ascending.
      slot: int64 [K], its place among the row's examples, ascending within a row.
      row_ids: int64 [R], positions of the rows in the stream.
    """
    count, offset = len(row_ids), np.concatenate([[0], np.cumsum(e.total)])
    ids = _read(store, e, offset)
    of = np.repeat(np.arange(len(e.total)), e.total)
    position = np.arange(len(ids)) - offset[of]
    row_offset = offset[np.searchsorted(row, np.arange(count))]
    column = np.arange(len(ids)) - row_offset[row[of]]

    target, span = rule.choose(ids, _text_begins(e, offset), e.length, e.key)
    target_row = row[of[target]]
    nth = np.arange(len(target)) - np.searchsorted(target_row, np.arange(count))[target_row]
    mlm_positions = np.zeros((count, settings.mask_slots), np.int32)
    mlm_labels = np.full((count, settings.mask_slots), IGNORED, np.int32)
    mlm_positions[target_row, nth] = column[target]
    mlm_labels[target_row, nth] = ids[target]
    ids[target] = rule.corrupt(ids[target], e.key[of[target]], position[target], position[span])

    filled = np.arange(settings.slots) < np.bincount(row, e.total, count)[:, None]  # rows have no gaps

    def grid(values: np.ndarray, empty: int = 0) -> np.ndarray:
        out = np.full((count, settings.slots), empty, np.int32)
        out[filled] = values
        return out

    cls_positions = np.zeros((count, settings.examples), np.int32)
    sop_labels = np.full((count, settings.examples), IGNORED, np.int32)
    cls_positions[row, slot] = column[offset[:-1]]
    sop_labels[row, slot] = e.label
    return Batch(
        input_ids=grid(ids, PAD),
        token_type_ids=grid((position >= (e.length[:, 0] + 2)[of]).astype(np.int32)),
        position_ids=grid(position),
        example_ids=grid(slot[of] + 1),
        mlm_positions=mlm_positions,
        mlm_labels=mlm_labels,
        cls_positions=cls_positions,
        sop_labels=sop_labels,
        row_ids=(row_ids % 2**31).astype(np.int32),
    )


def with_empty_rows(batch: Batch, count: int) -> Batch:
    """The batch, filled up to `count` rows with rows that hold nothing and ask for nothing."""
    fill = {"mlm_labels": IGNORED, "sop_labels": IGNORED}
    if not (missing := count - len(batch.input_ids)):
        return batch
    return Batch(
        *(
            np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=fill.get(name, 0))
            for name, array in zip(Batch._fields, batch, strict=True)
        )
    )
