# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT become a wish to stop, which the run grants after saving."""

import os
import shutil
import signal

import pytest

from albert_jax.training.interruption import EXIT_INTERRUPTED, Interruption
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
