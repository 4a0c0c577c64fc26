# SPDX-License-Identifier: Apache-2.0
"""The stream of rows: complete, pure, and what the settings say, compared with slow readings of its batches."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections import Counter

import ml_collections
import numpy as np
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.data import counter_rng
from albert_jax.data import stream as streams
from albert_jax.data.loader import Loader
from albert_jax.data.masking import MaskRule
from albert_jax.data.parity import GoogleStream
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.store import TextStore
from albert_jax.data.stream import BORROWING, Batch, PretrainingStream
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.errors import UserError
from albert_jax.training.data import open_data
from albert_jax.training.recipe import pretraining
from tests.text_store import (
    FIRST,
    Example,
    MemoryStore,
    draws_of,
    made_up_vocabulary,
    numbered,
    read_batch,
    slow_choice,
    topics_data,
)


def memory_stream(
    lengths: list[list[int]],
    settings: PlanSettings,
    *,
    seed: int = 1,
    documents: list[int] | None = None,
    longest_ngram: int = 3,
    sentence_order: str = "sop",
    shuffle: bool = True,
) -> PretrainingStream:
    store = MemoryStore(numbered(lengths), documents=documents)
    vocabulary = made_up_vocabulary(FIRST + sum(map(sum, lengths)))
    settings = dataclasses.replace(settings, pair_singles=sentence_order in BORROWING)
    plan = make_plan(store, vocabulary.starts_word, settings)
    rule = MaskRule.paper(vocabulary, rate=settings.mask_rate, longest_ngram=longest_ngram)
    order = sentence_order
    return PretrainingStream(store, plan, settings, rule, seed=seed, sentence_order=order, shuffle=shuffle)


def assert_equal(a: Batch, b: Batch) -> None:
    for name, x, y in zip(Batch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
        assert x.dtype == y.dtype == np.int32


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


# --- everything once, in order ----------------------------------------------------------------------------------------

TEXT = [[(7 * r + 11 * i * i) % 37 + 1 for i in range(r % 13 + 1)] for r in range(50)] + [[300, 2, 700], [1], [2, 1, 1]]
TEXT_LENGTH: dict[int, int] = {}  # of the sentence that holds an id
for _sentence in (sentence for record in numbered(TEXT) for sentence in record):
    TEXT_LENGTH.update(dict.fromkeys(_sentence, len(_sentence)))
SETTINGS = [
    PlanSettings(8, 1, 1, 0.15, 0.1),
    PlanSettings(8, 2, 2, 0.15, 1.0),
    PlanSettings(64, 1, 10, 0.15, 0.5),
    PlanSettings(64, 8, 10, 0.15, 0.1),
    PlanSettings(128, 4, 60, 0.4, 0.0),
    PlanSettings(512, 16, 80, 0.15, 0.3),
    PlanSettings(4096, 4, 700, 0.15, 0.3),
]
DOCUMENTS = [1, 4, 2, 10, *[3] * 11, 1, 1, 1]  # records in each document of TEXT: one of 10 has 900 tokens and more
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"S{s.slots}-P{s.examples}-M{s.mask_slots}")


@every_setting
@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["records", "documents"])
def test_every_token_of_the_split_is_in_every_epoch_once_in_its_order(
    settings: PlanSettings, epoch: int, documents: list[int] | None
) -> None:
    stream = memory_stream(TEXT, settings, documents=documents)
    rows = stream.plan.rows
    examples = [e for row in read_batch(stream.batch(epoch * rows, rows)) for e in row]
    runs = sorted(example.text for example in examples)
    assert [token for run in runs for token in run] == list(range(FIRST, FIRST + sum(map(sum, TEXT))))


@every_setting
def test_segments_are_whole_sentences_of_one_document_unless_alone_in_their_example(settings: PlanSettings) -> None:
    stream = memory_stream(TEXT, settings, documents=DOCUMENTS)
    document_of = np.repeat(np.arange(len(DOCUMENTS)), np.diff(stream.store.document_begins))
    starts = {FIRST}
    for length in itertools.chain(*TEXT):
        starts.add(max(starts) + length)
    over_records = 0
    for row in read_batch(stream.batch(0, stream.plan.rows)):
        assert sum(e.length for e in row) <= settings.slots
        for example in row:
            tokens = np.array(example.text) - FIRST
            assert len(set(document_of[tokens])) == 1
            records = np.searchsorted(stream.store.record_begins, tokens, side="right")
            over_records += records[0] != records[-1]
            if example.second is None:
                assert example.label == -100
                whole = example.first[0] in starts and example.first[-1] + 1 in starts
                inside = not any(token in starts for token in example.first[1:])
                # One sentence, or a part of one that no example can hold.
                long = TEXT_LENGTH[example.first[0]] > settings.slots - 3
                assert inside and (whole or long)
            else:
                for segment in (example.first, example.second):
                    assert segment[0] in starts and segment[-1] + 1 in starts
    assert over_records > 5 or settings.slots == 8  # a run of six rows ends with each record


@every_setting
def test_second_follows_first_where_the_label_is_0_and_first_follows_second_where_it_is_1(
    settings: PlanSettings,
) -> None:
    stream = memory_stream(TEXT, settings, documents=DOCUMENTS)
    pairs = [e for row in read_batch(stream.batch(0, 6 * stream.plan.rows)) for e in row if e.second is not None]
    assert {e.label for e in pairs} == {0, 1}
    for e in pairs:
        assert e.second is not None
        before, after = (e.first, e.second) if e.label == 0 else (e.second, e.first)
        assert before[-1] + 1 == after[0]


@pytest.mark.parametrize("longest", [1, 3, 6])
def test_ngrams_stay_within_one_segment_and_rows_mask_what_the_slow_procedure_chooses_for_each_example(
    longest: int,
) -> None:
    settings = PlanSettings(48, 4, 24, 0.3, 0.5)
    stream = memory_stream(TEXT, settings, seed=9, longest_ngram=longest)
    start, rows = 3 * stream.plan.rows, stream.plan.rows
    numbers, _ = stream.examples_at(start, rows)
    for row, ordinals in zip(read_batch(stream.batch(start, rows)), numbers.tolist(), strict=True):
        for example, number in zip(row, ordinals, strict=False):
            words: list[list[list[int]]] = []  # positions of each word of each segment
            for begin, ids in ((1, example.first), (len(example.first) + 2, example.second or [])):
                words.append([])
                for i, token in enumerate(ids):
                    if i == 0 or token % 3 == 0:
                        words[-1].append([])
                    words[-1][-1].append(begin + i)
            key = int(counter_rng.bits(9, streams._EXAMPLE, 3, number))
            halves = [[len(word) for word in half] for half in words]
            budget = max(1, round(0.3 * example.length))
            chosen = slow_choice(halves, budget, *draws_of(key, sum(map(len, halves)), longest))
            expected = [p for word, c in zip(words[0] + words[1], chosen, strict=True) if c for p in word]
            assert [position for position, _, _ in example.targets] == expected


def test_half_of_the_pairs_are_swapped_independently_of_the_split() -> None:
    stream = memory_stream([[4] * 6] * 200, PlanSettings(27, 1, 5, 0.15, 0.0))
    examples = [row[0] for row in read_batch(stream.batch(0, 20 * stream.plan.rows))]
    n = len(examples)
    swaps = sum(e.label for e in examples)
    assert n == 4000 and abs(swaps - n / 2) < 4.5 * (n / 4) ** 0.5
    table = Counter((len(before_first(e)) // 4, e.label) for e in examples)
    assert sum((table[k, s] - n / 10) ** 2 / (n / 10) for k in range(1, 6) for s in (0, 1)) < 40  # chi-square, 9


def before_first(example: Example) -> list[int]:
    """The segment that comes first in the document."""
    assert example.second is not None
    return example.second if example.label == 1 else example.first


def test_splits_are_uniform_over_the_boundaries_between_sentences() -> None:
    # Five sentences of different lengths fill an example exactly; each of their four boundaries is drawn as often.
    stream = memory_stream([[3, 9, 1, 7, 5]] * 100, PlanSettings(28, 1, 4, 0.15, 0.0))
    assert stream.plan.rows == 100
    examples = [row[0] for row in read_batch(stream.batch(0, 4000))]
    counts = Counter(len(before_first(e)) for e in examples)
    assert counts.keys() == {3, 12, 13, 20}
    assert sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 26  # chi-square, 3: p = 1e-5


def test_a_target_is_ignored_by_the_loss_exactly_where_its_slot_is_unused() -> None:
    stream = memory_stream(TEXT, SETTINGS[3])
    batch = stream.batch(0, stream.plan.rows)
    for row, examples in enumerate(read_batch(batch)):  # which asserts the form of every array
        assert np.sum(batch.mlm_labels[row] != -100) == sum(len(e.targets) for e in examples)
        assert np.sum(batch.sop_labels[row] != -100) == sum(e.second is not None for e in examples)


# --- real text --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return topics_data(tmp_path_factory)


REAL = PlanSettings(64, 4, 14, 0.15, 0.2)


def real_stream(topics: pathlib.Path, *, seed: int = 5, settings: PlanSettings = REAL) -> PretrainingStream:
    vocabulary = Vocabulary.load(topics / "spiece.model")
    store = TextStore(topics, "train")
    plan = make_plan(store, vocabulary.starts_word, settings)
    rule = MaskRule.paper(vocabulary, rate=settings.mask_rate)
    return PretrainingStream(store, plan, settings, rule, seed=seed)


@pytest.fixture(scope="module")
def stream(topics: pathlib.Path) -> PretrainingStream:
    return real_stream(topics)


@pytest.mark.parametrize("slots", [8, 64, 512, 4096])
def test_labels_put_back_give_the_sentences_of_the_data_set_each_once(topics: pathlib.Path, slots: int) -> None:
    settings = PlanSettings(slots, 4, slots, 0.15, 0.2)
    stream = real_stream(topics, settings=settings)
    lengths = iter(stream.store.sentence_lengths.tolist())
    expected: Counter[tuple[int, ...]] = Counter()
    for record, count in enumerate(stream.store.sentences_per_record):
        tokens, at = stream.store.read(np.array([record]))[0].tolist(), 0
        for length in itertools.islice(lengths, int(count)):
            expected[tuple(tokens[at : at + length])] += 1
            at += length
    # Sentences of the examples, by the plan's own sizes: the text between is what the batches really hold.
    order, epochs = stream.examples_at(0, stream.plan.rows)
    assert not epochs.any()
    found: Counter[tuple[int, ...]] = Counter()
    parts: list[tuple[int, tuple[int, ...]]] = []
    for row, numbers in zip(read_batch(stream.batch(0, stream.plan.rows)), order.tolist(), strict=True):
        for example, number in zip(row, numbers, strict=False):
            first, size = int(stream.plan.example_units[number]), int(stream.plan.example_sizes[number])
            at = 0
            for unit in range(first, first + size):
                length = int(stream.plan.unit_lengths[unit])
                parts.append((unit, tuple(example.text[at : at + length])))
                at += length
            assert at == len(example.text)
    units = [part for _, part in sorted(parts)]
    whole = iter(units)
    for length in stream.store.sentence_lengths.tolist():
        sentence: tuple[int, ...] = ()
        while len(sentence) < length:
            sentence += next(whole)
        found[sentence] += 1
    assert next(whole, None) is None and found == expected


def test_a_batch_is_its_smaller_batches_one_after_the_other(stream: PretrainingStream) -> None:
    start, count = 37, 48
    whole = stream.batch(start, count)
    for hosts in (1, 2, 8):
        share = count // hosts
        assert_equal(joined([stream.batch(start + host * share, share) for host in range(hosts)]), whole)
    cuts = [0, 1, 2, 5, 6, 30, 31, 48]
    assert_equal(joined([stream.batch(start + a, b - a) for a, b in itertools.pairwise(cuts)]), whole)


def test_a_batch_depends_neither_on_the_calls_before_it_nor_on_the_object(
    topics: pathlib.Path, stream: PretrainingStream
) -> None:
    rows = stream.plan.rows
    places = [(0, 8), (rows - 3, 8), (5 * rows + 1, 2), (16, 8), (2, 1)]
    first = [stream.batch(*place) for place in places]
    again = [stream.batch(*place) for place in reversed(places)]
    fresh = [real_stream(topics).batch(*place) for place in places]
    for a, b, c in zip(first, reversed(again), fresh, strict=True):
        assert_equal(a, b)
        assert_equal(a, c)


def test_threads_that_make_batches_at_once_give_those_that_one_makes_in_turn(topics: pathlib.Path) -> None:
    rows = real_stream(topics).plan.rows
    starts = range(rows - 40, rows + 40, 4)  # across the end of an epoch
    shared, alone = real_stream(topics), real_stream(topics)
    with contextlib.closing(Loader(lambda start: shared.batch(start, 4), starts, ahead=8)) as loader:
        for start, batch in loader:
            assert_equal(batch, alone.batch(start, 4))


def test_a_batch_over_the_end_of_an_epoch_is_the_end_of_one_and_the_start_of_the_next(
    stream: PretrainingStream,
) -> None:
    rows = stream.plan.rows
    assert_equal(joined([stream.batch(2 * rows - 3, 3), stream.batch(2 * rows, 4)]), stream.batch(2 * rows - 3, 7))


def test_a_batch_of_more_rows_than_several_epochs_have_is_whole() -> None:
    stream = memory_stream(TEXT[:9], SETTINGS[3])
    rows = stream.plan.rows
    batch = stream.batch(1, 4 * rows)
    assert_equal(joined([stream.batch(1 + n, 1) for n in range(4 * rows)]), batch)
    tokens = Counter(t for row in read_batch(stream.batch(0, 4 * rows)) for e in row for t in e.text)
    assert set(tokens.values()) == {4} and len(tokens) == sum(map(sum, TEXT[:9]))


def test_positions_beyond_any_run_work_and_say_where_they_are(stream: PretrainingStream) -> None:
    batch = stream.batch(10**12, 3)
    assert batch.row_ids.tolist() == [(10**12 + n) % 2**31 for n in range(3)]
    assert all(read_batch(batch))
    assert_equal(joined([stream.batch(10**12 + n, 1) for n in range(3)]), batch)
    assert stream.batch(2**31 - 1, 2).row_ids.tolist() == [2**31 - 1, 0]


def by_text(stream: PretrainingStream, epoch: int) -> dict[tuple[int, ...], list[Example]]:
    rows = stream.plan.rows
    found: dict[tuple[int, ...], list[Example]] = {}
    for row in read_batch(stream.batch(epoch * rows, rows)):
        for example in row:
            found.setdefault(tuple(example.text), []).append(example)
    return found


def test_epochs_hold_the_same_text_with_another_order_other_splits_swaps_and_masks(stream: PretrainingStream) -> None:
    rows = stream.plan.rows
    orders = [stream.examples_at(epoch * rows, rows)[0] for epoch in (0, 1)]
    assert sorted(map(tuple, orders[0].tolist())) == sorted(map(tuple, orders[1].tolist()))
    assert np.mean(np.all(orders[0] == orders[1], axis=1)) < 0.05
    a, b = by_text(stream, 0), by_text(stream, 1)
    assert a.keys() == b.keys()
    once = [(a[text][0], b[text][0]) for text in a if len(a[text]) == len(b[text]) == 1 and len(text) > 30]
    assert len(once) > 300
    pairs = [(x, y) for x, y in once if x.second is not None]
    assert 0.4 < np.mean([x.label == y.label for x, y in pairs]) < 0.6
    assert np.mean([len(before_first(x)) == len(before_first(y)) for x, y in pairs]) < 0.9
    assert np.mean([[t[0] for t in x.targets] == [t[0] for t in y.targets] for x, y in once]) < 0.1


def test_another_seed_gives_another_order_and_other_draws(topics: pathlib.Path, stream: PretrainingStream) -> None:
    other = real_stream(topics, seed=6)
    assert stream.plan.digest == other.plan.digest
    rows = stream.plan.rows
    assert np.mean(np.all(stream.examples_at(0, rows)[0] == other.examples_at(0, rows)[0], axis=1)) < 0.05
    a, b = by_text(stream, 0), by_text(other, 0)
    same = [a[text][0].targets == b[text][0].targets for text in a if len(text) > 30]
    assert np.mean(same) < 0.1


def test_rows_in_the_plans_order_are_kept_where_nothing_is_to_be_shuffled() -> None:
    stream = memory_stream(TEXT, SETTINGS[3], shuffle=False)
    for epoch in (0, 1):
        examples, _ = stream.examples_at(epoch * stream.plan.rows, stream.plan.rows)
        np.testing.assert_array_equal(examples, stream.plan.row_examples)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_fixed_rows_are_the_first_pass_every_time_and_empty_rows_beyond_it_have_no_targets(
    stream: PretrainingStream,
) -> None:
    rows = stream.plan.rows
    for start, real in ((0, 16), (rows - 5, 5), (rows, 0), (rows + 7, 0)):
        batch = stream.fixed_rows(start, 16)
        stream.batch(3 * rows, 2)
        assert_equal(stream.fixed_rows(start, 16), batch)
        assert all(len(array) == 16 for array in batch)
        assert_equal(Batch(*(array[:real] for array in batch)), stream.batch(start, real))
        assert (batch.mlm_labels[real:] == -100).all() and (batch.sop_labels[real:] == -100).all()
        for name in set(Batch._fields) - {"mlm_labels", "sop_labels"}:
            assert not getattr(batch, name)[real:].any()


def test_a_batch_of_no_rows_is_empty(stream: PretrainingStream) -> None:
    assert [array.shape for array in stream.batch(4, 0)] == [(0, *array.shape[1:]) for array in stream.batch(4, 1)]


# --- the same between versions ----------------------------------------------------------------------------------------

GOLDEN = "50308a9131a1db5328edc5df72e50580c56d502bd794e931b4728439e512bdc8"


def test_the_stream_of_a_made_up_split_is_the_one_that_earlier_versions_gave() -> None:
    """A run goes on, and a published one can be repeated, only where the same data, settings and seed give the same
    batches in a newer version of this code, of NumPy and of Python; a change must be meant. Everything here is written
    out below: tokens, words and settings depend on no package's data."""
    lengths = [[(5 * r + 3 * i) % 23 + 1 for i in range(r % 9 + 1)] for r in range(40)] + [[90, 4, 130]]
    records, n = [], 0
    for record in lengths:
        records.append([[FIRST + (n + i) * (n + i) * 31 % 995 for i in range(length)] for length in record])
        n += sum(record)
    settings = PlanSettings(slots=48, examples=3, mask_slots=9, mask_rate=0.15, short_fraction=0.2)
    vocabulary = made_up_vocabulary(1000)
    store = MemoryStore(records, documents=[7, 1, 2, 30, 1])
    plan = make_plan(store, vocabulary.starts_word, settings)
    stream = PretrainingStream(store, plan, settings, MaskRule.paper(vocabulary), seed=42)
    digest = hashlib.sha256()
    for array in stream.batch(plan.rows - 16, 32):  # the end of an epoch and the start of the next
        digest.update(f"{array.shape}".encode() + array.astype("<i4").tobytes())
    assert digest.hexdigest() == GOLDEN


def test_in_evaluation_half_of_the_pairs_are_swapped_so_that_a_constant_answer_scores_one_half() -> None:
    stream = memory_stream(TEXT, SETTINGS[3], shuffle=False)
    labels = stream.fixed_rows(0, stream.plan.rows).sop_labels
    assert abs(int(np.sum(labels == 1)) - int(np.sum(labels == 0))) <= 1


# --- other objectives -------------------------------------------------------------------------------------------------

# Documents of one sentence, of a sentence that leaves no room, and of several.
MIXED = [[7], [61], [60], [9], *[[(5 * r + i) % 9 + 1 for i in range(r + 2)] for r in range(20)], [13], [80, 3]]
PAIRED = PlanSettings(64, 4, 40, 0.15, 0.2)


def begins_of(lengths: list[list[int]]) -> tuple[dict[int, int], set[int]]:
    """The document of each id, where each record is one, and the ids with which sentences begin."""
    document, starts, following = {}, set(), FIRST
    for r, record in enumerate(lengths):
        for length in record:
            starts.add(following)
            document.update(dict.fromkeys(range(following, following + length), r))
            following += length
    return document, starts


def assert_borrowed(example: Example, document: dict[int, int], starts: set[int]) -> None:
    """The second segment is a run of tokens of one other document, from the start of a sentence on."""
    assert example.second is not None and example.label == 1
    assert example.second == list(range(example.second[0], example.second[0] + len(example.second)))
    assert example.second[0] in starts
    (other,), (own,) = ({document[token] for token in ids} for ids in (example.second, example.first))
    assert other != own


def test_without_an_objective_pairs_stay_in_order_and_have_no_label() -> None:
    stream = memory_stream(TEXT, SETTINGS[3], documents=DOCUMENTS, sentence_order="none")
    batch = stream.batch(0, stream.rows)
    assert (batch.sop_labels == -100).all() and batch.token_type_ids.any()
    for example in itertools.chain(*read_batch(batch)):
        text = example.first + (example.second or [])
        assert text == list(range(text[0], text[0] + len(text)))


@pytest.mark.parametrize("order", ["nsp", "sop_parity"])
def test_an_example_of_one_sentence_is_followed_by_text_of_another_document_where_a_row_has_room(order: str) -> None:
    stream = memory_stream(MIXED, PAIRED, sentence_order=order)
    document, starts = begins_of(MIXED)
    once: Counter[int] = Counter()
    singles = 0
    for epoch in range(6):
        for row in read_batch(stream.batch(epoch * stream.rows, stream.rows)):
            assert sum(e.length for e in row) <= 64
            for example in row:
                own = set(example.first)
                if example.second is None:
                    assert example.label == -100 and len(own) == 61
                elif len({document[t] for t in example.first + example.second}) > 1:
                    assert_borrowed(example, document, starts)
                    singles += 1
                else:
                    own |= set(example.second)
                if order == "sop_parity":
                    once.update(own)
                    if example.second is not None and example.label == 0:
                        assert example.second[0] == example.first[-1] + 1
    assert singles > 20
    if order == "sop_parity":  # what is borrowed has its own place besides
        assert set(once.values()) == {6} and len(once) == sum(map(sum, MIXED))


def test_in_nsp_half_of_the_pairs_have_their_second_half_from_a_document_chosen_uniformly() -> None:
    lengths = [[4] * 6] * 40
    stream = memory_stream(lengths, PlanSettings(27, 1, 5, 0.15, 0.0), sentence_order="nsp")
    document, starts = begins_of(lengths)
    examples = [row[0] for row in read_batch(stream.batch(0, 400 * stream.rows))]
    assert len(examples) == 16_000
    borrowed = [e for e in examples if e.label == 1]
    for e in borrowed:
        assert_borrowed(e, document, starts)
        assert e.second is not None and len(e.first) + len(e.second) <= 24
    assert all(e.second is not None and e.second[0] == e.first[-1] + 1 for e in examples if e.label == 0)
    n = len(borrowed)
    assert abs(n - 8000) < 4.5 * 4000**0.5
    seconds = [e.second[0] for e in borrowed if e.second is not None]
    by_document = Counter((document[e.first[0]], document[second]) for e, second in zip(borrowed, seconds, strict=True))
    assert len(by_document) > 1500  # of 1560; with 5 expected of each, about 9 are missing
    others = Counter(document[second] for second in seconds)
    assert sum((c - n / 40) ** 2 / (n / 40) for c in others.values()) < 100  # chi-square, 39: p = 1e-7
    places = Counter((second - FIRST) % 24 // 4 for second in seconds)
    assert sum((places[k] - n / 6) ** 2 / (n / 6) for k in range(6)) < 35  # chi-square, 5: p = 1e-6


@pytest.mark.parametrize("order", ["nsp", "sop_parity"])
def test_borrowing_depends_on_the_position_only(order: str) -> None:
    stream = memory_stream(MIXED, PAIRED, sentence_order=order)
    whole = stream.batch(0, 3 * stream.rows)
    assert_equal(joined([stream.batch(n, 1) for n in range(3 * stream.rows)]), whole)


def test_a_split_of_one_document_has_no_other_to_borrow_from() -> None:
    with pytest.raises(UserError, match=r"has 1 document and none to take other text from; pass --config\.data"):
        memory_stream([[5, 5], [5]], PAIRED, documents=[2], sentence_order="nsp")


def test_an_objective_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="sentence_order must be one of 'sop', 'sop_parity', 'nsp', 'none', not 'sopp'"):
        memory_stream(MIXED, PAIRED, sentence_order="sopp")


# --- from a config ----------------------------------------------------------------------------------------------------


def config_of(topics: pathlib.Path, **fields: object) -> ml_collections.ConfigDict:
    config = pretraining(AlbertConfig(vocab_size=1500, max_position_embeddings=64))
    config.data.path = str(topics)
    config.data.sequence_length = 64
    config.data.examples_per_row = 1
    config.masking.slots = 10
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def test_a_config_opens_the_stream_that_it_describes(topics: pathlib.Path) -> None:
    data = open_data(config_of(topics, data__sentence_order="nsp", masking__count=4, masking__whole_word=False))
    assert isinstance(data.train, PretrainingStream)
    assert data.train.settings.pair_singles and data.train.settings.mask_count == 4
    assert data.train.rule.starts_word.all() and data.train.sentence_order == "nsp"
    assert data.mixture is None and data.train.fingerprint != data.validation.fingerprint
    google = open_data(config_of(topics, data__recipe="google", data__sentence_order="sop_parity"))
    assert isinstance(google.train, GoogleStream) and google.train.digest != data.train.digest
    for stream in (data.train, data.validation, google.train, google.validation):
        assert stream.epoch(0) == 0 and stream.epoch(stream.rows) == 1
        assert f"{stream.rows:,} rows of 64 slots" in stream.describe()
        assert len(stream.batch(stream.rows - 1, 2).input_ids) == 2


def test_of_several_sources_the_config_weighs_those_of_training_only(
    topics: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(topics, tmp_path / "data"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for split in ("train", "validation"):
        first = int(TextStore(copy, split).document_records[3])
        rest = manifest["splits"][split]["records"] - first
        manifest["splits"][split]["sources"] = {"a": {"records": first}, "b": {"records": rest}}
    manifest["sources"] = [{"name": "a", "weight": 2.0}, {"name": "b", "weight": 1.0}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    plain, weighted = open_data(config_of(copy)), open_data(config_of(copy, data__weights="a=7.5"))
    assert plain.mixture is not None and weighted.mixture is not None
    assert plain.mixture.source_epochs(plain.train.rows) == {"a": 2.0, "b": 1.0}
    assert weighted.mixture.source_epochs(weighted.train.rows)["a"] == pytest.approx(7.5, rel=0.05)
    assert plain.train.digest != weighted.train.digest
    assert plain.validation.digest == weighted.validation.digest
    with pytest.raises(UserError, match="names the source 'c'; the data set has a, b"):
        open_data(config_of(copy, data__weights="c=1"))
    with pytest.raises(UserError, match=r"no weights of sources; pass --config\.data\.weights=a=1,b=1"):
        open_data(config_of(copy, data__recipe="google", data__sentence_order="nsp"))


def test_a_recipe_that_does_not_exist_is_named(topics: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"data\.recipe must be 'clean', 'google' or 'baked', not 'gogle'"):
        open_data(config_of(topics, data__recipe="gogle"))


def test_text_without_spaces_between_words_is_warned_of_once(
    topics: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Vocabulary, "load", lambda path: made_up_vocabulary(1500, 50))
    for whole_word, warned in ((True, 1), (False, 0)):
        caplog.clear()
        open_data(config_of(topics, masking__whole_word=whole_word))
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == warned
        assert all("pass --config.masking.whole_word=False" in sentence for sentence in warnings)
