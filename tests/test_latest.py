# SPDX-License-Identifier: Apache-2.0
"""What several threads compute once."""

import threading

import pytest

from albert_jax.data.latest import Latest


def test_the_two_latest_values_are_kept() -> None:
    asked: list[tuple[int, int]] = []

    def multiply(a: int, b: int) -> int:
        asked.append((a, b))
        return a * b

    latest = Latest(multiply)
    assert [latest(2, b) for b in (3, 4, 3, 4, 5, 4, 3)] == [6, 8, 6, 8, 10, 8, 6]
    assert asked == [(2, 3), (2, 4), (2, 5), (2, 3)]


def test_threads_that_ask_at_once_are_answered_by_one_computation() -> None:
    asked, values, together = [], [], threading.Barrier(5, timeout=30)

    def compute(key: int) -> object:
        asked.append(key)
        return object()

    def ask() -> None:
        together.wait()
        values.append(latest(7))

    latest = Latest(compute)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    together.wait()
    for thread in threads:
        thread.join()
    assert asked == [7] and len(values) == 4 and len(set(map(id, values))) == 1


def test_what_failed_is_tried_again() -> None:
    tries = iter([1, 2])

    def compute(key: int) -> int:
        if next(tries) == 1:
            raise OSError("the store is away")
        return 3

    latest = Latest(compute)
    with pytest.raises(OSError, match="the store is away"):
        latest(1)
    assert latest(1) == 3
