# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a workdir: a killed holder's lock is free again, a living one's is not, whatever clocks say."""

import errno
import fcntl
import json
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from albert_jax.errors import UserError
from albert_jax.training import lock
from albert_jax.training.lock import LostWorkdirError, WorkdirLock
from tests.object_store import ObjectStore
from tests.runs import Runs, release, wait_for
from tests.test_checkpoint import mounted, wait_for_step

pytest_plugins = ["tests.runs", "tests.object_store"]
ROOT = pathlib.Path(__file__).parent.parent
RUN = "gs://bucket/run"


# --- on a disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `tmp_path` until it is killed."""
    program = (
        "import sys\nfrom albert_jax.training.lock import WorkdirLock\n"
        "WorkdirLock(sys.argv[1]).acquire()\nprint('held', flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(process, "held")
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_with_process_machine_and_time_of_the_first(tmp_path, holder):
    before = (tmp_path / ".lock").read_bytes()
    form = rf"^{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since \d{{4}}-.* UTC; wait for it"
    for _ in range(2):
        with pytest.raises(UserError, match=form):
            WorkdirLock(tmp_path).acquire()
    assert (tmp_path / ".lock").read_bytes() == before


def test_a_killed_holder_leaves_a_lock_that_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with WorkdirLock(tmp_path) as held:
        held.check()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_released_lock_leaves_nothing_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with WorkdirLock(tmp_path / "new" / "w"), pytest.raises(UserError, match=f"use by process {os.getpid()} on"):
            WorkdirLock(tmp_path / "new" / "w").acquire()
        assert not (tmp_path / "new" / "w").exists()
    (tmp_path / "mine").mkdir()
    with WorkdirLock(tmp_path / "mine"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []  # a directory that was there stays


def test_a_lock_file_that_is_removed_between_opening_and_locking_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    first = WorkdirLock(tmp_path)
    first.acquire()
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.release()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with WorkdirLock(tmp_path), pytest.raises(UserError, match="in use by"):
        WorkdirLock(tmp_path).acquire()


def test_a_holder_whose_name_could_not_be_written_still_holds(tmp_path, monkeypatch):
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with WorkdirLock(tmp_path), pytest.raises(UserError, match="is in use by another process; wait for it to end"):
        WorkdirLock(tmp_path).acquire()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def without(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with WorkdirLock(tmp_path):
        assert f"{tmp_path} is on a file system without locks (No locks available)" in caplog.text


def test_a_read_only_workdir_is_told_in_one_sentence(tmp_path):
    with mounted(tmp_path / "disk", "ro") as disk:
        if disk is None:
            pytest.skip("mounting is not permitted")
        for workdir in (disk, disk / "new"):
            with pytest.raises(
                UserError, match=rf"^the workdir {workdir} cannot be written \(Read-only file system\); c"
            ):
                WorkdirLock(workdir).acquire()


def test_two_runs_in_one_workdir_the_second_is_refused_and_the_first_is_not_disturbed(runs: Runs, tmp_path):
    workdir = tmp_path / "w"
    one = runs.start(runs.arguments(workdir), hold="step:6")
    wait_for(one, "held step:6")
    wait_for_step(workdir, 4)
    before = {path: path.stat().st_mtime_ns for path in sorted(workdir.rglob("*"))}
    two = runs.train(runs.arguments(workdir))
    assert two.status == 2 and two.err.count("\n") == 1, two.err
    assert two.err.startswith(f"error: {workdir} is in use by process {one.pid} on {socket.gethostname()} since ")
    assert before == {path: path.stat().st_mtime_ns for path in sorted(workdir.rglob("*"))}
    release(one)
    finished = runs.finish(one)
    assert finished.status == 0, finished.err
    assert not (workdir / ".lock").exists()


# --- in an object store -----------------------------------------------------------------------------------------------


@pytest.fixture
def quick(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> ObjectStore:
    """The store, with leases that end within a second."""
    monkeypatch.setattr(lock, "LEASE", 0.5)
    monkeypatch.setattr(lock, "RENEW", 0.01)
    monkeypatch.setattr(lock, "_POLL", 0.02)
    caplog.set_level(logging.INFO, logger="albert_jax")
    return object_store


def left_behind(store: ObjectStore, pid: int = 7) -> bytes:
    """Puts a lease into the store whose holder is gone."""
    content = json.dumps({"id": f"other {pid}", "pid": pid, "host": "tpu-3", "since": "yesterday"}).encode()
    store.put("bucket", "run/.lock", content)
    return content


def generations(store: ObjectStore, count: int) -> None:
    """Waits until so many more renewals have reached the store."""
    seen = len([request for request in store.requests if request.startswith("POST /upload")])
    while len([request for request in store.requests if request.startswith("POST /upload")]) < seen + count:
        time.sleep(0.001)


def test_a_lease_is_renewed_while_it_is_held_and_removed_at_the_end(quick):
    with WorkdirLock(RUN) as held:
        generations(quick, 3)
        held.check()
        assert json.loads(quick.get("bucket", "run/.lock"))["pid"] == os.getpid()
    assert quick.names("bucket") == []


def test_a_living_holder_is_not_robbed_and_is_named(quick, caplog):
    with WorkdirLock(RUN) as held:
        with pytest.raises(UserError, match=rf"^{RUN} is in use by process {os.getpid()} on {socket.gethostname()} s"):
            WorkdirLock(RUN).acquire()
        held.check()
    assert caplog.text.count("waiting up to") == 1


def test_a_holder_that_ends_while_a_new_run_waits_is_followed_by_it(quick, caplog):
    ending = WorkdirLock(RUN)
    ending.acquire()

    def end() -> None:
        generations(quick, 5)
        ending.release()

    thread = threading.Thread(target=end)
    thread.start()
    with WorkdirLock(RUN) as held:
        thread.join()
        held.check()
    assert "left behind" not in caplog.text


def test_a_killed_holders_lease_is_taken_over_after_a_wait_that_is_said_once(quick, caplog):
    left_behind(quick)
    with WorkdirLock(RUN):
        assert json.loads(quick.get("bucket", "run/.lock"))["pid"] == os.getpid()
    assert caplog.text.count(f"{RUN} is in use by process 7 on tpu-3 since yesterday: waiting up to") == 1
    assert f"{RUN} was left behind by process 7 on tpu-3 since yesterday: going on." in caplog.text


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_clock_that_jumps_neither_ends_a_lease_nor_makes_it_last(quick, monkeypatch, jump):
    clock, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: clock() + jump * (next(jumps) % 2))
    with WorkdirLock(RUN) as held:
        with pytest.raises(UserError, match="is in use by"):
            WorkdirLock(RUN).acquire()
        held.check()
    left_behind(quick)
    with WorkdirLock(RUN):
        pass


def test_of_two_that_wait_for_a_killed_holder_one_gets_the_lease_and_the_other_is_refused(quick):
    left_behind(quick)
    locks, refused = [WorkdirLock(RUN), WorkdirLock(RUN)], list[str]()

    def attempt(one: WorkdirLock) -> None:
        try:
            one.acquire()
        except UserError as e:
            refused.append(str(e))

    threads = [threading.Thread(target=attempt, args=(one,)) for one in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1 and "is in use by" in refused[0]
    for one in locks:
        one.release()


def test_a_holder_that_was_suspended_too_long_and_lost_its_lease_may_not_write_any_more(quick, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 1000.0)  # it does not come to renew
    suspended = WorkdirLock(RUN)
    suspended.acquire()
    theirs = left_behind(quick)
    for check in (suspended.check, suspended.check_here, suspended.check):
        with pytest.raises(
            LostWorkdirError, match=f"^{RUN} was taken over by process 7 on tpu-3 .*nothing more is wri"
        ):
            check()
    suspended.release()
    assert quick.get("bucket", "run/.lock") == theirs


def test_a_renewal_whose_answer_is_lost_is_not_taken_for_a_robbery(quick, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 1000.0)
    with WorkdirLock(RUN) as held:
        quick.fail(1, method="POST", containing="run/.lock", done=True)
        with pytest.raises(Exception, match="503"):
            held.check_here()
        held.check_here()
        quick.fail(1, method="POST", containing="run/.lock", done=True)
        held.check()
        held.check()
    assert quick.names("bucket") == []


def test_a_store_that_is_away_for_longer_than_the_lease_takes_it_from_nobody_and_is_told_once(quick, caplog):
    with WorkdirLock(RUN) as held:
        quick.fail(10**6, containing="run")
        while "the lock of gs://bucket/run could not be renewed for" not in caplog.text:
            held.check()
            time.sleep(0.01)
        generations(quick, 5)
        assert caplog.text.count("could not be renewed") == 1
        quick.clear_faults()
        held.check_here()
        generations(quick, 2)
    assert quick.names("bucket") == []


def test_a_lease_that_somebody_removed_is_put_back(quick, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 1000.0)
    with WorkdirLock(RUN) as held:
        quick.delete("bucket", "run/.lock")
        held.check()
        assert quick.names("bucket") == ["run/.lock"]


def test_a_store_that_cannot_be_reached_at_the_start_is_told_in_one_sentence(quick):
    quick.fail(10**6, status=403)
    with pytest.raises(UserError, match=rf"^{RUN} cannot be reached \(Forbidden.*check the bucket's name"):
        WorkdirLock(RUN).acquire()
