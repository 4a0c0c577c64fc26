# SPDX-License-Identifier: Apache-2.0
"""Text for tests of the stream: a small real data set, splits made up in memory, and a slow reader of batches."""

import hashlib
import itertools
import pathlib
import pydoc_data.topics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from albert_jax.data import counter_rng, masking
from albert_jax.data.store import TextStore
from albert_jax.data.stream import Batch
from albert_jax.data.vocabulary import CLS, PAD, SEP, Vocabulary
from pretrain_data.__main__ import main

Sentence = list[int]
Record = list[Sentence]
Words = list[list[int]]  # of one example: tokens in each word, for each half
FIRST = 5  # the first id that is not special


def topics_data(factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data set of Python's own language reference, a line a sentence, with 1,500 pieces; built once a session."""
    folder = factory.getbasetemp() / "topics"
    if folder.is_dir():
        return folder / "data"
    folder.mkdir()
    texts = ("\n".join(line for line in text.split("\n") if line.strip()) for text in pydoc_data.topics.topics.values())
    (folder / "topics.txt").write_text("\n\n".join(texts), encoding="utf-8")
    source = ["--source", str(folder / "topics.txt"), "--lines", "sentence"]
    assert main(["vocab", *source, "--size", "1500", "--out", str(folder / "vocab")]) == 0
    vocabulary = str(folder / "vocab" / "spiece.model")
    options = ["--vocab", vocabulary, "--out", str(folder / "data"), "--validation-fraction", "0.1"]
    assert main(["build", *source, *options]) == 0
    return folder / "data"


class MemoryStore(TextStore):
    """A split that is a list of records, each a list of sentences, each a list of ids.

    Args:
      records: the text.
      path: where plans are kept.
      documents: how many records each document has; without it, each record is a document.
      sources: name -> number of records and weight.
      continued: sentences that go on where a longer one was cut.
    """

    def __init__(
        self,
        records: list[Record],
        path: pathlib.Path = pathlib.Path("memory"),
        *,
        documents: list[int] | None = None,
        sources: dict[str, tuple[int, float]] | None = None,
        continued: Sequence[int] = (),
    ):
        self.records, self.path, self.split = records, path, "train"
        self.sentence_lengths = np.array([len(s) for record in records for s in record], np.uint16)
        self.sentences_per_record = np.array([len(record) for record in records], np.int32)
        self.records_per_document = np.array(documents or [1] * len(records), np.int32)
        self.continued_sentences = np.array(continued, np.int64)
        sources = sources or {"text": (len(records), 1.0)}
        self.sources = {name: count for name, (count, _) in sources.items()}
        self.weights = {name: weight for name, (_, weight) in sources.items()}
        assert self.records_per_document.sum() == sum(self.sources.values()) == len(records)
        self.unigrams = np.bincount([token for record in records for s in record for token in s])
        self.fingerprint = hashlib.sha256(repr((records, documents, sources)).encode()).hexdigest()

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens: list[int] = []
        offsets = [0]
        for i in records:
            for sentence in self.records[i]:
                tokens += sentence
            offsets.append(len(tokens))
        return np.array(tokens, np.int32), np.array(offsets)


def numbered(lengths: list[list[int]]) -> list[Record]:
    """Records of sentences of these lengths in which every token of the split has an id of its own, ascending."""
    following = FIRST
    records: list[Record] = []
    for record in lengths:
        records.append([])
        for length in record:
            records[-1].append(list(range(following, following + length)))
            following += length
    return records


def made_up_vocabulary(size: int, word: int = 3) -> Vocabulary:
    """A vocabulary in which every `word`-th id starts a word."""
    ids = np.arange(size)
    pieces = tuple(f"▁{i}" if i % word == 0 else "x" for i in range(size))
    return Vocabulary(
        size=size, sha256="", pieces=pieces, starts_word=ids % word == 0, replacements=ids[FIRST:].astype(np.int32)
    )


class Example(NamedTuple):
    """One example of a row, unmasked again.

    Attributes:
      first: ids of the first segment.
      second: ids of the second, or None.
      label: of the sentence order.
      targets: (position within the example, original id, id in the input) of each masked slot.
    """

    first: list[int]
    second: list[int] | None
    label: int
    targets: list[tuple[int, int, int]]

    @property
    def length(self) -> int:
        return len(self.first) + 2 + (0 if self.second is None else len(self.second) + 1)

    @property
    def text(self) -> list[int]:
        """The ids in the document's order."""
        if self.second is None:
            return self.first
        return self.second + self.first if self.label == 1 else self.first + self.second


def read_batch(batch: Batch) -> list[list[Example]]:
    """The examples of each row, slot by slot; asserts on the way that every array has the form that `Batch` states."""
    return [_read_row(*(array[r].tolist() for array in batch[:-1])) for r in range(len(batch.input_ids))]


def _read_row(
    inputs: list[int],
    types: list[int],
    positions: list[int],
    owners: list[int],
    masked: list[int],
    labels: list[int],
    heads: list[int],
    orders: list[int],
) -> list[Example]:
    used = [(place, label) for place, label in zip(masked, labels, strict=True) if label != -100]
    assert list(zip(masked, labels, strict=True)) == used + [(0, -100)] * (len(masked) - len(used))
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(used))
    original = list(inputs)
    for place, label in used:
        original[place] = label
    examples: list[Example] = []
    begin = 0
    while begin < len(inputs) and owners[begin] != 0:
        end = begin
        while end < len(inputs) and owners[end] == owners[begin]:
            end += 1
        slot = owners[begin] - 1
        assert slot == len(examples) and heads[slot] == begin
        ids = original[begin:end]
        assert ids[0] == CLS and ids[-1] == SEP and CLS not in ids[1:]
        middle = ids.index(SEP)
        second = ids[middle + 1 : -1] if middle < len(ids) - 1 else None
        assert types[begin:end] == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
        assert positions[begin:end] == list(range(len(ids)))
        targets = [(place - begin, label, inputs[place]) for place, label in used if begin <= place < end]
        examples.append(Example(ids[1:middle], second, orders[slot], targets))
        begin = end
    for array, empty in ((inputs, PAD), (types, 0), (positions, 0), (owners, 0)):
        assert array[begin:] == [empty] * (len(inputs) - begin)
    assert heads[len(examples) :] == [0] * (len(heads) - len(examples))
    assert orders[len(examples) :] == [-100] * (len(heads) - len(examples))
    assert sum(len(example.targets) for example in examples) == len(used)
    return examples


def slow_choice(halves: Words, budget: int, visits: list[int], drawn: list[int]) -> list[bool]:
    """The procedure for one example: word by word in the order of `visits`, with the n-gram lengths `drawn` for each
    word; an n-gram loses words at its end until it fits its half and the budget, and is passed over where any word of
    it is chosen already."""
    lengths = [n for half in halves for n in half]
    half_of = [h for h, half in enumerate(halves) for _ in half]
    chosen = [False] * len(lengths)
    for word in visits:
        spent = sum(n for n, c in zip(lengths, chosen, strict=True) if c)
        span = [w for w in range(word, word + drawn[word]) if w < len(lengths) and half_of[w] == half_of[word]]
        while span and spent + sum(lengths[w] for w in span) > budget:
            span.pop()
        if not any(chosen[w] for w in span):
            for w in span:
                chosen[w] = True
    return chosen


def draws_of(key: int, words: int, longest: int) -> tuple[list[int], list[int]]:
    """The order in which an example's words are visited, and the n-gram length drawn for each word."""
    priority = [int(counter_rng.bits(key, w, masking._ORDER)) >> 24 for w in range(words)]
    uniform = [float(counter_rng.uniform(key, w, masking._LENGTH)) for w in range(words)]
    sums = list(itertools.accumulate(1 / n for n in range(1, longest + 1)))
    drawn = [1 + sum(u >= s / sums[-1] for s in sums[:-1]) for u in uniform]
    return sorted(range(words), key=priority.__getitem__), drawn
