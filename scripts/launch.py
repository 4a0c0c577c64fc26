# SPDX-License-Identifier: Apache-2.0
"""Runs several processes of one training run on this machine, and starts them again when one of them is lost.

    python scripts/launch.py --processes=2 --restarts=5 -- train.py --config=configs/base.py --workdir=runs/base ...

What follows `--` is run by this Python. Several processes get `--coordinator=127.0.0.1:PORT --processes=N --process=I`
behind it, and each an even share of the devices in CUDA_VISIBLE_DEVICES, where that is set. SIGTERM and SIGINT are
passed on to all of them, a closed terminal as SIGTERM, and then nothing is started again; SIGUSR1 goes to the first.
When one has ended, the others have `--grace` seconds to end as well, or are killed: without a peer they can only wait.
When this program is killed, so are they (on Linux).

Exit status: 0 when all processes ended with 0; 2 or 71 when one did (a bad input, or a device's memory is too small:
starting again would not help); otherwise that of the first one to fail, 128 + N for signal N. Anything but 0, 2 and 71
means: start again, which `--restarts` does.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from typing import Any, Self

BAD_INPUT, OUT_OF_MEMORY = 2, 71
FINAL = (BAD_INPUT, OUT_OF_MEMORY)  # the same command would fail again
# What is passed on, and as what: SIGHUP itself would end train.py without a save. SIGUSR1 asks process 0 for a profile.
_STOPPING = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
_FORWARDED = _STOPPING | {signal.SIGUSR1: signal.SIGUSR1}
_KILLED = 128 + signal.SIGKILL
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and the program with its arguments."""
    parser = argparse.ArgumentParser(
        usage="python scripts/launch.py [options] -- PROGRAM.py [arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many; 1 unless given")
    parser.add_argument("--restarts", type=int, default=0, metavar="K", help="start again so often, 0 unless given")
    parser.add_argument("--grace", type=float, default=60, metavar="SECONDS", help="60 unless given")
    parser.add_argument("--logs", type=pathlib.Path, metavar="DIR", help="output into DIR/process-I.log, not here")
    parser.add_argument("--status", type=pathlib.Path, metavar="FILE", help="write the exit status into FILE")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, program = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    if not program:
        refuse("there is no program; give one after --, as in: -- train.py --config=configs/base.py --workdir=DIR.")
    if options.processes < 1 or options.restarts < 0 or not options.grace >= 0:
        refuse(
            f"--processes={options.processes} --restarts={options.restarts} --grace={options.grace:g} is out of range; "
            "at least 1, 0 and 0 are needed."
        )
    return options, program


def refuse(sentence: str) -> None:
    """Ends with the status of a bad input."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def say(sentence: str) -> None:
    """Tells what the launcher does, apart from what the processes print."""
    print(f"launch: {sentence}", file=sys.stderr, flush=True)


# --- processes --------------------------------------------------------------------------------------------------------


class Process:
    """One process of the run, in a session of its own, so that a terminal's Ctrl-C comes to it only once: from here.

    Attributes:
      output: what it prints, a pipe; None where it needs no prefix or goes into a file.
      status: how it ended, 128 + N for signal N; None while it runs.
      killed: whether it was this launcher that killed it; what it ended with then tells nothing.
    """

    def __init__(self, index: int, command: list[str], environment: dict[str, str], target: Any):
        self.index, self.killed = index, False
        self.status: int | None = None
        self._unfinished = b""
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=None if target is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if _libc else None,  # this program has one thread, where that is safe
        )
        self.output = self._process.stdout
        if self.output is not None:
            os.set_blocking(self.output.fileno(), False)

    def signal(self, number: int) -> None:
        """Sends a signal to the process and to those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kills it because of a peer."""
        self.killed = True
        self.signal(signal.SIGKILL)

    def has_just_ended(self) -> bool:
        """Notices the end, once, and clears away what the process may have left running."""
        if self.status is not None or self._process.poll() is None:
            return False
        code = self._process.returncode
        self.status = 128 - code if code < 0 else code
        self.signal(signal.SIGKILL)
        self.pass_on()
        return True

    def pass_on(self) -> bool:
        """Prints whole lines of what has come, with the process's number; False where no more can come."""
        if self.output is None:
            return False
        more = True
        while more:
            try:
                read = os.read(self.output.fileno(), 1 << 16)
            except BlockingIOError:
                break
            more = bool(read)
            self._unfinished += read
        *lines, self._unfinished = self._unfinished.split(b"\n")
        if self._unfinished and (not more or self.status is not None):
            lines, self._unfinished = [*lines, self._unfinished], b""
        for line in lines:
            sys.stdout.buffer.write(b"[%d] %s\n" % (self.index, line))
        sys.stdout.buffer.flush()
        return more

    def describe(self) -> str:
        """How it ended, in words."""
        assert self.status is not None
        name = f" ({signal.Signals(self.status - 128).name})" if 128 < self.status < 160 else ""
        return f"process {self.index} ended with status {self.status}{name}"


def _die_with_parent() -> None:
    """Runs in the new process: no orphan may go on writing into a workdir that a new start is using."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def share_devices(listed: str, processes: int) -> list[str]:
    """Cuts a list of devices, as in CUDA_VISIBLE_DEVICES, into equal parts."""
    devices = [device for device in listed.split(",") if device]
    if len(devices) % processes or not devices:
        refuse(f"CUDA_VISIBLE_DEVICES={listed} cannot be shared evenly by {processes} processes; change one of them.")
    size = len(devices) // processes
    return [",".join(devices[i * size : (i + 1) * size]) for i in range(processes)]


def start(options: argparse.Namespace, program: list[str]) -> list[Process]:
    """Starts all processes."""
    count = options.processes
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    shares = share_devices(listed, count) if listed is not None and count > 1 else []
    port = free_port()
    started = []
    for i in range(count):
        together = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}"] if count > 1 else []
        command = [sys.executable, *program, *together]
        own = environment | ({"CUDA_VISIBLE_DEVICES": shares[i]} if shares else {})
        if options.logs is None:
            started.append(Process(i, command, own, subprocess.PIPE if count > 1 else None))
            continue
        options.logs.mkdir(parents=True, exist_ok=True)
        with (options.logs / f"process-{i}.log").open("ab") as log:
            started.append(Process(i, command, own, log))
    return started


# --- waiting ----------------------------------------------------------------------------------------------------------


class Events:
    """What wakes the launcher while it is entered: output, the end of a process, a signal to pass on.

    Attributes:
      stopped: whether a signal has asked the run to stop.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._signals: list[int] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        reading, writing = os.pipe()
        for end in (reading, writing):
            os.set_blocking(end, False)
        self._selector.register(reading, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(writing)  # a signal that comes just before the waiting still ends it
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in _FORWARDED:
            # nohup has SIGHUP ignored, and so it stays; that a shell ignores SIGINT in the background does not count.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(-1)
        self._selector.close()

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.stopped |= number in _STOPPING
        self._signals.append(_FORWARDED[signal.Signals(number)])

    def watch(self, process: Process) -> None:
        """Passes on what a process prints, from now on."""
        if process.output is not None:
            self._selector.register(process.output, selectors.EVENT_READ, process)

    def forget(self, process: Process) -> None:
        """Stops doing so."""
        if process.output is not None and process.output in self._selector.get_map():
            self._selector.unregister(process.output)

    def wait(self, seconds: float | None) -> list[int]:
        """Waits for something to happen; gives the signals to pass on."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                os.read(key.fd, 4096)
            elif not key.data.pass_on():
                self.forget(key.data)
        come, self._signals = self._signals, []
        return come


def run(options: argparse.Namespace, program: list[str], events: Events) -> int:
    """Starts all processes and waits until they have ended; gives the status of the whole."""
    processes = start(options, program)
    for process in processes:
        events.watch(process)
    ended: list[Process] = []
    deadline: float | None = None  # for the others, once one has ended
    while running := [process for process in processes if process.status is None]:
        for number in events.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            for process in running[:1] if number == signal.SIGUSR1 else running:
                process.signal(number)
        for process in running:
            if process.has_just_ended():
                events.forget(process)
                ended.append(process)
        if ended and not any(process.killed for process in processes):
            deadline = time.monotonic() + options.grace if deadline is None else deadline
            if time.monotonic() >= deadline:
                deadline = None
                for process in processes:
                    if process.status is None:
                        process.kill()
    return outcome(ended)


def outcome(ended: list[Process]) -> int:
    """The status of the whole, of processes in the order of their ends."""
    own = [process for process in ended if not process.killed]
    failed = [process for process in own if process.status]
    refused = [process for process in failed if process.status in FINAL]
    if len(ended) > 1 and (failed or len(own) < len(ended)):
        rest = f"; {len(ended) - len(own)} others were killed" if len(own) < len(ended) else ""
        say(f"{(refused or failed or own)[0].describe()}{rest}.")
    if failed:
        status = (refused or failed)[0].status
        assert status is not None
        return status
    return 0 if len(own) == len(ended) else _KILLED


def main() -> int:
    """Starts the run until it has finished, is refused, is told to stop or has been restarted often enough."""
    options, program = parse(sys.argv[1:])
    with Events() as events:
        status = run(options, program, events)
        for restart in range(options.restarts):
            if status in (0, *FINAL) or events.stopped:
                break
            say(f"status {status}: start again, {restart + 1} of at most {options.restarts} times.")
            status = run(options, program, events)
    if options.status is not None:
        partial = options.status.with_name(options.status.name + ".partial")
        partial.write_text(f"{status}\n")
        partial.replace(options.status)
    return status


if __name__ == "__main__":
    sys.exit(main())
