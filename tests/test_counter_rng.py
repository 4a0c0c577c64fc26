# SPDX-License-Identifier: Apache-2.0
"""Random numbers from integer keys, compared with SplitMix64 in Python's own integers."""

import itertools

import numpy as np
import pytest

from albert_jax.data import counter_rng

WORD = 2**64


def slow_bits(*keys: int) -> int:
    state = 0
    for key in keys:
        state = ((state ^ (key % WORD)) + 0x9E3779B97F4A7C15) % WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % WORD
        state ^= state >> 31
    return state


def test_one_key_gives_the_published_first_output_of_splitmix64() -> None:
    # The reference program's first numbers for the seeds 0 and 1234567.
    assert int(counter_rng.bits(0)) == 0xE220A8397B1DCDAF
    assert int(counter_rng.bits(1234567)) == 6457827717110365317


@pytest.mark.parametrize("keys", [(0,), (1, 2), (2, 1), (2**63, 5), (WORD - 1, 0, 7), (10**12, 3, 0, 0)])
def test_bits_are_those_of_plain_integer_arithmetic_without_any_warning(keys: tuple[int, ...]) -> None:
    with np.errstate(all="raise"):
        assert int(counter_rng.bits(*keys)) == slow_bits(*keys)


def test_arrays_give_what_their_elements_give_in_every_broadcast_shape() -> None:
    a, b = np.arange(5), np.arange(3)[:, None]
    table = counter_rng.bits(9, a, b)
    assert table.shape == (3, 5) and table.dtype == np.uint64
    for i, j in itertools.product(range(3), range(5)):
        assert int(table[i, j]) == slow_bits(9, j, i)
    np.testing.assert_array_equal(counter_rng.bits(9, a.astype(np.int32), b.astype(np.uint8)), table)


def test_the_order_and_the_number_of_keys_matter() -> None:
    draws = {int(counter_rng.bits(*keys)) for n in range(1, 5) for keys in itertools.product(range(4), repeat=n)}
    assert len(draws) == 4 + 4**2 + 4**3 + 4**4


def test_uniform_and_below_follow_from_the_upper_53_bits_and_never_reach_their_limit() -> None:
    keys = np.arange(2000)
    for key, u, d in zip(keys, counter_rng.uniform(4, keys), counter_rng.below(7, 4, keys), strict=True):
        assert u == (slow_bits(4, int(key)) >> 11) / 2**53
        assert d == int(u * 7)
    largest = (2**53 - 1) / 2**53
    assert all(int(largest * limit) == limit - 1 for limit in [*range(1, 5000), 2**31 - 1, 2**31, 2**40 + 1])


@pytest.mark.parametrize("limit", [2, 7, 100])
def test_below_is_uniform(limit: int) -> None:
    n = 200_000
    counts = np.bincount(counter_rng.below(limit, 11, np.arange(n)), minlength=limit)
    assert len(counts) == limit
    chi_square = float(np.sum((counts - n / limit) ** 2 / (n / limit)))
    assert chi_square < limit - 1 + 4 * np.sqrt(2 * limit) + 8


def test_neighbouring_keys_are_not_correlated() -> None:
    n = 100_000
    for left, right in [((3, 0), (3, 1)), ((3, 0), (4, 0))]:
        a, b = (counter_rng.uniform(*keys, np.arange(n)) for keys in (left, right))
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)
    u = counter_rng.uniform(3, np.arange(n))
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(n)
