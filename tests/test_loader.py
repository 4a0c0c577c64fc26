# SPDX-License-Identifier: Apache-2.0
"""The threads that prepare batches."""

import contextlib
import itertools
import threading
import types
from typing import Any

import pytest

from albert_jax.data import loader as loaders
from albert_jax.data.loader import Loader

PATIENCE = 30  # seconds after which a test that waits for a thread has failed


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def make(position: int) -> Any:
    """Stands in for a batch: a pure function of position."""
    return ("batch", position)


@pytest.mark.parametrize("ahead", [1, 2, 7])
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


def test_an_exception_in_a_thread_is_raised_after_the_batches_before_it_and_again_to_who_asks_again() -> None:
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
    assert not threads()


def test_as_many_batches_are_made_at_once_as_are_wanted_ahead() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)  # passed by three threads that wait for each other

    def make_with_others(position: int) -> Any:
        together.wait()
        return make(position)

    with contextlib.closing(Loader(make_with_others, range(6), ahead=3)) as loader:
        assert list(loader) == [(p, make(p)) for p in range(6)]


def test_a_batch_that_is_done_before_an_earlier_one_waits_for_its_turn() -> None:
    second_is_made = threading.Event()

    def make_the_first_last(position: int) -> Any:
        if position == 0:
            assert second_is_made.wait(PATIENCE)
        made = make(position)
        if position == 1:
            second_is_made.set()
        return made

    with contextlib.closing(Loader(make_the_first_last, range(5), ahead=3)) as loader:
        assert list(loader) == [(p, make(p)) for p in range(5)]


def test_no_more_batches_are_made_than_are_wanted_ahead_of_the_one_in_use() -> None:
    made: list[int] = []

    def make_and_count(position: int) -> Any:
        made.append(position)
        return make(position)

    with contextlib.closing(Loader(make_and_count, itertools.count(), ahead=3)) as loader:
        for used, _ in itertools.islice(loader, 10):
            assert max(made) <= used + 3


def test_close_ends_the_threads_with_the_batches_they_are_making_and_may_be_called_twice() -> None:
    busy, closing = threading.Event(), threading.Event()
    made: list[int] = []

    def make_while_closing(position: int) -> Any:
        busy.set()
        assert closing.wait(PATIENCE)
        made.append(position)
        return make(position)

    loader = Loader(make_while_closing, itertools.count(), ahead=2)
    assert busy.wait(PATIENCE)
    closer = threading.Thread(target=loader.close, daemon=True)  # so that a close that never ends fails the test
    closer.start()
    closing.set()
    closer.join(PATIENCE)
    loader.close()
    assert not threads() and set(made) <= {0, 1}


def test_close_ends_the_threads_after_some_batches_were_taken() -> None:
    loader = Loader(make, itertools.count(), ahead=3)
    next(iter(loader))
    loader.close()
    assert not threads()


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

    with contextlib.closing(Loader(make_when_asked, range(1), ahead=1)) as loader:
        assert loader.waited == 0.0
        assert next(iter(loader)) == (0, make(0))
        assert loader.waited == 5.0


def test_waited_does_not_grow_while_the_consumer_works_and_batches_are_ready(clock: Clock) -> None:
    ready = threading.Semaphore(0)

    def make_and_signal(position: int) -> Any:
        try:
            return make(position)
        finally:
            ready.release()

    with contextlib.closing(Loader(make_and_signal, range(3), ahead=3)) as loader:
        for _ in range(3):
            assert ready.acquire(timeout=PATIENCE)
        batches = iter(loader)
        for position in range(3):
            clock.now += 100.0  # a training step
            assert next(batches) == (position, make(position))
        assert loader.waited == 0.0
