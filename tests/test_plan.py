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
]
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"S{s.slots}-P{s.examples}-M{s.mask_slots}")

Unit = tuple[int, int, int]  # record, begin, end


def vocabulary_of(shape: str, word: int = 3) -> Vocabulary:
    return made_up_vocabulary(5 + sum(map(sum, SHAPES[shape])), word)


def planned(shape: str, settings: PlanSettings) -> tuple[MemoryStore, Plan]:
    store = MemoryStore(numbered(SHAPES[shape]))
    return store, make_plan(store, vocabulary_of(shape).starts_word, settings)


def examples_of(plan: Plan) -> list[list[Unit]]:
    found = []
    for record, first, size in zip(plan.example_records, plan.example_units, plan.example_sizes, strict=True):
        units = range(int(first), int(first) + int(size))
        begins = [int(plan.unit_begins[u]) for u in units]
        found.append([(int(record), b, b + int(plan.unit_lengths[u])) for b, u in zip(begins, units, strict=True)])
    return found


def sentences_of(store: MemoryStore) -> list[Unit]:
    found = []
    for r, record in enumerate(store.records):
        begin = 0
        for sentence in record:
            found.append((r, begin, begin + len(sentence)))
            begin += len(sentence)
    return found


def slots_of(example: list[Unit]) -> int:
    return sum(end - begin for _, begin, end in example) + (2 if len(example) == 1 else 3)


def masks_of(slots: int, rate: float) -> int:
    return max(1, round(slots * rate))


@every_shape
@every_setting
def test_every_sentence_is_in_exactly_one_example_and_only_those_longer_than_an_example_are_cut(
    shape: str, settings: PlanSettings
) -> None:
    store, plan = planned(shape, settings)
    units = sorted(unit for example in examples_of(plan) for unit in example)
    cut: dict[Unit, list[Unit]] = {}
    for sentence in sentences_of(store):
        cut[sentence] = [u for u in units if u[0] == sentence[0] and sentence[1] <= u[1] < sentence[2]]
    assert sum(map(len, cut.values())) == len(units)
    for (record, begin, end), parts in cut.items():
        if end - begin <= settings.slots - 3:
            assert parts == [(record, begin, end)]
        assert parts[0][1] == begin and parts[-1][2] == end
        assert all(a[2] == b[1] for a, b in itertools.pairwise(parts))


@every_shape
@every_setting
def test_an_example_is_consecutive_sentences_of_one_record_that_fit_a_row(shape: str, settings: PlanSettings) -> None:
    _, plan = planned(shape, settings)
    for example in examples_of(plan):
        assert all(a[2] == b[1] for a, b in itertools.pairwise(example))
        assert slots_of(example) <= settings.slots
    assert (plan.example_records[1:] >= plan.example_records[:-1]).all()


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
    for record, begin, end in sentences_of(store):
        if end - begin <= budget:
            continue
        long += 1
        ids = [token for sentence in store.records[record] for token in sentence][begin:end]
        cuts = [0]
        while len(ids) - cuts[-1] > budget:
            cut = cuts[-1] + budget
            while cut > cuts[-1] and ids[cut] % word:
                cut -= 1
            cuts.append(cut if cut > cuts[-1] else cuts[-1] + budget)
        for a, b in zip(cuts, [*cuts[1:], len(ids)], strict=True):
            assert [(record, begin + a, begin + b)] in examples
    assert long


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
        sizes = [slots_of(examples[e]) for e in used]
        assert sum(sizes) <= settings.slots
        assert sum(masks_of(size, settings.mask_rate) for size in sizes) <= settings.mask_slots
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
                and sum(masks_of(n, settings.mask_rate) for n in [*row, length]) <= settings.mask_slots
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
        assert f"{1 - used / (plan.rows * slots):.1%} padding" in line and f"in {plan.rows:,} rows" in line


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="the train split of memory is empty; build"):
        make_plan(MemoryStore([]), np.ones(9, bool), SETTINGS[0])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((7, 1, 1, 0.15, 0.1), "sequence_length 7"),
        ((64, 0, 10, 0.15, 0.1), "examples_per_row 0"),
        ((64, 1, 9, 0.15, 0.1), "masking.slots 9 is less than the 10"),
        ((64, 1, 10, 1.0, 0.1), "masking.rate 1.0"),
        ((64, 1, 10, 0.0, 0.1), "masking.rate 0.0"),
        ((64, 1, 10, 0.15, 1.5), "short_fraction 1.5"),
    ],
)
def test_settings_that_no_row_can_meet_are_refused_by_name(
    values: tuple[int, int, int, float, float], named: str
) -> None:
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
    ]
    variants += [dataclasses.replace(KEPT, **change) for change in changes]
    for text in (SHAPES["mixed"], mixed(9, records=40)):
        for settings in variants:
            store = MemoryStore(numbered(text), tmp_path)
            assert_equal(cached_plan(store, STARTS, settings), make_plan(store, STARTS, settings))
    assert len(list((tmp_path / "plans").iterdir())) == 12


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
