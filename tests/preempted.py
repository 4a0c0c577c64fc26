# SPDX-License-Identifier: Apache-2.0
"""Training processes that say what they are doing, for tests that send them signals.

`Server.start` runs `train.py` in a process forked from one that has imported everything. The process reports through a
named pipe, line by line, what begins and ends in it, so that a test knows what a signal has met, also where it left no
time for last words. Phases are short in so small a run; one of them can be slowed down, at its file operations, steps
and batches, so that a moment in it can be drawn. Nothing of train.py is replaced: what is wrapped here calls the
original.

Lines: `=PHASE STEP` says that the main thread has come to a phase, `+SPAN STEP` and `-SPAN STEP` are begin and end of
something in the background, `at` is a place where a slowed-down phase passes the time, `signal NAME` says that one has
come, `joined` that the processes have met, `compiled PHASE` that XLA has compiled or loaded a program.

As a program, this file is the other side.
"""

import collections
import contextlib
import functools
import json
import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tests.runs import ROOT, Runs, _train, exit_status

BACKGROUND = ("retention", "save")  # what counts before the main thread's phase, in this order
PACE = 0.02  # seconds that a slowed-down phase passes at a place, at most
_MOST_PLACES = 200  # where it does
_LONGEST = 500  # times PACE that the main thread lets what goes on in the background end first
_FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")


class State:
    """What a process is doing, by its reports.

    Attributes:
      main: phase of the main thread.
      step: steps that are done.
    """

    def __init__(self) -> None:
        self.main, self.step = "start", 0
        self._spans: dict[str, int] = {}

    def note(self, line: str) -> None:
        """Takes a report in."""
        kind, (name, *rest) = line[0], line[1:].split() or [""]
        if kind == "=":
            self.main, self.step = name, int(rest[0])
        elif kind == "+":
            self._spans[name] = int(rest[0])
        elif kind == "-":
            self._spans.pop(name, None)

    @property
    def phase(self) -> str:
        """'start', 'data', 'restore', 'compile', 'step', 'evaluate', 'save', 'retention', 'finish' or 'exit'."""
        return next((span for span in BACKGROUND if span in self._spans), self.main)


# --- this side --------------------------------------------------------------------------------------------------------


class Child:
    """A started process.

    Args:
      pid: of the process.
      reports: the named pipe, open for reading.
      output: files of what it prints, standard output and error.
      reap: gives the exit status of the ended process.

    Attributes:
      lines: its reports so far, each with the time of reading it.
      status: the exit status; None where it has not ended.
    """

    def __init__(self, pid: int, reports: int, output: tuple[pathlib.Path, pathlib.Path], reap: Callable[[int], int]):
        self.pid, self._reports, self._output, self._reap = pid, reports, output, reap
        self.lines: list[tuple[float, str]] = []
        self.status: int | None = None
        self.ended_at = self.signalled_at = 0.0
        self._rest = b""

    def fileno(self) -> int:
        """For `select`."""
        return self._reports

    @property
    def out(self) -> str:
        """What it printed."""
        return self._output[0].read_text()

    @property
    def err(self) -> str:
        """What it said on standard error."""
        return self._output[1].read_text()

    @property
    def seconds(self) -> float:
        """From the first signal to the end."""
        return self.ended_at - self.signalled_at

    def state(self, until: str = "") -> State:
        """What it was doing last, or before the first report that begins with `until`."""
        state = State()
        for _, line in self.lines:
            if until and line.startswith(until):
                break
            state.note(line)
        return state

    def has(self, beginning: str) -> bool:
        """Whether a report begins so."""
        return any(line.startswith(beginning) for _, line in self.lines)

    def take_in(self) -> None:
        """Reads what has come; notices the end, which closes the pipe."""
        read = os.read(self._reports, 1 << 16)
        now = time.monotonic()
        if not read:
            self.ended_at = now
            os.close(self._reports)
            self.status = self._reap(self.pid)
            return
        *whole, self._rest = (self._rest + read).split(b"\n")
        self.lines += [(now, line.decode()) for line in whole]

    def signal(self, number: int) -> None:
        """Sends a signal, unless the end has been noticed; before that the number belongs to nobody else."""
        if self.status is None:
            self.signalled_at = self.signalled_at or time.monotonic()
            os.kill(self.pid, number)


def follow(children: Iterable[Child], until: Callable[[], bool] = lambda: False, seconds: float = 300.0) -> bool:
    """Reads reports until a condition holds or all have ended, for so long at most; gives the condition."""
    deadline = time.monotonic() + seconds
    children = list(children)
    while not until():
        running = [child for child in children if child.status is None]
        left = deadline - time.monotonic()
        if not running or left <= 0:
            return until()
        for child in select.select(running, [], [], left)[0]:
            child.take_in()
    return True


class Server:
    """Forks a process for each start; JAX is imported there but not started.

    Args:
      runs: whose environment, data set and compiled programs the processes use.
      directory: for what they print, and their pipes.
    """

    def __init__(self, runs: Runs, directory: pathlib.Path):
        self._directory, self.started = directory, 0
        self._children: list[Child] = []
        self._process = subprocess.Popen(
            [sys.executable, "tests/preempted.py", "serve"],
            cwd=ROOT,
            env=os.environ | runs.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: list[str], *, slow: str = "", seed: int = 0, compile_anew: bool = False) -> Child:
        """Starts train.py.

        Args:
          arguments: its flags.
          slow: phases that are slowed down, separated by commas; the first signal ends that for all but a 'save'.
          seed: of how much.
          compile_anew: whether to pass over the compiled programs on the disk.
        """
        self.started += 1
        out, err, pipe = (self._directory / f"{self.started}.{name}" for name in ("out", "err", "reports"))
        os.mkfifo(pipe)
        reports = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        pid = self._ask([arguments, str(out), str(err), str(pipe), slow, seed, compile_anew])
        child = Child(pid, reports, (out, err), lambda pid: self._ask(pid))
        select.select([reports], [], [])  # before the process has opened it, it would look as if it had ended
        self._children.append(child)
        return child

    def _ask(self, request: object) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Kills what is still running, and ends the server."""
        for child in self._children:
            child.signal(signal.SIGKILL)
        follow(self._children)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Launched:
    """scripts/launch.py with two processes that report, both through one pipe.

    Args:
      runs: see `Server`.
      directory: for the pipe and what the processes print.
      arguments: of train.py.
      restarts: of the launcher.
    """

    def __init__(self, runs: Runs, directory: pathlib.Path, arguments: list[str], restarts: int):
        pipe = directory / "reports"
        os.mkfifo(pipe)
        self._reports = os.open(pipe, os.O_RDWR)  # also for writing, so that it outlives each start
        options = ["--processes=2", f"--restarts={restarts}", "--grace=120", f"--logs={directory}"]
        self._process = subprocess.Popen(
            [sys.executable, "scripts/launch.py", *options, "--", "tests/preempted.py", str(pipe), *arguments],
            cwd=ROOT,
            env=os.environ | runs.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._old: set[int] = set()  # processes of starts that are over
        self._rest = b""

    def kill_in_step(self, process: int, steps: int) -> None:
        """Kills a process, of those started after the last kill, when it has begun so many steps."""
        begun = collections.Counter[int]()
        while True:
            assert select.select([self._reports], [], [], 300)[0], "nothing is reported any more"
            *whole, self._rest = (self._rest + os.read(self._reports, 4096)).split(b"\n")
            for line in whole:
                pid, place, report = line.decode().split(" ", 2)
                begun[int(pid)] += report.startswith("=step")
                if int(place) == process and int(pid) not in self._old and begun[int(pid)] == steps:
                    self._old |= set(begun)
                    os.kill(int(pid), signal.SIGKILL)
                    return

    def finish(self) -> tuple[int, str]:
        """Waits for the launcher's end: its status and what it said."""
        said = self._process.communicate()[1]
        os.close(self._reports)
        return self._process.returncode, said


# --- the other side ---------------------------------------------------------------------------------------------------


class Reporter:
    """Reports to the test and passes the time in what is to be slow.

    Args:
      pipe: to report through.
      slow, seed: see `Server.start`.
      sender: what each line begins with.
    """

    def __init__(self, pipe: str, slow: str = "", seed: int = 0, sender: str = ""):
        self._descriptor = os.open(pipe, os.O_WRONLY)
        self._slow, self._random, self._sender = slow.split(","), random.Random(seed), sender
        self.state, self._places = State(), 0
        self.say("ready")

    def say(self, line: str) -> None:
        """Reports; lines of several threads do not mix, as they are short."""
        self.state.note(line)
        if line.startswith("signal"):
            self._slow = [phase for phase in self._slow if phase == "save"]
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, f"{self._sender}{line}\n".encode())

    def pass_time(self, event: str = "", details: object = None) -> None:
        """Where the phase is one that is to be slow: says so and waits for a moment. Also an audit hook."""
        if (event and event not in _FILE_OPERATIONS) or self._places >= _MOST_PLACES or not self._slow:
            return
        if self.state.main in self._slow and threading.current_thread() is threading.main_thread():
            self._let_background_end()
        if self.state.phase in self._slow:
            self._places += 1
            self.say("at")
            time.sleep(self._random.uniform(0, PACE))

    def _let_background_end(self) -> None:
        """In so small a run saves last longer than the steps between them: no step or evaluation would be met alone."""
        for _ in range(_LONGEST):
            if self.state.phase == self.state.main or not self._slow:
                return
            time.sleep(PACE)

    def around(self, owner: Any, name: str, before: Callable[..., None], after: Callable[..., None]) -> None:
        """Wraps a method."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(*args)
            result = original(*args, **kwargs)
            after(*args)
            return result

        setattr(owner, name, wrapped)


def _report_all(reporter: Reporter) -> None:
    """Makes the coming run report."""
    import jax
    import orbax.checkpoint as ocp

    from albert_jax.training import evaluation, loop, restoring, saved_steps, writer
    from albert_jax.training.interruption import Interruption

    def nothing(*args: Any) -> None:
        """Nothing is to be done on this side of the call."""

    def pass_time(*args: Any) -> None:
        reporter.pass_time()

    def set_phase(self: Any, phase: str) -> None:
        reporter.say(f"={phase} {reporter.state.step}")

    def enter(self: Any, phase: str) -> None:
        reporter.state.step = self.step

    def compiled(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            reporter.say(f"compiled {reporter.state.main}")

    def leave(*args: Any) -> None:
        reporter.say(f"=exit {reporter.state.step}")
        reporter.pass_time()

    Interruption.phase = property(lambda self: reporter.state.main, set_phase)  # type: ignore[assignment]
    reporter.around(loop.Run, "_enter", enter, nothing)
    reporter.around(
        Interruption, "_note", lambda self, number: reporter.say(f"signal {signal.Signals(number).name}"), nothing
    )
    reporter.around(Interruption, "__exit__", nothing, leave)
    reporter.around(Interruption, "share", lambda *args: reporter.say("joined"), nothing)
    reporter.around(
        saved_steps.SavedSteps,
        "delete",
        lambda self, step: reporter.say(f"+retention {step}"),
        lambda self, step: reporter.say(f"-retention {step}"),
    )
    for owner, name in (
        (loop.Run, "_take_step"),
        (evaluation.Evaluator, "_targets"),
        (restoring, "_load_items"),
        (restoring, "_compare"),
        (ocp.AsyncCheckpointer, "save"),
        (writer.Writer, "_finish_folder"),
    ):
        reporter.around(owner, name, pass_time, pass_time)
    _report_saves(reporter, writer.Writer)
    jax.monitoring.register_event_duration_secs_listener(compiled)  # type: ignore[arg-type]
    sys.addaudithook(reporter.pass_time)


def _report_saves(reporter: Reporter, writer: Any) -> None:
    """A save lasts until it is durable, has failed, or, in processes that are told neither, has been waited for."""
    start = writer.start

    def reporting_start(self: Any, step: int, *args: Any, done: Any, failed: Any) -> None:
        def end(then: Callable[..., None], *words: str) -> None:
            reporter.say(f"-save {step}")
            then(*words)

        reporter.say(f"+save {step}")
        start(self, step, *args, done=functools.partial(end, done), failed=functools.partial(end, failed))

    writer.start = reporting_start
    reporter.around(writer, "finish", lambda self: None, lambda self: reporter.say("-save 0"))


def _run(arguments: list[str], out: str, err: str, pipe: str, slow: str, seed: int, compile_anew: bool) -> int:
    import jax

    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _report_all(Reporter(pipe, slow, seed))
    jax.config.update("jax_enable_compilation_cache", not compile_anew)
    return exit_status(functools.partial(_train, arguments))


def _serve() -> None:
    """Forks a process for each list of arguments, and tells how one has ended for each number."""
    import albert_jax.training.loop  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), flush=True)
            continue
        if pid := os.fork():
            print(pid, flush=True)
            continue
        sys.exit(_run(*request))  # by the interpreter's usual end, which is a part of what is tested


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve()
    else:  # PIPE, then what train.py is given, --process=I last where there are several
        _report_all(Reporter(sys.argv[1], sender=f"{os.getpid()} {sys.argv[-1].removeprefix('--process=')} "))
        _train(sys.argv[2:])
