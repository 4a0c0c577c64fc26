# SPDX-License-Identifier: Apache-2.0
"""A run that stands still says where."""

import subprocess
import sys
import threading

import pytest

from albert_jax.training.watchdog import EXIT_STUCK, Watchdog
from tests.runs import ROOT

PROGRAM = """
import sys
from albert_jax.training.watchdog import Watchdog

def waiting_for_a_peer():
    sys.stdin.readline()  # of which none comes

with Watchdog(0.2, leave=True, doing=lambda: "step"):
    waiting_for_a_peer()
"""


def test_a_standstill_prints_the_stack_of_every_thread_and_ends_the_process_if_asked_to():
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait() == EXIT_STUCK == 76
    assert "warning: no step for 0.2 s, during 'step'; it ends. Where every thread stands:" in err
    assert "waiting_for_a_peer" in err and err.count("no step for") == 1


def test_without_being_asked_it_tells_once_and_waits(capfd):
    told = threading.Event()

    def doing() -> str:
        told.set()
        return "evaluate"

    with Watchdog(0.05, leave=False, doing=doing):
        assert told.wait(30)
    err = capfd.readouterr().err
    assert err.count("during 'evaluate'; it goes on waiting") == 1 and "test_watchdog.py" in err


@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_run_that_moves_or_a_watchdog_that_is_off_says_nothing(capfd, seconds):
    with Watchdog(seconds, leave=True, doing=lambda: "step") as watchdog:
        for _ in range(1000):
            watchdog.moved()
    assert capfd.readouterr().err == ""
