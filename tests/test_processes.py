# SPDX-License-Identifier: Apache-2.0
"""Several processes train as one: real processes of train.py, joined by jax.distributed, with one CPU device each.

`pytest -m '' tests/test_processes.py` adds four processes and the ways that take longer.
"""

import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from albert_jax.errors import UserError
from albert_jax.training.distributed import start
from tests.runs import ROOT, STEPS, Finished, Runs, arrays, records

pytest_plugins = ["tests.runs"]
# Nothing that the log says may come from less than all processes; 10 evaluated rows divide neither 2 nor 4 batches.
NOISE = "key']['bias"  # softmax does not see the keys' bias: its gradient is rounding


def finish(runs: Runs, processes: list[subprocess.Popen[str]]) -> list[Finished]:
    return [runs.finish(process) for process in processes]


def assert_close(found: pathlib.Path, wanted: pathlib.Path, step: int, tolerance: float) -> None:
    a, b = arrays(found, step), arrays(wanted, step)
    assert a.keys() == b.keys()
    for name, value in b.items():
        if NOISE not in name:
            scale = max(np.abs(value).max(), 1e-3) if value.size else 1.0
            assert np.abs(a[name] - value).max() <= tolerance * scale, name


@pytest.fixture(scope="module")
def two(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[Finished]]:
    """The tiny run in two processes."""
    workdir = tmp_path_factory.mktemp("two") / "w"
    return workdir, finish(runs, runs.together(runs.arguments(workdir), 2))


def test_two_processes_train_as_one_does_and_one_of_them_writes(two, straight):
    workdir, (first, second) = two
    assert first.status == second.status == 0, second.err
    assert f"finished: step {STEPS} is saved" in first.out and "finished" not in second.out
    assert_close(workdir, straight, STEPS, 1e-4)
    for line, wanted in zip(records(workdir), records(straight), strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            assert line[name] == (value if isinstance(value, (int, str)) else pytest.approx(value, rel=1e-4)), name


def test_a_run_of_two_processes_goes_on_in_one_with_the_same_stream(runs, two, straight, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(two[0], workdir, ignore=shutil.ignore_patterns(str(STEPS)))
    resumed = runs.train(runs.arguments(workdir))
    assert resumed.status == 0 and "resumed from step 8" in resumed.out, resumed.err
    assert "goes on with mesh" in resumed.out or "goes on with 1 x cpu" in resumed.out
    assert_close(workdir, straight, STEPS, 1e-4)
    assert [line.get("position") for line in records(workdir)] == [line.get("position") for line in records(straight)]


def test_a_bad_input_is_said_by_all_and_ends_all(runs, two):
    for finished in finish(runs, runs.together(runs.arguments(two[0], {"seed": 7}), 2)):
        assert finished.status == 2
        assert f"error: {two[0]} belongs to another run: seed was 0 and is now 7" in finished.err


@pytest.mark.slow
def test_a_process_with_another_command_is_named_and_ends_the_run(runs, tmp_path):
    first, second = runs.together(runs.arguments(tmp_path / "w"), 2)
    second.kill()
    other = [*second.args[2:], "--config.optimizer.learning_rate=0.5"]
    finished = runs.finish(runs.start(other))
    assert finished.status == 2
    assert "optimizer.learning_rate is '0.5' in process 1 and '0.002' in process 0" in finished.err
    assert runs.finish(first).status != 0 and not (tmp_path / "w" / "run.json").exists()


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two_and_four_train_as_one_does(runs, straight, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(straight, workdir, ignore=shutil.ignore_patterns(str(STEPS)))
    assert [f.status for f in finish(runs, runs.together(runs.arguments(workdir), 2))] == [0, 0]
    assert_close(workdir, straight, STEPS, 1e-4)
    assert [f.status for f in finish(runs, runs.together(runs.arguments(tmp_path / "four"), 4))] == [0] * 4
    assert_close(tmp_path / "four", straight, STEPS, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"mesh.data": 1, "mesh.fsdp": 2}, {"mesh.data": 1, "mesh.tensor": 2}])
def test_axes_that_run_across_processes_train_as_one_device_does(runs, straight, tmp_path, mesh):
    workdir = tmp_path / "w"
    assert [f.status for f in finish(runs, runs.together(runs.arguments(workdir, mesh), 2))] == [0, 0]
    assert_close(workdir, straight, STEPS, 1e-4)


@pytest.mark.slow
def test_a_killed_peer_ends_the_survivor_and_the_launcher_starts_both_again(runs, straight, tmp_path):
    workdir = tmp_path / "w"
    command = [sys.executable, "scripts/launch.py", "--processes=2", "--restarts=2", "--", "train.py"]
    launcher = subprocess.Popen(
        [*command, *runs.arguments(workdir, {"steps": 400, "checkpoint.every": 4})],
        cwd=ROOT,
        env=runs.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert launcher.stdout is not None
    said = ""
    for line in launcher.stdout:
        said += line
        if "resumed from step" in line:
            launcher.send_signal(signal.SIGTERM)
        elif " 9/400" in line and "resumed from" not in said:
            children = subprocess.run(["pgrep", "-f", str(workdir)], capture_output=True, text=True, check=True)
            pids = [int(pid) for pid in children.stdout.split() if int(pid) != launcher.pid]
            subprocess.run(["kill", "-KILL", str(max(pids))], check=True)
    assert launcher.wait() == 75, said
    assert "another process of the run is gone" in said or "signal" in said


def test_half_of_the_flags_are_refused():
    with pytest.raises(UserError, match="--processes and --process together, not 'a:1', 2 and None"):
        start("a:1", 2, None)
    with pytest.raises(UserError, match="--process must lie between 0 and 1, not 2"):
        start("a:1", 2, 2)
