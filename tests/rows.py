# SPDX-License-Identifier: Apache-2.0
"""Packed rows of random ids, made one example at a time by obvious loops; no data set is needed."""

import numpy as np

from albert_jax.data.stream import IGNORED, Batch


def random_examples(count: int, longest: int, vocabulary: int, seed: int = 0) -> list[dict[str, np.ndarray | int]]:
    """`count` examples of random length: ids, types, masked positions, their labels, and a sentence-order label."""
    rng = np.random.default_rng(seed)
    examples: list[dict[str, np.ndarray | int]] = []
    for i in range(count):
        length = int(rng.integers(6, longest + 1))
        ids = rng.integers(5, vocabulary, length).astype(np.int32)
        ids[0], ids[-1] = 2, 3
        masked = np.sort(rng.choice(np.arange(1, length - 1), max(1, length // 6), replace=False))
        labels = ids[masked].copy()
        ids[masked] = 4
        types = (np.arange(length) > length // 2).astype(np.int32)
        order = IGNORED if i % 5 == 4 else int(rng.integers(2))  # a fifth have one sentence only
        examples.append({"ids": ids, "types": types, "masked": masked, "labels": labels, "order": order})
    return examples


def lay_out(rows: list[list[dict]], slots: int, mask_slots: int, examples: int) -> Batch:
    """A batch with the given examples in each row, first come first placed."""
    count = len(rows)
    grids = {name: np.zeros((count, slots), np.int32) for name in Batch._fields[:4]}
    batch = Batch(
        **grids,
        mlm_positions=np.zeros((count, mask_slots), np.int32),
        mlm_labels=np.full((count, mask_slots), IGNORED, np.int32),
        cls_positions=np.zeros((count, examples), np.int32),
        sop_labels=np.full((count, examples), IGNORED, np.int32),
        row_ids=np.arange(count, dtype=np.int32),
    )
    for r, row in enumerate(rows):
        at = used = 0
        for p, example in enumerate(row):
            span = slice(at, at + len(example["ids"]))
            batch.input_ids[r, span] = example["ids"]
            batch.token_type_ids[r, span] = example["types"]
            batch.position_ids[r, span] = np.arange(len(example["ids"]))
            batch.example_ids[r, span] = p + 1
            targets = slice(used, used + len(example["masked"]))
            batch.mlm_positions[r, targets] = example["masked"] + at
            batch.mlm_labels[r, targets] = example["labels"]
            batch.cls_positions[r, p] = at
            batch.sop_labels[r, p] = example["order"]
            at, used = span.stop, targets.stop
    return batch


def random_batch(rows: int, slots: int = 32, vocabulary: int = 97, seed: int = 0) -> Batch:
    """`rows` rows of two examples each, with 10 mask slots and room for 3 examples."""
    examples = random_examples(2 * rows, slots // 2, vocabulary, seed)
    return lay_out([examples[2 * i : 2 * i + 2] for i in range(rows)], slots, 10, 3)
