# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT become a wish to stop, which the run grants after saving."""

import contextlib
import os
import shutil
import signal
import threading

import pytest

from albert_jax.training.interruption import EXIT_INTERRUPTED, SAVE, STOP, Interruption, Register
from tests.runs import Runs, arrays, records, release, wait_for

pytest_plugins = ["tests.runs"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_later_ones_change_nothing(number):
    with Interruption() as interruption:
        interruption.begin()
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested and interruption.name == number.name
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested and interruption.name == number.name


AHEAD = 2  # steps that a process starts before it has to wait for the others


class Member(threading.Thread):
    """The main thread of one process of a run: each of its steps ends when all processes have started it."""

    def __init__(self, interruption: Interruption, started: list[int], place: int, requests: dict[int, str]):
        super().__init__(daemon=True)
        self.interruption, self.started, self.place, self.requests = interruption, started, place, requests
        self.granted: list[tuple[int, list[str]]] = []

    def run(self) -> None:
        self.interruption.begin()
        for step in range(1, 10_000):
            while min(self.started) < step - AHEAD:
                os.sched_yield()
            if step in self.requests:
                self.interruption.request(self.requests[step])
            if granted := self.interruption.granted():
                self.granted.append((step, sorted(granted)))
                if STOP in granted:
                    return
            self.started[self.place] = step


def test_processes_are_granted_the_same_requests_before_the_same_step():
    """Three processes ask to save, several at once, and two of them to stop; none waits for steps that never start."""
    register, started = Register(), [0, 0, 0]
    requests = [{5: SAVE, 40: SAVE, 300: SAVE}, {40: SAVE, 500: STOP}, {6: SAVE, 200: SAVE, 500: STOP}]
    with contextlib.ExitStack() as stack:
        members = []
        for place in range(3):
            interruption = stack.enter_context(Interruption())
            interruption.share(register, place, 3)
            members.append(Member(interruption, started, place, requests[place]))
        for member in members:
            member.start()
        for member in members:
            member.join(60)
            assert not member.is_alive()
    assert members[0].granted == members[1].granted == members[2].granted
    *saves, (stopped, last) = members[0].granted
    assert STOP in last and all(what == [SAVE] for _, what in saves) and 2 <= len(saves) <= 5
    assert started == [stopped - 1] * 3


def test_a_run_of_one_process_is_granted_what_was_requested_before_its_next_step():
    with Interruption() as interruption:
        interruption.begin()
        assert not interruption.granted()
        interruption.request(SAVE)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.granted() == {SAVE, STOP} and not interruption.granted()


def test_the_handlers_of_before_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_exit_status_is_that_of_a_temporary_failure():
    assert EXIT_INTERRUPTED == os.EX_TEMPFAIL


def test_a_sigint_breaks_off_an_evaluation_and_the_resumed_run_makes_up_for_it(runs: Runs, straight, tmp_path):
    """Stopped at step 5, which an evaluation and no save belongs to: it is evaluated once, after the resumption."""
    workdir = tmp_path / "w"
    process = runs.start(runs.arguments(workdir), hold="step:4")
    wait_for(process, "held step:4")
    process.send_signal(signal.SIGINT)
    release(process)
    interrupted = runs.finish(process)
    assert interrupted.status == EXIT_INTERRUPTED
    assert "interrupted by SIGINT: step 5 is saved" in interrupted.out and "step 5: eval" not in interrupted.out
    resumed = runs.train(runs.arguments(workdir))
    assert resumed.status == 0 and "step 5: eval" in resumed.out
    assert records(workdir) == records(straight)
    assert {n: a.tobytes() for n, a in arrays(workdir).items()} == {n: a.tobytes() for n, a in arrays(straight).items()}


def test_a_signal_while_the_run_prepares_ends_it_at_once_and_the_same_command_starts_again(runs, straight, tmp_path):
    """The process is held in the main thread, as by a compilation, and is never released."""
    workdir = tmp_path / "w"
    process = runs.start(runs.arguments(workdir), hold="prepare:0")
    wait_for(process, "held prepare:0")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == EXIT_INTERRUPTED
    out, err = process.communicate()
    assert "interrupted by SIGTERM during 'compile': nothing new to save" in out and not err
    resumed = runs.train(runs.arguments(workdir))
    assert resumed.status == 0 and records(workdir) == records(straight)


def test_a_signal_after_the_last_step_lets_the_run_finish(runs: Runs, straight, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(straight, workdir, ignore=shutil.ignore_patterns("12"))
    process = runs.start(runs.arguments(workdir), hold="save:12")
    wait_for(process, "held save:12")
    process.send_signal(signal.SIGTERM)
    release(process)
    finished = runs.finish(process)
    assert finished.status == 0 and "finished: step 12" in finished.out
    assert records(workdir) == records(straight)
