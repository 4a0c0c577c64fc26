# SPDX-License-Identifier: Apache-2.0
"""The thread that prepares batches."""

import itertools
import threading
import types
from typing import Any

import pytest

from albert_jax.data import loader as loaders
from albert_jax.data.loader import Loader

PATIENCE = 30  # seconds after which a test that waits for a thread has failed


def make(position: int) -> Any:
    """Stands in for a batch: a pure function of position."""
    return ("batch", position)


@pytest.mark.parametrize("ahead", [0, 1, 2, 7])
@pytest.mark.parametrize(("start", "stride"), [(0, 1), (5, 3), (10**12, 256)])
def test_any_depth_yields_the_same_batches_in_the_order_of_their_positions(ahead: int, start: int, stride: int) -> None:
    loader = Loader(make, itertools.count(start, stride), ahead=ahead)
    found = list(itertools.islice(loader, 20))
    loader.close()
    assert found == [(p, make(p)) for p in range(start, start + 20 * stride, stride)]


def test_the_iteration_ends_with_what_was_wanted() -> None:
    loader = Loader(make, range(3), ahead=2)
    assert list(loader) == [(p, make(p)) for p in range(3)] and list(loader) == []
    loader.close()


def test_an_exception_of_the_thread_is_raised_after_the_batches_before_it_and_again_to_who_asks_again() -> None:
    def fail_at_two(position: int) -> Any:
        if position == 2:
            raise KeyError("the third batch")
        return make(position)

    loader = Loader(fail_at_two, itertools.count(), ahead=5)
    found = []
    with pytest.raises(KeyError, match="the third batch"):
        for item in loader:
            found.append(item)
    assert found == [(0, make(0)), (1, make(1))]
    with pytest.raises(KeyError, match="the third batch"):
        next(iter(loader))
    loader.close()
    assert not loader._thread.is_alive()


def test_close_ends_the_thread_while_the_queue_is_full() -> None:
    second = threading.Event()

    def signal_second(position: int) -> Any:
        if position == 1:  # the first stands in the queue
            second.set()
        return make(position)

    loader = Loader(signal_second, itertools.count(), ahead=1)
    assert second.wait(PATIENCE) and loader._queue.full()
    closing = threading.Thread(target=loader.close, daemon=True)  # so that a close that never ends fails the test
    closing.start()
    closing.join(PATIENCE)
    assert not loader._thread.is_alive()


def test_close_ends_the_thread_after_some_batches_were_taken_and_may_be_called_twice() -> None:
    loader = Loader(make, itertools.count(), ahead=3)
    next(iter(loader))
    loader.close()
    loader.close()
    assert not loader._thread.is_alive()


class Clock:
    """A clock that stands still unless a test moves it, in place of `time` in the loader's module."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = threading.Event()

    def perf_counter(self) -> float:
        now = self.now
        self.asked.set()
        return now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loaders, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_waited_is_the_time_between_asking_for_a_batch_and_having_it(clock: Clock) -> None:
    def make_when_asked(position: int) -> Any:
        assert clock.asked.wait(PATIENCE)  # the consumer has begun to wait
        clock.asked.clear()
        clock.now += 5.0
        return make(position)

    loader = Loader(make_when_asked, itertools.count(), ahead=1)
    assert loader.waited == 0.0
    assert next(iter(loader)) == (0, make(0))
    assert loader.waited == 5.0
    clock.asked.set()
    loader.close()


def test_waited_does_not_grow_while_the_consumer_works_and_batches_are_ready(clock: Clock) -> None:
    ready = threading.Event()

    def make_and_signal(position: int) -> Any:
        if position == 3:  # three batches stand in the queue when the fourth is made
            ready.set()
        return make(position)

    loader = Loader(make_and_signal, itertools.count(), ahead=3)
    assert ready.wait(PATIENCE)
    batches = iter(loader)
    for position in range(3):
        clock.now += 100.0  # a training step
        assert next(batches) == (position, make(position))
    assert loader.waited == 0.0
    loader.close()
