# SPDX-License-Identifier: Apache-2.0
"""scripts/launch.py, with small programs in the place of train.py, real processes and real signals."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What process I does in start S is the word `plan[S][I]`; it first notes how it was started. `wait` is a train.py that
# saves on SIGTERM, `deaf` one that hangs, and `parent` leaves a process of its own behind.
PROGRAM = """
import json, os, pathlib, signal, subprocess, sys

def saved(number, frame):
    os.write(1, b"saving\\n")
    os._exit(75)

signal.signal(signal.SIGTERM, saved)
signal.signal(signal.SIGINT, saved)
signal.signal(signal.SIGUSR1, lambda number, frame: os.write(1, b"profile\\n"))
place, plan = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
index = int(sys.argv[-1].removeprefix("--process=")) if sys.argv[-1].startswith("--process=") else 0
begun = len(list(place.glob(f"{index}.*")))
noted = {"arguments": sys.argv[3:], "devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}
(place / f"{index}.{begun}").write_text(json.dumps(noted))
word = plan[begun][index]
while len(list(place.glob(f"*.{begun}"))) < len(plan[begun]):  # nobody dies before all have noted their start
    os.sched_yield()
if word == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if word == "parent":
    child = subprocess.Popen(["sleep", "1000"])
    print(f"child {child.pid}")
    sys.exit(1)
print("unfinished", end="" if word == "0" else "\\n")
print(f"\\nready {os.getpid()}")
if word in ("wait", "deaf"):
    while True:
        signal.pause()
if word.startswith("SIG"):
    os.kill(os.getpid(), signal.Signals[word])
sys.stdout.write("last words")
sys.exit(int(word))
"""


def heard() -> None:
    """Lets a program hear what the shell that runs the tests ignores, as nohup and `&` have it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def heard_but_for_hangups() -> None:
    """As nohup has it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Launcher:
    """Runs scripts/launch.py and reads what it and its processes leave."""

    def __init__(self, place: pathlib.Path):
        self.place = place
        self.program = place / "program.py"
        self.program.write_text(PROGRAM)

    def start(
        self, plan: list[list[str]], *options: str, more: tuple[str, ...] = (), hears: Any = heard, **environment: str
    ) -> Any:
        """Starts it; `plan` has a list of words for each start of the processes."""
        tail = [str(self.program), str(self.place), json.dumps(plan), *more]
        return subprocess.Popen(
            [sys.executable, "scripts/launch.py", f"--processes={len(plan[0])}", *options, "--", *tail],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hears,
        )

    def run(self, plan: list[list[str]], *options: str, **rest: Any) -> tuple[int, str, str]:
        """Runs it to the end: status, output, errors."""
        process = self.start(plan, *options, **rest)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def noted(self, start: int = 0) -> list[dict[str, Any]]:
        """What the processes of a start noted, in their order."""
        return [json.loads(path.read_text()) for path in sorted(self.place.glob(f"*.{start}"))]

    def starts(self) -> int:
        """How often process 0 was started."""
        return len(list(self.place.glob("0.*")))


@pytest.fixture
def launcher(tmp_path: pathlib.Path) -> Launcher:
    """A launcher with a place of its own."""
    return Launcher(tmp_path)


def until_ready(process: Any, count: int) -> list[int]:
    """Reads output until so many processes have said that they are ready; gives their ids."""
    found: list[int] = []
    while len(found) < count:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if "ready" in line:
            found.append(int(line.split()[-1]))
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has asked about yet has ended too."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.fixture
def wait_until_gone() -> Iterator[Any]:
    """Waits for the end of processes that are not ours."""
    descriptors: list[int] = []

    def wait(*pids: int) -> None:
        import select

        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
                assert select.select([descriptors[-1]], [], [], 30)[0], f"{pid} is still there"

    yield wait
    for descriptor in descriptors:
        os.close(descriptor)


# --- starting ---------------------------------------------------------------------------------------------------------


def test_processes_find_each_other_and_arguments_stay_whole(launcher: Launcher) -> None:
    more = ("--config=a b.py", "--workdir=it's", "", "--x=$HOME *")
    status, out, _ = launcher.run([["0", "0", "0"]], more=more)
    assert status == 0
    noted = launcher.noted()
    (coordinator,) = {process["arguments"][-3] for process in noted}
    assert coordinator.startswith("--coordinator=127.0.0.1:") and int(coordinator.rpartition(":")[2]) > 1023
    for index, process in enumerate(noted):
        assert process["arguments"] == [*more, coordinator, "--processes=3", f"--process={index}"]
    # Every line is whole and has its number, the last one too, which does not end.
    for index in range(3):
        lines = [line for line in out.splitlines() if line.startswith(f"[{index}] ")]
        assert lines == [f"[{index}] unfinished", f"[{index}] ready {noted[index]['pid']}", f"[{index}] last words"]


def test_one_process_runs_as_if_started_by_hand(launcher: Launcher) -> None:
    status, out, _ = launcher.run([["0"]], more=("--config=x",), CUDA_VISIBLE_DEVICES="3,5")
    (noted,) = launcher.noted()
    assert (status, noted["arguments"], noted["devices"]) == (0, ["--config=x"], "3,5")
    assert out.splitlines()[0] == "unfinished"


def test_output_goes_into_files_and_the_status_into_another(launcher: Launcher, tmp_path: pathlib.Path) -> None:
    status, out, _ = launcher.run([["0", "7"]], f"--logs={tmp_path}/some logs", f"--status={tmp_path}/status")
    assert (status, out) == (7, "")
    for index in range(2):
        assert "last words" in (tmp_path / "some logs" / f"process-{index}.log").read_text()
    assert (tmp_path / "status").read_text() == "7\n"


def test_gpus_are_shared_out(launcher: Launcher) -> None:
    launcher.run([["0", "0"]], CUDA_VISIBLE_DEVICES="0,1,GPU-5,7")
    assert [process["devices"] for process in launcher.noted()] == ["0,1", "GPU-5,7"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--processes=2"], "no program"),
        (["--processes=0", "--", "x.py"], "--processes=0"),
        (["--restarts=-1", "--", "x.py"], "--restarts=-1"),
        (["--grace=nan", "--", "x.py"], "--grace=nan"),
        (["--proc=2", "--", "x.py"], "--proc=2"),
        (["--processes=2", "--", "x.py"], "CUDA_VISIBLE_DEVICES=0,1,2"),
    ],
)
def test_bad_input_is_named(arguments: list[str], named: str) -> None:
    command = [sys.executable, "scripts/launch.py", *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1] and "error: " in done.stderr


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_lost_peer_ends_the_others_and_all_are_started_again(launcher: Launcher) -> None:
    status, _, err = launcher.run([["wait", "SIGKILL"], ["SIGABRT", "134"], ["0", "0"]], "--restarts=5", "--grace=2")
    assert (status, launcher.starts()) == (0, 3)
    assert "process 1 ended with status 137 (SIGKILL); 1 others were killed." in err
    assert "start again, 2 of at most 5 times" in err
    assert [is_gone(process["pid"]) for process in launcher.noted()] == [True, True]
    first, second = (launcher.noted(start)[0]["arguments"][0] for start in range(2))
    assert first.startswith("--coordinator=") and second.startswith("--coordinator=")


def test_processes_that_end_within_the_grace_are_not_killed(launcher: Launcher) -> None:
    status, out, err = launcher.run([["75", "SIGABRT", "76"]], "--grace=60")
    assert status in (75, 134, 76)
    assert "killed" not in err.replace("SIGKILL", "") and "[2] last words" in out


@pytest.mark.parametrize("status", [75, 76, 134, 1])
def test_restarts_are_bounded_and_the_last_status_is_told(launcher: Launcher, status: int) -> None:
    told, _, err = launcher.run([[str(status), "wait"]] * 3, "--restarts=2", "--grace=0")
    assert (told, launcher.starts()) == (status, 3)
    assert "2 of at most 2" in err


def test_nothing_is_started_again_unless_asked(launcher: Launcher) -> None:
    assert launcher.run([["SIGKILL"], ["0"]])[0] == 137
    assert launcher.starts() == 1


@pytest.mark.parametrize("status", [2, 71])
def test_a_bad_input_and_a_lack_of_memory_are_final_even_when_peers_abort(launcher: Launcher, status: int) -> None:
    assert launcher.run([["SIGABRT", str(status), "134"]] * 2, "--restarts=5")[0] == status
    assert launcher.starts() == 1


def test_a_process_that_hangs_at_the_end_of_the_run_is_started_again(launcher: Launcher) -> None:
    # The run is finished; the new start only finds that out.
    assert launcher.run([["0", "deaf"], ["0", "0"]], "--restarts=1", "--grace=2")[0] == 0
    assert launcher.starts() == 2


def test_what_a_process_left_running_is_ended_with_it(launcher: Launcher, wait_until_gone: Any) -> None:
    status, out, _ = launcher.run([["parent", "0"]])
    assert status == 1
    wait_until_gone(*[int(line.split()[-1]) for line in out.splitlines() if "child" in line])


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_processes_and_ends_the_run(launcher: Launcher, number: signal.Signals) -> None:
    process = launcher.start([["wait", "wait", "wait"]] * 2, "--restarts=5")
    until_ready(process, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, launcher.starts()) == (75, 1), err
    assert out.count("saving") == 3


def test_a_second_signal_is_passed_on_too(launcher: Launcher) -> None:
    process = launcher.start([["deaf", "wait"]], "--grace=60")
    until_ready(process, 2)
    process.send_signal(signal.SIGTERM)
    while "saving" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)  # which the deaf one does hear
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_the_wish_for_a_profile_reaches_the_first_process_and_stops_nothing(launcher: Launcher) -> None:
    process = launcher.start([["wait", "wait"]])
    until_ready(process, 2)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "[0] profile\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.count("saving"), out.count("profile")) == (75, 2, 0)


def test_a_launcher_that_ignores_hangups_goes_on(launcher: Launcher) -> None:
    process = launcher.start([["wait"], ["0"]], "--restarts=1", hears=heard_but_for_hangups)
    (pid,) = until_ready(process, 1)
    process.send_signal(signal.SIGHUP)
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert (process.returncode, launcher.starts()) == (0, 2)  # it was not told to stop


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_processes_do_not_outlive_a_killed_launcher(launcher: Launcher, wait_until_gone: Any) -> None:
    process = launcher.start([["deaf", "wait"]])
    pids = until_ready(process, 2)
    process.kill()
    wait_until_gone(*pids)
    process.communicate(timeout=60)
