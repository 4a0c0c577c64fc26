# SPDX-License-Identifier: Apache-2.0
"""Mixtures: how often each row of each source is used, and that the position alone decides."""

import itertools
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from albert_jax.data.masking import MaskRule
from albert_jax.data.mixture import Mixture, source_weights
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.stream import PretrainingStream
from albert_jax.errors import UserError
from tests.text_store import MemoryStore, made_up_vocabulary, numbered, read_batch


def mixture(rows: list[int], weights: list[str], *, seed: int = 3, shuffle: bool = True) -> Mixture:
    names = {chr(97 + i): Fraction(weight) for i, weight in enumerate(weights)}
    return Mixture(np.cumsum([0, *rows]), names, seed=seed, shuffle=shuffle)


MIXTURES = [
    ([5], ["1"]),
    ([7, 4], ["1", "1"]),
    ([7, 4], ["2", "1"]),
    ([7, 4, 30], ["2.5", "0.5", "1"]),
    ([10, 3], ["0.333", "7.125"]),
    ([1], ["0.25"]),
    ([6, 9], ["0", "1.5"]),
    ([11, 5], ["1/3", "2/7"]),
]
every_mixture = pytest.mark.parametrize(("rows", "weights"), MIXTURES)


@every_mixture
def test_each_row_of_a_source_is_used_as_often_as_its_weight_says_to_within_once_at_any_epoch(
    rows: list[int], weights: list[str]
) -> None:
    m = mixture(rows, weights)
    uses: Counter[int] = Counter()
    position = 0
    source = np.repeat(np.arange(len(rows)), rows)
    for epoch in range(25):
        begin = m._begin(epoch)
        assert begin == position
        here, _ = m.at(begin, m._begin(epoch + 1) - begin)
        uses.update(here.tolist())
        position += len(here)
        for row, s in enumerate(source.tolist()):
            assert abs(uses[row] - (epoch + 1) * Fraction(weights[s])) < 1
        for s, count in enumerate(rows):
            total = sum(n for row, n in uses.items() if source[row] == s)
            assert total == int(count * (epoch + 1) * Fraction(weights[s]) + Fraction(1, 2))


@every_mixture
def test_a_visit_is_how_often_the_row_stood_before(rows: list[int], weights: list[str]) -> None:
    m = mixture(rows, weights)
    seen: Counter[int] = Counter()
    for epoch in range(9):
        here, visits = m.at(m._begin(epoch), m._begin(epoch + 1) - m._begin(epoch))
        found: dict[int, list[int]] = {}
        for row, visit in zip(here.tolist(), visits.tolist(), strict=True):
            found.setdefault(row, []).append(visit)
        for row, numbers in found.items():
            assert sorted(numbers) == list(range(seen[row], seen[row] + len(numbers)))
            seen[row] += len(numbers)


@every_mixture
def test_any_stretch_is_what_single_positions_are(rows: list[int], weights: list[str]) -> None:
    m = mixture(rows, weights)
    whole = m.at(3, 120)
    single = [mixture(rows, weights).at(n, 1) for n in range(3, 123)]
    np.testing.assert_array_equal(whole[0], np.concatenate([row for row, _ in single]))
    np.testing.assert_array_equal(whole[1], np.concatenate([visit for _, visit in single]))
    assert [len(array) for array in m.at(5, 0)] == [0, 0]


def test_with_all_weights_one_an_epoch_is_every_row_once_and_its_number_is_the_visit() -> None:
    m = mixture([20, 30], ["1", "1"])
    for epoch in (0, 1, 7, 10**9):
        rows, visits = m.at(50 * epoch, 50)
        assert sorted(rows.tolist()) == list(range(50)) and set(visits.tolist()) == {epoch}
    assert m.rows == 50 and m.epoch(125) == 2.5
    assert not np.array_equal(m.at(0, 50)[0], m.at(50, 50)[0])
    np.testing.assert_array_equal(mixture([20, 30], ["1", "1"], shuffle=False).at(50, 50)[0], np.arange(50))


def test_which_rows_come_first_is_random_and_the_sources_are_mixed_within_an_epoch() -> None:
    m = mixture([1000, 1000], ["0.5", "1"])
    first = m.at(0, m._begin(1))[0]
    half = np.sort(first[first < 1000])
    assert len(half) == 500 and 400 < half.mean() < 600 and 200 < np.sum(np.diff(half) == 1) < 300
    assert 0.28 < np.mean(first[:500] < 1000) < 0.38
    other = mixture([1000, 1000], ["0.5", "1"], seed=4)
    assert not np.array_equal(half, np.sort(other.at(0, 1500)[0][other.at(0, 1500)[0] < 1000]))


def test_epochs_of_the_sources_are_the_weights_times_the_epoch() -> None:
    m = mixture([400, 1000], ["2.5", "0.5"])
    for position in (0, 1, 700, 1500, 4321):
        found = m.source_epochs(position)
        assert found["a"] == pytest.approx(2.5 * m.epoch(position), abs=0.002)
        assert found["b"] == pytest.approx(0.5 * m.epoch(position), abs=0.002)
    assert m.rows == 1500 and m.epoch(1500) == 1.0


def test_a_late_position_costs_what_an_early_one_does() -> None:
    def calls(position: int) -> int:
        m, count = mixture([200_000, 50_000], ["1.25", "3.5"]), itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            m.at(position, 1000)
        finally:
            sys.setprofile(None)
        return next(count)

    assert calls(10**6 * 4096) < 2 * calls(0)


# --- in the stream ----------------------------------------------------------------------------------------------------


def test_a_row_that_an_epoch_has_twice_is_split_and_masked_anew() -> None:
    lengths = [[3, 5, 2, 7, 4, 3]] * 12
    store = MemoryStore(numbered(lengths), sources={"a": (4, 3.0), "b": (8, 0.5)})
    vocabulary = made_up_vocabulary(9999)
    settings = PlanSettings(40, 1, 6, 0.15, 0.0)
    plan = make_plan(store, vocabulary.starts_word, settings)
    weights = source_weights("", store.weights)
    stream = PretrainingStream(store, plan, settings, MaskRule.paper(vocabulary), seed=1, weights=weights)
    assert stream.rows == 16 and stream.digest != plan.digest
    drawn: dict[int, list[object]] = {}
    for row in read_batch(stream.batch(0, 32)):
        drawn.setdefault(min(row[0].text), []).append(row[0])
    counts = sorted(map(len, drawn.values()))
    assert counts == [1] * 8 + [6] * 4
    assert sum(len(set(map(repr, examples))) for examples in drawn.values()) >= 31


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_given_in_training_override_those_of_the_data_set() -> None:
    given = {"wiki": 1.0, "books": 2.5, "code": 0.1}
    assert source_weights("", given) == {"wiki": 1, "books": Fraction(5, 2), "code": Fraction(1, 10)}
    found = source_weights("books=1, wiki=0.333", given)
    assert found == {"wiki": Fraction(333, 1000), "books": 1, "code": Fraction(1, 10)}
    assert list(found) == list(given)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("boks=2", "names the source 'boks'; the data set has wiki, books"),
        ("wiki", "has 'wiki' where NAME=WEIGHT is needed"),
        ("wiki=many", "the weight 'many' of the source wiki is not a number"),
        ("wiki=nan", "the weight 'nan' of the source wiki is not a number"),
        ("wiki=1/0", "the weight '1/0' of the source wiki is not a number"),
        ("wiki=-1", "the weight -1 of the source wiki must lie between 0 and 1000"),
        ("wiki=1001", "the weight 1001 of the source wiki must lie between"),
        ("wiki=0.33333", "the weight 0.33333 of the source wiki .* at most three decimals"),
        ("wiki=0,books=0", r"all sources \(wiki, books\) have weight 0"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        source_weights(text, {"wiki": 1.0, "books": 1.0})
