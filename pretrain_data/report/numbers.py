# SPDX-License-Identifier: Apache-2.0
"""The numbers of the report: counted from the index, or measured on a sample of what training sees."""

import dataclasses
import itertools

import ml_collections
import numpy as np

from albert_jax.data.google_words import google_starts_word
from albert_jax.data.masking import mask_budget
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.rows import IGNORED, Batch
from albert_jax.data.store import TextStore, bounds, ranges
from albert_jax.data.stream import Stream
from albert_jax.data.vocabulary import MASK, UNK, Vocabulary
from albert_jax.training.data import open_data, plan_settings

SAMPLE_SLOTS = 2**20  # of the training stream that are read, at least one row
SAMPLE_RECORDS = 4096  # of the training split in which unknown tokens are counted
PLAN_TOKENS = 2**25  # of the training split, about, that are packed at lengths other than the recipe's
LENGTHS = (128, 256, 512)
_BATCH_ROWS = 256
_COUNTED_AT_ONCE = 2**20


@dataclasses.dataclass(frozen=True)
class Sample:
    """R rows of the stream as training sees them. X examples.

    Attributes:
      slots: S.
      examples_per_row: int64 [R].
      lengths: int64 [X], tokens with the special ones.
      first: int64 [X], tokens of text in A.
      second: int64 [X], tokens of text in B, 0 where there is none.
      masked: int64 [X], tokens to predict.
      labels: int64 [X], of the sentence order: 0, 1 or IGNORED.
      corruption: int64 [3], tokens to predict in whose place stand [MASK], themselves, another piece.
      spans: int64, words in each run of neighbouring tokens to predict.
    """

    slots: int
    examples_per_row: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    second: np.ndarray
    masked: np.ndarray
    labels: np.ndarray
    corruption: np.ndarray
    spans: np.ndarray

    @property
    def padding(self) -> float:
        """Share of slots that hold nothing."""
        return 1 - float(self.lengths.sum()) / (len(self.examples_per_row) * self.slots)

    @property
    def padding_unpacked(self) -> float:
        """The same if every example had a row of its own."""
        return 1 - float(self.lengths.sum()) / (len(self.lengths) * self.slots)


def read_sample(stream: Stream, rows: int, starts_word: np.ndarray) -> Sample:
    """Measures the first rows of a stream.

    Args:
      stream: anything with its `batch`.
      rows: how many are read.
      starts_word: bool [V], pieces at which a word begins.
    """
    starts = range(0, rows, _BATCH_ROWS)
    parts = [measure_batch(stream.batch(start, min(_BATCH_ROWS, rows - start)), starts_word) for start in starts]
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Sample)
        if field.name not in ("slots", "corruption")
    }
    return Sample(slots=parts[0].slots, corruption=np.sum([part.corruption for part in parts], axis=0), **arrays)


def measure_batch(batch: Batch, starts_word: np.ndarray) -> Sample:
    """Measures one batch; see `Sample`."""
    rows, most = batch.sop_labels.shape
    real = batch.example_ids > 0
    owner = np.arange(rows)[:, None] * most + batch.example_ids - 1  # of each slot, where it is real
    used = batch.mlm_labels != IGNORED
    row = np.nonzero(used)[0]
    place, label = batch.mlm_positions[used], batch.mlm_labels[used]
    lengths = np.bincount(owner[real], minlength=rows * most)
    second = np.bincount(owner[real & (batch.token_type_ids == 1)], minlength=rows * most)
    masked = np.bincount(owner[row, place], minlength=rows * most)
    there = lengths > 0
    stands = batch.input_ids[row, place]
    kinds = np.where(stands == label, 1, np.where(stands == MASK, 0, 2))
    return Sample(
        slots=batch.input_ids.shape[1],
        examples_per_row=there.reshape(rows, most).sum(axis=1),
        lengths=lengths[there],
        first=(lengths - second - 2)[there],
        second=np.maximum(0, second - 1)[there],
        masked=masked[there],
        labels=batch.sop_labels.reshape(-1)[there].astype(np.int64),
        corruption=np.bincount(kinds, minlength=3),
        spans=_span_words(row, place, starts_word[label]),
    )


def _span_words(row: np.ndarray, place: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Words in each run of neighbouring tokens to predict; the run's first token begins one in any case."""
    if not len(row):
        return np.zeros(0, np.int64)
    begins = np.append(True, (np.diff(row) != 0) | (np.diff(place) != 1))
    return np.add.reduceat((starts | begins).astype(np.int64), np.flatnonzero(begins))


def length_counts(lengths: np.ndarray) -> np.ndarray:
    """int64 [longest + 1], how many of the lengths have each value, without a copy of them in memory."""
    counts = np.zeros(int(lengths.max(initial=0)) + 1, np.int64)
    for start in range(0, len(lengths), _COUNTED_AT_ONCE):
        counts += np.bincount(lengths[start : start + _COUNTED_AT_ONCE], minlength=len(counts))
    return counts


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How the vocabulary is used.

    Attributes:
      order: int64 [V], ids from the most frequent to the least.
      counts: int64 [V], occurrences in that order.
    """

    order: np.ndarray
    counts: np.ndarray

    @property
    def cumulative(self) -> np.ndarray:
        """float64 [V], share of all tokens that the first pieces cover, up to each one."""
        return np.cumsum(self.counts) / max(1, self.counts.sum())

    def needed(self, share: float) -> int:
        """How many of the most frequent pieces cover a share of all tokens."""
        return int(np.searchsorted(self.cumulative, share - 1e-12)) + 1


def coverage(unigrams: np.ndarray) -> Coverage:
    """Sorts int64 [V] token counts."""
    order = np.argsort(-unigrams, kind="stable")
    return Coverage(order, unigrams[order])


def evenly(total: int, most: int) -> np.ndarray:
    """int64, at most `most` of the numbers below `total`, ascending and evenly spaced."""
    return np.arange(total) if total <= most else np.arange(most) * total // most


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Unknown tokens in N records, evenly spaced over a split.

    Attributes:
      tokens: int64 [N], tokens of each record, in the order of the sources.
      unknown: int64 [N], unknown ones among them.
      sources: name -> how many of the N records are of each source, in order.
    """

    tokens: np.ndarray
    unknown: np.ndarray
    sources: dict[str, int]

    def stretches(self, most: int) -> np.ndarray:
        """float64 [at most `most`], the rate in stretches of equally many records."""
        firsts = evenly(len(self.tokens), most)
        return np.add.reduceat(self.unknown, firsts) / np.add.reduceat(self.tokens, firsts)

    def by_source(self) -> dict[str, float]:
        """The rate in each source of which a record was read."""
        edges = bounds(list(self.sources.values()))
        found = zip(self.sources, itertools.pairwise(edges.tolist()), strict=True)
        return {name: float(self.unknown[a:b].sum() / self.tokens[a:b].sum()) for name, (a, b) in found if b > a}

    def above(self, rate: float) -> float:
        """Share of the records with a higher rate."""
        return float(np.mean(self.unknown > rate * self.tokens))


def count_unknown(store: TextStore, most: int = SAMPLE_RECORDS) -> Unknown:
    """Reads at most `most` records, some hundreds at a time."""
    lengths, unknown = [], []
    records = evenly(len(store.sentences_per_record), most)
    for some in np.array_split(records, -(-len(records) // 512)):
        tokens, offsets = store.read(some)
        lengths.append(np.diff(offsets))
        unknown.append(np.add.reduceat((tokens == UNK).astype(np.int64), offsets[:-1]))
    return Unknown(np.concatenate(lengths), np.concatenate(unknown), _count_sources(store, records))


def _count_sources(store: TextStore, records: np.ndarray) -> dict[str, int]:
    """How many of some records are of each source of a split."""
    edges = np.searchsorted(records, bounds(list(store.sources.values())))
    return dict(zip(store.sources, np.diff(edges).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Padding:
    """Share of padding in rows of `slots` slots: with an example a row, and packed."""

    slots: int
    unpacked: float
    packed: float


class _Part(TextStore):
    """Some documents of a split, int64 [D] ascending, as a split: what `make_plan` needs of it."""

    def __init__(self, store: TextStore, documents: np.ndarray):
        self.path, self.split, self._whole = store.path, store.split, store
        self.records_per_document = store.records_per_document[documents]
        self._records = ranges(store.document_records[documents], self.records_per_document)
        self.sentences_per_record = store.sentences_per_record[self._records]
        sentences = ranges(store.record_sentences[self._records], self.sentences_per_record)
        self.sentence_lengths = store.sentence_lengths[sentences]
        self.continued_sentences = np.zeros(0, np.int64)  # too few to show in a picture of lengths
        self.sources = _count_sources(store, self._records)

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._whole.read(self._records[records])


def planned_padding(
    store: TextStore, starts_word: np.ndarray, settings: PlanSettings, most: int = PLAN_TOKENS
) -> Padding:
    """Padding of a packing plan, which is made and not kept, over documents of about `most` tokens, evenly spaced.

    Room that the plan keeps for text of other documents counts as filled.
    """
    documents = len(store.records_per_document)
    some = evenly(documents, max(1, documents * most // int(store.document_begins[-1])))
    plan = make_plan(_Part(store, some), starts_word, settings)
    filled = int(plan.example_slots.sum(dtype=np.int64))
    return Padding(
        settings.slots,
        unpacked=1 - filled / (len(plan.example_slots) * settings.slots),
        packed=1 - filled / (plan.rows * settings.slots),
    )


def settings_at(config: ml_collections.ConfigDict, slots: int) -> PlanSettings:
    """The recipe's packing at another length, with mask slots in proportion, if they suffice."""
    masking = config.masking
    needed = int(mask_budget(np.array(slots), masking.rate, masking.count))
    mask_slots = max(needed, -(-masking.slots * slots // config.data.sequence_length))
    return dataclasses.replace(plan_settings(config), slots=slots, mask_slots=mask_slots)


def word_starts(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> np.ndarray:
    """bool [V], the pieces that begin a word where the recipe counts the words of a span."""
    if not config.masking.whole_word:
        return np.ones(vocabulary.size, bool)
    return google_starts_word(vocabulary.pieces) if config.data.recipe == "google" else vocabulary.starts_word


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Everything the page draws, of the training split.

    Attributes:
      documents: int64 [documents], tokens in each.
      sentences: int64 [longest + 1], how many sentences have each length in tokens.
      padding: at the recipe's length, from the sample, and at `LENGTHS`, planned; ascending. Google's pipeline packs
        nothing and has no plan.
      unknown: counted in sampled records.
      coverage: of the vocabulary.
      sample: rows as training sees them.
    """

    documents: np.ndarray
    sentences: np.ndarray
    padding: list[Padding]
    unknown: Unknown
    coverage: Coverage
    sample: Sample


def measure(config: ml_collections.ConfigDict) -> Numbers:
    """Reads and counts.

    Args:
      config: the recipe, with data.path.

    Raises:
      UserError: where data set and recipe do not fit together.
    """
    opened = open_data(config)
    store, length = TextStore(config.data.path, "train"), config.data.sequence_length
    rows = max(1, min(opened.train.rows, SAMPLE_SLOTS // length))
    sample = read_sample(opened.train, rows, word_starts(config, opened.vocabulary))
    padding = [Padding(length, sample.padding_unpacked, sample.padding)]
    for slots in LENGTHS if config.data.recipe == "clean" else ():
        if slots != length:
            padding.append(planned_padding(store, opened.vocabulary.starts_word, settings_at(config, slots)))
    return Numbers(
        documents=np.diff(store.document_begins),
        sentences=length_counts(store.sentence_lengths),
        padding=sorted(padding, key=lambda p: p.slots),
        unknown=count_unknown(store),
        coverage=coverage(store.unigrams[:]),
        sample=sample,
    )
