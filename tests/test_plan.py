# SPDX-License-Identifier: Apache-2.0
"""Packing plans, compared with slow loops over sentences and rows."""

import dataclasses
import itertools
import logging
import os
import pathlib
import random
from typing import Any

import numpy as np
import pytest

from albert_jax.data import plan as plans
from albert_jax.data.plan import Plan, PlanSettings, cached_plan, make_plan, pack_lengths
from albert_jax.data.store import TextStore
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.errors import UserError
from tests.text_store import MemoryStore, made_up_vocabulary, numbered, topics_data


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return topics_data(tmp_path_factory)


def mixed(seed: int, records: int = 60, longest: int = 40) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randint(1, longest) for _ in range(rng.randint(1, 20))] for _ in range(records)]


def long_tail(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[min(600, int(rng.paretovariate(0.7) * 3)) for _ in range(rng.randint(1, 12))] for _ in range(25)]


SHAPES = {
    "mixed": mixed(1),
    "sentences longer than any row": long_tail(2),
    "one sentence": [[7]],
    "one token": [[1]],
    "one long sentence": [[1999]],
    "sentences of one token": [[1] * 100, [1], [1] * 7],
    "records of one sentence": [[n] for n in range(1, 60)],
    "sentences that fill an example": [[5, 61, 125, 509, 5, 61, 125, 509], [509, 509], [125, 125, 1]],
    "sentences one too long": [[6, 62, 126, 510, 1, 6, 62, 126, 510], [510], [1, 510, 1]],
}
SETTINGS = [
    PlanSettings(8, 1, 1, 0.15, 0.1),
    PlanSettings(8, 4, 8, 0.15, 1.0),
    PlanSettings(64, 1, 10, 0.15, 0.0),
    PlanSettings(64, 8, 10, 0.15, 0.1),
    PlanSettings(128, 3, 19, 0.15, 0.5),
    PlanSettings(512, 16, 80, 0.15, 0.1),
    PlanSettings(512, 2, 205, 0.4, 1.0),
    PlanSettings(4096, 3, 620, 0.15, 0.2),
    PlanSettings(64, 8, 20, 0.15, 0.3, mask_count=5, pair_singles=True),
]
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"S{s.slots}-P{s.examples}-M{s.mask_slots}")

Unit = tuple[int, int]  # begin and end, in tokens of the split


def vocabulary_of(shape: str, word: int = 3) -> Vocabulary:
    return made_up_vocabulary(5 + sum(map(sum, SHAPES[shape])), word)


def documents_of(shape: str) -> list[int]:
    """Documents of one to four records."""
    documents: list[int] = []
    left = len(SHAPES[shape])
    while left:
        documents.append(min(left, 1 + len(documents) % 4))
        left -= documents[-1]
    return documents


def planned(shape: str, settings: PlanSettings) -> tuple[MemoryStore, Plan]:
    store = MemoryStore(numbered(SHAPES[shape]), documents=documents_of(shape))
    return store, make_plan(store, vocabulary_of(shape).starts_word, settings)


def examples_of(plan: Plan) -> list[list[Unit]]:
    ends = np.cumsum(plan.unit_lengths, dtype=int).tolist()
    units = [(end - int(n), end) for end, n in zip(ends, plan.unit_lengths, strict=True)]
    found = [units[a:b] for a, b in itertools.pairwise(plan.example_units.tolist())]
    assert [example[0][0] for example in found] == plan.example_begins[:-1].tolist()
    assert plan.example_units[-1] == len(units) and plan.example_begins[-1] == ends[-1]
    return found


def sentences_of(store: MemoryStore) -> list[Unit]:
    ends = list(itertools.accumulate(len(sentence) for record in store.records for sentence in record))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def slots_of(example: list[Unit]) -> int:
    return sum(end - begin for begin, end in example) + (2 if len(example) == 1 else 3)


def masks_of(slots: int, settings: PlanSettings) -> int:
    return min(max(1, round(slots * settings.mask_rate)), settings.mask_count or settings.slots)


@every_shape
@every_setting
def test_every_sentence_is_in_exactly_one_example_and_only_those_longer_than_an_example_are_cut(
    shape: str, settings: PlanSettings
) -> None:
    store, plan = planned(shape, settings)
    units = sorted(unit for example in examples_of(plan) for unit in example)
    cut: dict[Unit, list[Unit]] = {}
    for sentence in sentences_of(store):
        cut[sentence] = [u for u in units if sentence[0] <= u[0] < sentence[1]]
    assert sum(map(len, cut.values())) == len(units)
    for (begin, end), parts in cut.items():
        if end - begin <= settings.slots - 3:
            assert parts == [(begin, end)]
        assert parts[0][0] == begin and parts[-1][1] == end
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert plan.cut_sentences.tolist() == [sum(len(parts) > 1 for parts in cut.values())]


@every_shape
@every_setting
def test_an_example_is_consecutive_sentences_of_one_document_that_fit_a_row(shape: str, settings: PlanSettings) -> None:
    store, plan = planned(shape, settings)
    ends = store.document_begins[1:]
    for example in examples_of(plan):
        assert all(a[1] == b[0] for a, b in itertools.pairwise(example))
        assert slots_of(example) <= settings.slots
        assert np.searchsorted(ends, example[0][0], side="right") == np.searchsorted(ends, example[-1][1] - 1, "right")


def test_an_example_runs_over_the_records_of_its_document() -> None:
    store = MemoryStore(numbered([[7] * 10] * 6), documents=[5, 1])
    plan = make_plan(store, np.ones(999, bool), PlanSettings(4096, 1, 620, 0.15, 0.0))
    assert plan.example_begins.tolist() == [0, 350, 420]
    plan = make_plan(store, np.ones(999, bool), PlanSettings(100, 1, 15, 0.15, 0.0))
    assert plan.example_begins.tolist() == [0, 91, 182, 273, 350, 420]


@pytest.mark.parametrize("slots", [64, 512, 4096])
def test_what_the_builder_cut_because_it_was_longer_than_a_record_is_never_paired_with_itself(slots: int) -> None:
    records = numbered([[5, 7, 2000], [2048], [300, 9, 8], [6, 6]])
    store = MemoryStore(records, documents=[3, 1], continued=[3, 4])  # 2000, 2048 and 300 are one sentence
    plan = make_plan(store, np.ones(9999, bool), PlanSettings(slots, 1, slots, 0.15, 0.0))
    together = [example for example in examples_of(plan) if len(example) > 1]
    begins = store.sentence_begins(np.array([2, 5]))
    assert together and not any(begins[0] <= begin < begins[1] for example in together for begin, _ in example)


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_a_long_document_is_planned_in_runs_of_many_rows_and_in_blocks_without_losing_a_sentence(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_RUN_ROWS", rows)
    store = MemoryStore(numbered([[50] * 40] * 60 + [[3] * 5] * 7), documents=[50, 10, *[1] * 7])
    settings = PlanSettings(512, 4, 80, 0.15, 0.1)
    plan = make_plan(store, np.ones(10**6, bool), settings)
    assert plan.unit_lengths.tolist() == store.sentence_lengths.tolist()
    assert plan.example_units[-1] == len(plan.unit_lengths)
    monkeypatch.setattr(plans, "_BLOCK_SENTENCES", 100)
    assert make_plan(store, np.ones(10**6, bool), settings).digest == plan.digest


def test_the_rows_of_a_source_hold_its_text_only() -> None:
    sources = {"a": (13, 1.0), "b": (40, 2.0), "c": (7, 1.0)}
    store = MemoryStore(numbered(SHAPES["mixed"]), sources=sources)
    plan = make_plan(store, vocabulary_of("mixed").starts_word, PlanSettings(64, 8, 10, 0.15, 0.1))
    tokens = store.record_begins[np.cumsum([0, 13, 40, 7])]
    for s in range(3):
        rows = plan.row_examples[plan.source_rows[s] : plan.source_rows[s + 1]]
        begins = np.sort(plan.example_begins[rows[rows >= 0]])
        assert begins[0] == tokens[s] and begins[-1] < tokens[s + 1]
    assert plan.source_rows[-1] == plan.rows and (np.sort(plan.row_examples[plan.row_examples >= 0]) >= 0).all()


def test_room_is_kept_for_text_of_another_document_up_to_the_length_aimed_at() -> None:
    store = MemoryStore(numbered([[7], [61], [60], [30, 8]]))
    kept = {}
    for pair in (False, True):
        settings = PlanSettings(64, 1, 10, 0.15, 0.0, pair_singles=pair)
        kept[pair] = make_plan(store, np.ones(999, bool), settings).example_slots.tolist()
    assert kept == {False: [9, 63, 62, 41], True: [64, 63, 64, 41]}
    short = PlanSettings(64, 1, 10, 0.15, 1.0, pair_singles=True)
    slots = make_plan(MemoryStore(numbered([[7]] * 5000)), np.ones(40_000, bool), short).example_slots
    # It aims at 2 to 61 tokens, and there is room for one more than its own 7 at least.
    counts = np.bincount(slots)[11:]
    assert slots.min() == 11 and slots.max() == 64
    assert abs(counts[0] - 5000 * 7 / 60) < 110 and np.abs(counts[1:] - 5000 / 60).max() < 45


@pytest.mark.parametrize("word", [1, 3, 50, 10**6])
@every_setting
def test_a_long_sentence_is_cut_at_the_last_word_start_that_fits_and_its_parts_stand_alone(
    settings: PlanSettings, word: int
) -> None:
    shape = "sentences longer than any row"
    store = MemoryStore(numbered(SHAPES[shape]))
    vocabulary = vocabulary_of(shape, word)
    examples = examples_of(make_plan(store, vocabulary.starts_word, settings))
    budget = settings.slots - 3
    long = 0
    tokens = [token for record in store.records for sentence in record for token in sentence]
    for begin, end in sentences_of(store):
        if end - begin <= budget:
            continue
        long += 1
        ids = tokens[begin:end]
        cuts = [0]
        while len(ids) - cuts[-1] > budget:
            cut = cuts[-1] + budget
            while cut > cuts[-1] and ids[cut] % word:
                cut -= 1
            cuts.append(cut if cut > cuts[-1] else cuts[-1] + budget)
        for a, b in zip(cuts, [*cuts[1:], len(ids)], strict=True):
            assert [(begin + a, begin + b)] in examples
    assert long or settings.slots > 700


@every_shape
@every_setting
def test_every_example_has_one_place_and_a_row_respects_its_slots_examples_and_masks(
    shape: str, settings: PlanSettings
) -> None:
    _, plan = planned(shape, settings)
    examples = examples_of(plan)
    placed: list[int] = []
    assert plan.row_examples.shape == (plan.rows, settings.examples)
    for row in plan.row_examples.tolist():
        used = [e for e in row if e >= 0]
        assert used and row == used + [-1] * (settings.examples - len(used))
        sizes = plan.example_slots[used].tolist()
        singles = [settings.pair_singles and len(examples[e]) == 1 for e in used]
        for e, size, roomy in zip(used, sizes, singles, strict=True):
            assert size >= slots_of(examples[e]) if roomy else size == slots_of(examples[e])
        assert sum(sizes) <= settings.slots
        assert sum(masks_of(size, settings) for size in sizes) <= settings.mask_slots
        placed += used
    assert sorted(placed) == list(range(len(examples)))


def slow_examples(lengths: list[int], budget: int) -> list[int]:
    """Sizes of the examples that full-length chunking makes of one record whose sentences all fit."""
    sizes, at = [], 0
    while at < len(lengths):
        size = 1
        while at + size < len(lengths) and sum(lengths[at : at + size + 1]) <= budget:
            size += 1
        one_left = at + size == len(lengths) - 1
        if one_left and size >= 3 and lengths[at + size - 1] + lengths[-1] <= budget:
            size -= 1
        sizes.append(size)
        at += size
    return sizes


@pytest.mark.parametrize("slots", [64, 128, 512])
def test_examples_take_as_many_sentences_as_fit_and_spare_one_for_a_last_sentence_left_alone(slots: int) -> None:
    lengths = mixed(3, records=300)
    store = MemoryStore(numbered(lengths))
    plan = make_plan(store, np.ones(10**6, bool), PlanSettings(slots, 4, slots, 0.15, 0.0))
    expected = [size for record in lengths for size in slow_examples(record, slots - 3)]
    assert plan.example_sizes.tolist() == expected


def test_the_stated_share_of_examples_aims_at_a_length_uniform_from_two_to_the_longest() -> None:
    store = MemoryStore([[[5]] * 50_000])  # with sentences of one token an example is as long as it aims to be
    for share in (0.0, 0.1, 1.0):
        plan = make_plan(store, np.ones(6, bool), PlanSettings(64, 8, 40, 0.15, share))
        sizes = plan.example_sizes[:-1].astype(int)
        # Of the short ones one in 60 draws the longest length.
        short, n = float(np.mean(sizes < 61)), len(sizes)
        expected = share * 59 / 60
        assert abs(short - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)
        if share == 1:
            counts = np.bincount(sizes, minlength=62)[2:]
            assert counts.sum() == n and np.sum((counts - n / 60) ** 2 / (n / 60)) < 110  # chi-square, 59: p = 1e-4


def slow_best_fit(lengths: list[int], settings: PlanSettings) -> list[list[int]]:
    """Best fit, longest first, one example at a time."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        best = None
        for row in rows:
            fits = (
                sum(row) + length <= settings.slots
                and len(row) < settings.examples
                and sum(masks_of(n, settings) for n in [*row, length]) <= settings.mask_slots
            )
            if fits and (best is None or sum(row) > sum(best)):
                best = row
        if best is None:
            rows.append([length])
        else:
            best.append(length)
    return rows


@pytest.mark.parametrize("count", [1, 7, 60, 500])
@pytest.mark.parametrize(
    "settings",
    [PlanSettings(128, 64, 128, 0.15, 0), PlanSettings(128, 3, 19, 0.15, 0), PlanSettings(64, 8, 10, 0.15, 0)],
    ids=["free", "P3", "M10"],
)
@pytest.mark.parametrize("tail", [False, True], ids=["long", "short"])
def test_packing_needs_no_more_rows_than_best_fit_decreasing_one_example_at_a_time(
    count: int, settings: PlanSettings, tail: bool
) -> None:
    rng = random.Random(count)
    least, most = (3, settings.slots // 3) if tail else (settings.slots // 6, settings.slots * 3 // 4)
    lengths = [rng.randint(least, most) for _ in range(count)]
    patterns = pack_lengths(np.bincount(lengths, minlength=settings.slots + 1), settings)
    assert sorted(n for pattern, rows in patterns for n in pattern * rows) == sorted(lengths)
    filled = sorted(sum(pattern) for pattern, rows in patterns for _ in range(rows))
    best = sorted(map(sum, slow_best_fit(lengths, settings)))
    if settings.examples == 64:
        assert filled == best
    else:  # where P or M binds, rows of equal space differ in what else they may take, and either may choose better
        assert len(filled) <= len(best) * 1.01 + 1


def test_the_examples_that_share_a_row_are_not_neighbours_in_the_text(topics: pathlib.Path) -> None:
    store, vocabulary = TextStore(topics, "train"), Vocabulary.load(topics / "spiece.model")
    plan = make_plan(store, vocabulary.starts_word, PlanSettings(128, 8, 24, 0.15, 0.5))
    pairs = [(a, b) for row in plan.row_examples.tolist() for a, b in itertools.pairwise(row) if b >= 0]
    assert len(pairs) > 100 and sum(abs(a - b) == 1 for a, b in pairs) < 0.05 * len(pairs)


def test_a_plan_of_real_text_holds_every_token_of_the_split(topics: pathlib.Path) -> None:
    store, vocabulary = TextStore(topics, "train"), Vocabulary.load(topics / "spiece.model")
    for slots in (8, 32, 512):
        plan = make_plan(store, vocabulary.starts_word, PlanSettings(slots, 8, slots, 0.15, 0.1))
        assert int(plan.unit_lengths.sum(dtype=int)) == int(store.sentence_lengths.sum(dtype=int))
        line = plan.describe(PlanSettings(slots, 8, slots, 0.15, 0.1))
        used = sum(slots_of(example) for example in examples_of(plan))
        cut = int(np.sum(store.sentence_lengths > slots - 3))
        assert (f"; {cut:,} sentences longer than {slots - 3} tokens are cut at word starts" in line) == (cut > 0)
        assert f"{1 - used / (plan.rows * slots):.1%} padding" in line and f"in {plan.rows:,} rows" in line


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="the train split of memory is empty; build"):
        make_plan(MemoryStore([]), np.ones(9, bool), SETTINGS[0])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((7, 1, 1, 0.15, 0.1), "sequence_length 7 must lie between 8 and 65,535"),
        ((65_536, 1, 10_000, 0.15, 0.1), "sequence_length 65536"),
        ((64, 0, 10, 0.15, 0.1), "examples_per_row 0"),
        ((64, 1, 9, 0.15, 0.1), "masking.slots 9 is less than the 10 .* pass --config.masking.slots=10, or more"),
        ((64, 1, 10, 1.0, 0.1), "masking.slots 10 is less than the 64"),
        ((64, 1, 10, 1.1, 0.1), "masking.rate must .* not 1.1"),
        ((64, 1, 4, 0.15, 0.1, 5), "masking.slots 4 is less than the 5 .* and masking.count 5"),
        ((64, 1, 10, 0.0, 0.1), "masking.rate must .* not 0.0"),
        ((64, 1, 10, 0.15, 1.5), "short_fraction must .* not 1.5"),
    ],
)
def test_settings_that_no_row_can_meet_are_refused_by_name(values: tuple[Any, ...], named: str) -> None:
    with pytest.raises(UserError, match=named):
        PlanSettings(*values)


# --- the cache --------------------------------------------------------------------------------------------------------

KEPT = PlanSettings(64, 8, 10, 0.15, 0.1)
STARTS = vocabulary_of("mixed").starts_word
ARRAYS = [f.name for f in dataclasses.fields(Plan) if f.name != "digest"]


def assert_equal(a: Plan, b: Plan) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert a.digest == b.digest


def kept_store(folder: pathlib.Path) -> MemoryStore:
    return MemoryStore(numbered(SHAPES["mixed"]), folder)


def test_a_kept_plan_is_read_and_not_computed_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = cached_plan(kept_store(tmp_path), STARTS, KEPT)
    monkeypatch.setattr(plans, "make_plan", lambda *_: pytest.fail("computed again"))
    assert_equal(cached_plan(kept_store(tmp_path), STARTS, KEPT), computed)


def test_other_settings_and_other_text_have_plans_of_their_own(tmp_path: pathlib.Path) -> None:
    variants = [KEPT]
    changes: list[dict[str, Any]] = [
        {"slots": 48},
        {"examples": 2},
        {"mask_slots": 20},
        {"mask_rate": 0.1},
        {"short_fraction": 1.0},
        {"mask_count": 2},
        {"pair_singles": True},
    ]
    variants += [dataclasses.replace(KEPT, **change) for change in changes]
    for text in (SHAPES["mixed"], mixed(9, records=40)):
        for settings in variants:
            store = MemoryStore(numbered(text), tmp_path)
            assert_equal(cached_plan(store, STARTS, settings), make_plan(store, STARTS, settings))
    assert len(list((tmp_path / "plans").iterdir())) == 16


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "digest"])
def test_a_damaged_plan_is_noticed_computed_anew_and_replaced(
    tmp_path: pathlib.Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = cached_plan(kept_store(tmp_path), STARTS, KEPT)
    (file,) = tmp_path.glob(f"plans/*/{name}")
    raw = file.read_bytes()
    # Some bytes of the header, whose parsing can fail in many ways, and some of the data.
    places = [*range(0, min(128, len(raw)), 5), len(raw) // 2, len(raw) - 1]
    damaged = [raw[:i] + bytes([raw[i] ^ 0x10]) + raw[i + 1 :] for i in places]
    for content in [*damaged, b"", raw[:-1], None]:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert_equal(cached_plan(kept_store(tmp_path), STARTS, KEPT), good)
        assert [r.getMessage() for r in caplog.records] == [
            f"the cached plan {file.parent} is damaged; it is computed anew."
        ]
        assert file.read_bytes() == raw


@pytest.mark.parametrize("name", ARRAYS)
def test_flipped_bytes_in_kept_arrays_never_reach_the_stream(tmp_path: pathlib.Path, name: str) -> None:
    good = cached_plan(kept_store(tmp_path), STARTS, KEPT)
    (file,) = tmp_path.glob(f"plans/*/{name}.npy")
    raw = file.read_bytes()
    for i in range(len(raw) - getattr(good, name).nbytes, len(raw), max(1, getattr(good, name).nbytes // 20)):
        file.write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
        assert_equal(cached_plan(kept_store(tmp_path), STARTS, KEPT), good)


def test_where_plans_cannot_be_kept_the_plan_is_computed_with_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):  # root writes anywhere
        (tmp_path / "plans").write_text("not a directory")
    with caplog.at_level(logging.WARNING):
        plan = cached_plan(kept_store(tmp_path), STARTS, KEPT)
    tmp_path.chmod(0o755)
    assert_equal(plan, make_plan(kept_store(tmp_path), STARTS, KEPT))
    (record,) = caplog.records
    assert "the plan cannot be kept in" in record.getMessage()


def test_nothing_but_the_plan_is_left_behind_when_it_is_kept(tmp_path: pathlib.Path) -> None:
    cached_plan(kept_store(tmp_path), STARTS, KEPT)
    (place,) = (tmp_path / "plans").iterdir()
    assert sorted(f.name for f in place.iterdir()) == sorted([*(f"{name}.npy" for name in ARRAYS), "digest"])
