# SPDX-License-Identifier: Apache-2.0
"""Real signals to real training processes, at random moments of every phase: what is left ends as an undisturbed run.

The default suite has a few kills. All of them, with a table of each on the screen, take from 10 minutes on:

    .venv/bin/python -m pytest tests/test_preemption.py -m slow -s

PREEMPTION_SEED draws other moments.
"""

import collections
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from albert_jax.training.digests import digests
from albert_jax.training.interruption import EXIT_INTERRUPTED
from albert_jax.training.restoring import load_parameters
from albert_jax.training.watchdog import EXIT_STUCK
from albert_jax.training.writer import META
from scripts.launch import free_port
from tests.preempted import PACE, Child, Launched, Server, State, follow
from tests.runs import ROOT, STEPS, TINY, Runs, arrays, records

pytest_plugins = ["tests.runs"]

SEED = int(os.environ.get("PREEMPTION_SEED", "1"))
PHASES = ("data", "restore", "compile", "step", "evaluate", "save", "retention")
PREPARING = PHASES[:3]
AT_LEAST = 5  # kills in each phase
KILLS, MOST_STARTS = 64, 120
REACTION = 3.0  # seconds from a signal to the end while a run prepares: one is promised, on cores that are free
# Two lengths of rows, so that a run compiles twice; enough steps for about twenty kills.
LONG = {"steps": 100, "data.phases": "24:50"}
# The second of two processes finds no compiled programs on the disk, as JAX has the first alone write them; dropout
# takes most of the compilation, and tests/test_processes.py has it.
PAIR = {"model.hidden_dropout_prob": 0.0, "model.attention_probs_dropout_prob": 0.0}
OCCURRENCES = {"step": 9, "evaluate": 2, "save": 2, "retention": 2}  # of a phase in a process, one of which is hit
PLACES = {"data": 20, "restore": 20, "step": 4, "evaluate": 4, "save": 16, "retention": 30}  # in a phase, about
SIGNALS = {
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGTERM x 2": (signal.SIGTERM, signal.SIGTERM),
    "SIGTERM, SIGINT": (signal.SIGTERM, signal.SIGINT),
    "SIGKILL": (signal.SIGKILL,),
}
SOFT = tuple(name for name in SIGNALS if name != "SIGKILL")
SURVIVAL = 180.0  # seconds in which a process whose peer was killed has ended; JAX's own heartbeat takes 100


class Kill(NamedTuple):
    """What became of a process that was sent signals."""

    process: str
    signals: str
    phase: str
    step: int
    status: int
    seconds: float

    def __str__(self) -> str:
        what = f"{self.process:<10} {self.signals:<16} {self.phase:<10} {self.step:>4}"
        return f"{what} {self.status:>7} {self.seconds:>8.2f}"


# --- moments ----------------------------------------------------------------------------------------------------------


def begins(child: Child, phase: str) -> int:
    """How often a process has come to a phase."""
    return sum(line.startswith((f"={phase} ", f"+{phase} ")) for _, line in child.lines)


def pass_some_of(child: Child, phase: str, moments: random.Random, seconds: float = 0.0) -> None:
    """Lets a process that is in a phase go on to a moment of it: of so many seconds, or of places where it slows."""

    def is_over() -> bool:
        return child.state().phase != phase

    if seconds:
        follow([child], is_over, moments.uniform(0, seconds))
        return
    places = sum(line == "at" for _, line in child.lines) + moments.randrange(PLACES[phase])
    follow([child], lambda: is_over() or sum(line == "at" for _, line in child.lines) > places)
    follow([child], is_over, moments.uniform(0, PACE))


def send(
    child: Child, signals: str, phase: str, moments: random.Random, *, occurrence: int = 1, compiling: float = 0.0
) -> Kill:
    """Sends signals, the first in a phase, the second during the final save, and waits for the end.

    Args:
      child: the process.
      signals: one of `SIGNALS`.
      phase: where the first is to come; it may be over before, and what has been met is in the result.
      moments: draws them.
      occurrence: of the phase in this process.
      compiling: seconds that a compilation takes.
    """
    if follow([child], lambda: begins(child, phase) >= occurrence and child.state().phase == phase):
        pass_some_of(child, phase, moments, compiling if phase == "compile" else 0.0)
    first, *others = SIGNALS[signals]
    child.signal(first)
    for number in others:
        if follow([child], lambda: child.has("signal") and child.state().phase == "save"):
            pass_some_of(child, "save", moments)
            child.signal(number)
    follow([child])
    assert child.status is not None, f"{signals} during {phase} was not answered: {child.out}\n{child.err}"
    met: State = child.state(until="" if first == signal.SIGKILL else "signal")
    return Kill("forked", signals, met.phase, met.step, child.status, child.seconds)


def kill_plain(runs: Runs, arguments: list[str], number: signal.Signals, moments: random.Random) -> Kill | None:
    """Kills a plain `python train.py` some time after its first words; what it met, only its last words can tell.

    None where it was quicker.
    """
    process, begun = runs.start(arguments), 0.0
    assert process.stdout is not None
    for _ in range(moments.randint(1, 3)):
        process.stdout.readline()
    try:
        process.wait(moments.uniform(0, 8))
    except subprocess.TimeoutExpired:
        begun = time.monotonic()
        process.send_signal(number)
    out, err = process.communicate()
    seconds = time.monotonic() - begun
    assert not err and process.returncode in (EXIT_INTERRUPTED, -number, 0)
    if not begun or not process.returncode:
        return None
    found = re.search(r"interrupted by SIGTERM(?: during '(\w+)'|: step (\d+) is saved)", out)
    phase, step = (found[1] or "training", int(found[2] or 0)) if found else ("unknown", 0)
    return Kill("plain", signal.Signals(number).name, phase, step, process.returncode, seconds)


# --- what has to hold -------------------------------------------------------------------------------------------------


def listed(workdir: pathlib.Path) -> list[str]:
    directory = workdir / "checkpoints"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def whole_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of a workdir, each of which must be as it was saved."""
    steps = sorted(int(name) for name in listed(workdir) if name.isdigit())
    for step in steps:
        load_parameters(workdir, step)  # compares the digests of the parameters
        meta = json.loads((workdir / "checkpoints" / str(step) / META).read_text())
        expected = sorted(itertools.chain(*(item.values() for item in meta["digests"].values())))
        assert sorted(digests(jax.tree.map(jnp.asarray, arrays(workdir, step))).values()) == expected
    return steps


def assert_status_fits(kill: Kill, out: str) -> None:
    """75 for those that may save, and they have, unless the run was finished or only prepared; else at once."""
    done, last_words = kill.status == 0 and "finished: step" in out, out.splitlines()[-3:]
    if kill.signals == "SIGKILL":
        assert kill.status == -signal.SIGKILL or done, (kill, last_words)
        return
    assert kill.status == EXIT_INTERRUPTED or done, (kill, last_words)
    if kill.phase in PREPARING:
        assert any(f"during '{kill.phase}': nothing new to save" in line for line in last_words), (kill, last_words)
        assert kill.seconds < REACTION, (kill, "answered too late")
    else:
        assert done or any("is saved in" in line for line in last_words), (kill, last_words)


def assert_left_as_it_said(workdir: pathlib.Path, out: str) -> None:
    """Where a run has saved, nothing is half done, and the newest checkpoint is the one that was told."""
    if saved := re.search(r"interrupted by [\w ]+: step (\d+) is saved", out):
        names = listed(workdir)
        assert all(name.isdigit() for name in names), names
        assert max(map(int, names)) == int(saved[1])


def assert_same_run(expected: pathlib.Path, workdir: pathlib.Path, steps: int) -> None:
    """Parameters, optimizer, guard and records bit for bit; the checkpoints whole, and nothing but them."""
    a, b = arrays(expected, steps), arrays(workdir, steps)
    assert a.keys() == b.keys() and any("guard" in name for name in a) and any("nu" in name for name in a)
    assert not [name for name in a if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()]
    assert records(expected) == records(workdir)
    kept = whole_steps(workdir)
    assert listed(workdir) == sorted(map(str, kept)), "something was left over"
    assert len(kept) == TINY["checkpoint.keep"] and kept[-1] == steps
    assert not [path for path in workdir.iterdir() if path.name == ".lock" or path.name.endswith(".partial")]


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Orbax warns of each part of a checkpoint that is read by itself."""
    caplog.set_level("ERROR", logger="absl")


@pytest.fixture(scope="module")
def server(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(runs, tmp_path_factory.mktemp("server"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def straight_pair(server: Server, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of an undisturbed run in two processes."""
    workdir = tmp_path_factory.mktemp("pair") / "w"
    processes = start_pair(server, runs.arguments(workdir, PAIR))
    follow(processes)
    assert [process.status for process in processes] == [0, 0], [process.err for process in processes]
    return workdir


def start_pair(server: Server, arguments: list[str], **options: Any) -> list[Child]:
    """Starts a run in two processes."""
    together = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
    return [server.start([*arguments, *together, f"--process={i}"], **options) for i in range(2)]


# --- one process ------------------------------------------------------------------------------------------------------


def test_killed_in_every_phase_by_either_signal_a_run_ends_as_an_undisturbed_one(server, runs, straight, tmp_path):
    """Six kills; the long test below has the others."""
    moments, workdir = random.Random(SEED), tmp_path / "w"
    plan = (
        *(("data", "SIGTERM"), ("step", "SIGTERM x 2"), ("restore", "SIGKILL")),
        *(("evaluate", "SIGINT"), ("save", "SIGKILL"), ("retention", "SIGKILL")),
    )
    for phase, signals in plan:
        slow = f"{phase},save" if "x" in signals else phase
        child = server.start(runs.arguments(workdir), slow=slow, seed=SEED)
        kill = send(child, signals, phase, moments)
        print(kill)
        assert_status_fits(kill, child.out)
        whole_steps(workdir)
    last = server.start(runs.arguments(workdir))
    follow([last])
    assert last.status == 0, last.err
    assert_same_run(straight, workdir, STEPS)


def test_a_signal_in_the_midst_of_a_compilation_ends_the_run_within_a_moment(server, runs, tmp_path):
    """XLA is at work, called by a main thread that Python cannot interrupt."""
    child = server.start(runs.arguments(tmp_path / "w"), compile_anew=True)
    assert follow([child], lambda: child.state().phase == "compile")
    follow([child], lambda: child.state().phase != "compile", random.Random(SEED).uniform(0.5, 3.0))
    child.signal(signal.SIGTERM)
    follow([child])
    assert child.status == EXIT_INTERRUPTED and "interrupted by SIGTERM during 'compile'" in child.out
    assert child.seconds < REACTION


def test_nothing_is_compiled_once_a_run_trains(server: Server, runs: Runs, tmp_path: pathlib.Path) -> None:
    """There a signal could not be answered before the compilation is over, as steps wait to be saved."""
    child = server.start(runs.arguments(tmp_path / "w"))
    follow([child])
    compiled = collections.Counter(line for _, line in child.lines if line.startswith("compiled "))
    assert child.status == 0 and compiled["compiled compile"]
    assert compiled.keys() <= {f"compiled {phase}" for phase in ("start", *PREPARING)}


def test_a_signal_while_modules_are_imported_ends_the_run_at_once(runs: Runs, tmp_path: pathlib.Path) -> None:
    """Python tells of each import on standard error; JAX's takes seconds."""
    arguments = runs.arguments(tmp_path / "w")
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "train.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stderr:
        if re.search(r"\bjax\._src\.", line):
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED and "during 'start': nothing new to save" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_finished_run_leaves_does_not_change_its_status(server, runs, straight, tmp_path, number):
    workdir = shutil.copytree(straight, tmp_path / "w")
    child = server.start(runs.arguments(workdir), slow="exit")
    assert follow([child], lambda: child.state().phase == "exit")
    child.signal(number)
    follow([child])
    assert child.status == 0, child.err


class Campaign:
    """Kills runs, one after the other, until each phase has met each kind of signal often enough.

    Args:
      server, runs: start the processes.
      place: for the workdirs.
    """

    def __init__(self, server: Server, runs: Runs, place: pathlib.Path):
        self._server, self._runs, self._place = server, runs, place
        self._moments = random.Random(SEED)
        self.kills: list[Kill] = []
        self.counts = collections.Counter[tuple[str, str]]()
        self._workdirs = 0
        self.straight, self._compiling = self._train_undisturbed()
        self.workdir = self._next_workdir()

    def _next_workdir(self) -> pathlib.Path:
        self._workdirs += 1
        return self._place / f"w{self._workdirs}"

    def _train_undisturbed(self) -> tuple[pathlib.Path, float]:
        """The workdir to compare with, and how long its first compilation took."""
        workdir = self._place / "straight"
        child = self._server.start(self._runs.arguments(workdir, LONG), compile_anew=True)
        follow([child], seconds=600)
        assert child.status == 0, child.err
        begun, ended = (next(at for at, line in child.lines if line.startswith(f"={p}")) for p in ("compile", "step"))
        return workdir, ended - begun

    def _choose(self) -> tuple[str, str]:
        """What has been met least; a restore needs something to restore."""
        phases = [phase for phase in PHASES if phase != "restore" or listed(self.workdir)]
        fewest = min(self.counts[phase, hard] for phase in phases for hard in ("soft", "hard"))
        pairs = [(p, hard) for p in phases for hard in ("soft", "hard") if self.counts[p, hard] == fewest]
        phase, hard = self._moments.choice(pairs)
        if hard == "hard":
            return phase, "SIGKILL"
        return phase, self._moments.choice(SOFT[:2] if phase in PREPARING else SOFT)

    def kill_one(self) -> None:
        """Starts the run, kills it, and looks at what it leaves."""
        arguments = self._runs.arguments(self.workdir, LONG)
        if self._server.started % 16 == 0:
            number = self._moments.choice((signal.SIGTERM, signal.SIGKILL))
            self._server.started += 1
            if kill := kill_plain(self._runs, arguments, number, self._moments):
                self._note(kill)
            return
        phase, signals = self._choose()
        slow = f"{phase},save" if len(SIGNALS[signals]) > 1 else phase
        seed, anew = self._moments.randrange(1 << 30), phase == "compile"
        child = self._server.start(arguments, slow=slow, seed=seed, compile_anew=anew)
        occurrence = self._moments.randint(1, OCCURRENCES.get(phase, 1))
        kill = send(child, signals, phase, self._moments, occurrence=occurrence, compiling=self._compiling)
        assert_status_fits(kill, child.out)
        assert_left_as_it_said(self.workdir, child.out)
        assert not child.err, child.err
        if child.signalled_at:
            self._note(kill)
        if kill.status == 0:
            self.end_run()

    def _note(self, kill: Kill) -> None:
        steps = whole_steps(self.workdir)
        kill = kill if kill.step else kill._replace(step=max(steps, default=0))  # it has not told yet where it goes on
        self.kills.append(kill)
        self.counts[kill.phase, "hard" if kill.signals == "SIGKILL" else "soft"] += 1
        print(f"{len(self.kills):>3} {kill}", flush=True)

    def end_run(self) -> None:
        """Lets the run finish, compares it with the undisturbed one, and begins another."""
        child = self._server.start(self._runs.arguments(self.workdir, LONG))
        follow([child])
        assert child.status == 0, child.err
        assert_same_run(self.straight, self.workdir, LONG["steps"])  # type: ignore[arg-type]
        print(f"    {self.workdir.name} has ended as the undisturbed run", flush=True)
        self.workdir = self._next_workdir()

    def is_complete(self) -> bool:
        """Whether there were enough kills in all, and of each phase."""
        phases = (self.counts[phase, "soft"] + self.counts[phase, "hard"] for phase in PHASES)
        return len(self.kills) >= KILLS and min(phases) >= AT_LEAST

    def table(self) -> str:
        """Kills by phase, and how long soft ones took."""
        lines = [
            f"seed {SEED}: {len(self.kills)} kills",
            f"{'phase':<10} {'hard':>5} {'soft':>5}  seconds until the end",
        ]
        for phase in sorted({kill.phase for kill in self.kills}, key=lambda p: (*PHASES, p).index(p)):
            soft = [k.seconds for k in self.kills if k.phase == phase and k.signals != "SIGKILL"]
            times = " ".join(f"{seconds:.2f}" for seconds in sorted(soft))
            lines.append(f"{phase:<10} {self.counts[phase, 'hard']:>5} {self.counts[phase, 'soft']:>5}  {times}")
        return "\n".join([*lines, f"statuses {dict(collections.Counter(k.status for k in self.kills))}"])


@pytest.mark.slow
def test_sixty_kills_at_random_moments_of_all_phases_leave_no_trace_in_the_result(server, runs, tmp_path, capsys):
    with capsys.disabled():
        campaign = Campaign(server, runs, tmp_path)
        print(f"\n{'#':>3} {'process':<10} {'signals':<16} {'phase':<10} {'step':>4} {'status':>7} {'seconds':>8}")
        while not campaign.is_complete() and len(campaign.kills) < MOST_STARTS:
            campaign.kill_one()
        print(campaign.table(), flush=True)
        campaign.end_run()
    assert campaign.is_complete()


# --- two processes ----------------------------------------------------------------------------------------------------


def test_of_two_processes_one_is_told_to_stop_and_both_save_the_same_step(server, runs, straight_pair, tmp_path):
    workdir, moments = tmp_path / "w", random.Random(SEED)
    asked = start_pair(server, runs.arguments(workdir, PAIR))
    kill_of_pair(asked, [1], "SIGTERM", "step", moments)
    check_pair(asked, "SIGTERM", [1])
    assert_left_as_it_said(workdir, asked[0].out)
    last = start_pair(server, runs.arguments(workdir, PAIR))
    follow(last)
    assert [process.status for process in last] == [0, 0], [process.err for process in last]
    assert_same_run(straight_pair, workdir, STEPS)


def kill_of_pair(
    pair: list[Child], victims: list[int], signals: str, phase: str, moments: random.Random, compiling: float = 0.0
) -> list[Kill]:
    """Sends a signal to some of two processes while the first victim is in a phase, and waits for the end of both.

    Nothing is given where both had finished before.
    """
    first = pair[victims[0]]
    occurrence = moments.randint(1, {"step": 4, "evaluate": 1, "save": 1}.get(phase, 1))
    follow(pair, lambda: begins(first, phase) >= occurrence or first.status is not None)
    followed = moments.uniform(0, compiling if phase == "compile" else 8 * PACE)
    follow(pair, lambda: first.state().phase != phase, followed)
    for victim in victims:
        pair[victim].signal(SIGNALS[signals][0])
    sent, kills = first.signalled_at, []
    follow(pair, seconds=SURVIVAL)
    assert None not in [process.status for process in pair], "one of them still waits"
    for i, process in enumerate(pair if sent else ()):
        met = process.state(until="signal")
        assert process.status is not None
        hit = signals if i in victims else "-"
        kills.append(Kill(f"{i} of 2", hit, met.phase, met.step, process.status, process.ended_at - sent))
    return kills


@pytest.mark.slow
def test_two_processes_agree_on_every_end_and_end_as_undisturbed_ones(server, runs, straight_pair, tmp_path, capsys):
    """Both leave with 75 where one or both are asked; where one is killed, the other ends by itself."""
    workdir, moments = tmp_path / "w", random.Random(SEED)
    phases = ("data", "restore", "compile", "step", "evaluate", "save")
    asked = [(phase, "SIGTERM", victims) for phase in phases for victims in ([0], [1], [0, 1])]
    killed = [(phase, "SIGKILL", [victim]) for phase in phases for victim in (0, 1)]
    with capsys.disabled():
        print()
        for phase, signals, victims in moments.sample(asked + killed, len(asked + killed)):
            compile_anew = phase == "compile"
            pair = start_pair(server, runs.arguments(workdir, PAIR), slow=phase, compile_anew=compile_anew)
            for kill in kill_of_pair(pair, victims, signals, phase, moments, 5.0):
                print(kill, flush=True)
            check_pair(pair, signals, victims)
            whole_steps(workdir)
            if pair[0].status == 0:
                assert_same_run(straight_pair, workdir, STEPS)
                workdir = workdir.with_name(workdir.name + "w")
        last = start_pair(server, runs.arguments(workdir, PAIR))
        follow(last)
    assert [process.status for process in last] == [0, 0], [process.err for process in last]
    assert_same_run(straight_pair, workdir, STEPS)


def check_pair(pair: list[Child], signals: str, victims: list[int]) -> None:
    """All have left alike where they were asked; where one was killed, the other has noticed."""
    statuses = [process.status for process in pair]
    if statuses == [0, 0]:  # they had finished before
        return
    if signals == "SIGTERM":
        assert statuses == [EXIT_INTERRUPTED] * 2, [(process.out, process.err) for process in pair]
        if "is saved" in pair[0].out:
            assert pair[0].state().step == pair[1].state().step
        return
    (victim,) = victims
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] in (EXIT_STUCK, -signal.SIGABRT), [(process.out, process.err) for process in pair]


@pytest.mark.slow
def test_the_launcher_starts_both_again_when_one_is_killed_and_they_end_as_undisturbed_ones(
    runs, straight_pair, tmp_path
):
    workdir, moments = tmp_path / "w", random.Random(SEED)
    launched = Launched(runs, tmp_path, runs.arguments(workdir, PAIR), restarts=4)
    for victim in (1, 0, 1):
        launched.kill_in_step(victim, moments.randint(1, 4))
    status, said = launched.finish()
    assert status == 0, said
    assert said.count("start again") == 3
    assert_same_run(straight_pair, workdir, STEPS)
