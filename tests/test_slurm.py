# SPDX-License-Identifier: Apache-2.0
"""scripts/slurm.sh, with an sbatch, srun, scontrol and scancel that record their arguments and do as Slurm does."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# srun runs its tasks side by side and tells the highest status; sbatch keeps a copy of the script, as Slurm does. The
# others print the next line of a file, and fail where it says so.
PROGRAM = (
    f"#!{sys.executable} -SE"
    + """
import json, os, pathlib, shutil, subprocess, sys

place, arguments = pathlib.Path(__file__).parent.parent, sys.argv[1:]
name = pathlib.Path(sys.argv[0]).name
with (place / "calls").open("a") as calls:
    calls.write(json.dumps([name, *arguments]) + "\\n")
if name == "sbatch":
    at = arguments.index("scripts/slurm.sh")
    shutil.copy(arguments[at], place / "copy")
    (place / "job").write_text(json.dumps(arguments[at + 1 :]))
    print("Submitted batch job 4711")
if name == "srun":
    tasks = int(arguments[0].removeprefix("--ntasks="))
    command = arguments[arguments.index("bash") :]
    started = [
        subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % 2)})
        for i in range(tasks)
    ]
    sys.exit(max(task.wait() for task in started))
answers = place / f"{name}-{arguments[0]}"
if answers.exists():
    first, *rest = answers.read_text().splitlines()
    if rest:
        answers.write_text("\\n".join(rest))
    print(first)
    sys.exit(first == "error")
"""
)
# Outside a job it notes what it is to check. The N-th start of task I does plan[N][I]: a status or SIGxxx, after
# `step K`, which saves a checkpoint, or after `shell`, which sends SIGTERM to the job's shell, three processes up.
TRAIN = """
import json, os, pathlib, signal, sys

place = pathlib.Path(os.environ["PLACE"])
if "SLURM_PROCID" not in os.environ:
    (place / "checked").write_text(json.dumps(sys.argv[1:]))
    print("model 2 layers")
    sys.exit()
index = int(os.environ["SLURM_PROCID"])
begun = len(list(place.glob(f"started-{index}.*")))
noted = {"arguments": sys.argv[1:], "local": os.environ["SLURM_LOCALID"], "cpus": os.environ.get("SRUN_CPUS_PER_TASK")}
(place / f"started-{index}.{begun}").write_text(json.dumps(noted))
words = json.loads((place / "plan").read_text())[begun][index].split()
if words[0] == "step":
    workdir = [argument for argument in sys.argv if argument.startswith("--workdir=")][0].partition("=")[2]
    (pathlib.Path(workdir) / "checkpoints" / words[1]).mkdir(parents=True, exist_ok=True)
if words[0] == "shell":
    shell = os.getpid()
    for _ in range(3):
        shell = int(pathlib.Path(f"/proc/{shell}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"batch" in pathlib.Path(f"/proc/{shell}/cmdline").read_bytes()
    os.kill(shell, signal.SIGTERM)
if words[-1].startswith("SIG"):
    os.kill(os.getpid(), signal.Signals[words[-1]])
sys.exit(int(words[-1]))
"""
RUNNING = "JobId=4711 JobState=RUNNING Reason=None Requeue=1 Restarts=0"
ALLOCATED = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "2"}


class Cluster:
    """A checkout with the script and a small train.py, and false programs of Slurm."""

    def __init__(self, place: pathlib.Path):
        self.place, self.checkout, self.workdir = place, place / "a checkout", place / "work dir"
        (self.checkout / "scripts").mkdir(parents=True)
        for name in ("slurm.sh", "launch.py"):
            shutil.copy(ROOT / "scripts" / name, self.checkout / "scripts" / name)
        (self.checkout / "train.py").write_text(TRAIN)
        (place / "bin").mkdir()
        for name in ("sbatch", "srun", "scontrol", "scancel", "sleep"):
            (place / "bin" / name).write_text(PROGRAM)
            (place / "bin" / name).chmod(0o755)
        self.flags = ["--config=configs/large.py", f"--workdir={self.workdir}", '--config.a=it\'s "$HOME"  *', "--b="]
        self.answer(RUNNING)

    def answer(self, *states: str) -> None:
        """What `scontrol show job` says, in turn."""
        (self.place / "scontrol-show").write_text("\n".join(states))

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the checkout, as on a machine of the cluster."""
        path = f"{self.place / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PLACE": str(self.place), "PYTHON": sys.executable} | variables
        return subprocess.run(command, env=environment, cwd=self.checkout, capture_output=True, text=True, timeout=120)

    def submit(self, *options: str, flags: list[str] | None = None, **variables: str) -> Any:
        """Submits a run."""
        tail = ["--", *(self.flags if flags is None else flags)]
        return self.run("bash", "scripts/slurm.sh", *options, *tail, **variables)

    def job(self, plan: list[list[str]], **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs the submitted job once, as Slurm does when its turn has come."""
        (self.place / "plan").write_text(json.dumps(plan))
        arguments = json.loads((self.place / "job").read_text())
        return self.run("bash", str(self.place / "copy"), *arguments, **ALLOCATED, **variables)

    def calls(self, *names: str) -> list[list[str]]:
        """What Slurm's programs were asked."""
        path = self.place / "calls"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if call[0] in names]

    def checked(self) -> list[str] | None:
        """What train.py was given to check."""
        path = self.place / "checked"
        return json.loads(path.read_text()) if path.exists() else None

    def requeued(self) -> int:
        """How often the job was put back into the queue."""
        return self.calls("scontrol").count(["scontrol", "requeue", "4711"])

    def started(self, start: int) -> list[dict[str, Any]]:
        """What the tasks of a start were given."""
        return [json.loads(path.read_text()) for path in sorted(self.place.glob(f"started-*.{start}"))]


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Cluster:
    """A cluster with nothing submitted."""
    return Cluster(tmp_path)


@pytest.fixture
def submitted(cluster: Cluster) -> Cluster:
    """A cluster with a job that may start in vain three times."""
    assert cluster.submit("--nodes=2", "--gpus-per-node=2", "--restarts=3").returncode == 0
    return cluster


# --- submitting -------------------------------------------------------------------------------------------------------


def test_a_job_is_submitted_with_all_that_was_given(cluster: Cluster) -> None:
    done = cluster.submit(
        "--nodes", "2", "--gpus-per-node", "8", "--time", "24:00:00", "--comment=a  b", "--restarts=4"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Submitted batch job 4711\n"
    assert cluster.calls("sbatch") == [
        [
            *("sbatch", "--job-name=albert_jax", "--requeue", "--open-mode=append", "--output=slurm-%j.out"),
            *("--signal=TERM@120", "--ntasks-per-node=8"),
            *("--nodes", "2", "--gpus-per-node", "8", "--time", "24:00:00", "--comment=a  b"),
            *("scripts/slurm.sh", "batch", "4", "--", *cluster.flags),
        ]
    ]


@pytest.mark.parametrize(
    "option", ["--gpus-per-node=4", "--gpus-per-node=a100:4", "--gres=gpu:4", "--gres=gpu:a100:4,nvme:1"]
)
def test_there_is_a_task_for_each_gpu(cluster: Cluster, option: str) -> None:
    cluster.submit(option)
    (call,) = cluster.calls("sbatch")
    assert "--ntasks-per-node=4" in call and option in call


def test_a_dry_run_prints_the_command_that_a_run_gives(cluster: Cluster) -> None:
    options = ("--gpus-per-node=2", "--signal=TERM@600", "--comment=it's")
    printed = cluster.submit("--dry-run", *options)
    assert printed.returncode == 0 and cluster.calls("sbatch") == []
    cluster.submit(*options)
    assert [shlex.split(line) for line in printed.stdout.splitlines()] == cluster.calls("sbatch")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_flags_are_checked_before_a_job_is_submitted(cluster: Cluster, dry: list[str]) -> None:
    done = cluster.submit("--gpus-per-node=2", *dry)
    assert done.returncode == 0 and "model 2 layers" in done.stderr
    assert cluster.checked() == ["--check=config", *cluster.flags]
    cluster.submit("--data-elsewhere", "--gpus-per-node=2", *dry)
    assert cluster.checked() == ["--check=fields", *cluster.flags]
    assert not any("--data-elsewhere" in call for call in cluster.calls("sbatch"))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_train_py_refuses_is_not_submitted(cluster: Cluster, dry: list[str]) -> None:
    shutil.copy(ROOT / "train.py", cluster.checkout / "train.py")
    flags = [f"--config={ROOT}/configs/base.py", f"--workdir={cluster.workdir}", "--config.data.pth="]
    done = cluster.submit("--gpus-per-node=2", *dry, flags=flags, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the config has no field 'config.data.pth'; the nearest is 'config.data.path'.\n"
    assert cluster.calls("sbatch") == []


@pytest.mark.parametrize(
    ("options", "flags", "named"),
    [
        (["--nodes=2"], ["--workdir=w"], "''"),
        (["--gpus-per-node=all"], ["--workdir=w"], "'all'"),
        (["--gpus-per-node"], ["--workdir=w"], "''"),
        (["--gpus-per-node=2", "--restarts=x"], ["--workdir=w"], "'x'"),
        (["--gpus-per-node=2"], [], "train.py"),
        (["--gpus-per-node=2"], ["--config=c"], "--workdir"),
        (["--gpus-per-node=2"], ["--workdir=", "--x"], "--workdir"),
    ],
)
def test_bad_input_is_named(cluster: Cluster, options: list[str], flags: list[str], named: str) -> None:
    done = cluster.submit(*options, flags=flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and named in done.stderr and len(done.stderr.splitlines()) == 1
    assert cluster.calls("sbatch") == []


def test_a_missing_environment_is_named(cluster: Cluster) -> None:
    done = cluster.submit("--gpus-per-node=2", PYTHON="/nowhere/python")
    assert done.returncode == 2 and "/nowhere/python" in done.stderr


def test_stopping_saves_and_keeps_slurm_from_queueing_again(cluster: Cluster) -> None:
    assert cluster.run("bash", "scripts/slurm.sh", "stop", "4711").returncode == 0
    assert cluster.calls("scontrol", "scancel") == [
        ["scontrol", "update", "JobId=4711", "Requeue=0"],
        ["scancel", "--state=RUNNING", "--signal=TERM", "4711"],
        ["scancel", "--state=PENDING", "4711"],
    ]
    done = cluster.run("bash", "scripts/slurm.sh", "stop", "all")
    assert done.returncode == 2 and done.stderr.startswith("error: ")


# --- in the job -------------------------------------------------------------------------------------------------------


def test_arguments_reach_every_task_and_a_finished_run_ends_the_job(submitted: Cluster) -> None:
    done = submitted.job([["0"] * 4], SLURM_CPUS_PER_TASK="6")
    assert done.returncode == 0, done.stderr
    tasks = submitted.started(0)
    assert [task["arguments"] for task in tasks] == [submitted.flags] * 4
    assert [(task["local"], task["cpus"]) for task in tasks] == [("0", "6"), ("1", "6")] * 2
    (srun,) = submitted.calls("srun")
    assert srun[1:6] == [
        *("--ntasks=4", "--ntasks-per-node=2", "--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=300")
    ]
    assert submitted.requeued() == 0


@pytest.mark.parametrize(
    "ends", [["75"] * 4, ["SIGKILL", "134", "134", "SIGABRT"], ["76", "0", "0", "0"], ["0", "0", "0", "1"]]
)
def test_an_interrupted_run_or_a_lost_task_is_queued_again(submitted: Cluster, ends: list[str]) -> None:
    assert submitted.job([ends]).returncode == 75
    assert submitted.requeued() == 1
    assert submitted.job([ends, ["0"] * 4]).returncode == 0
    assert submitted.requeued() == 1


def test_a_task_that_leaves_no_word_counts_as_lost(submitted: Cluster) -> None:
    (submitted.checkout / "scripts" / "launch.py").write_text("raise SystemExit(0)")  # no status is written
    done = submitted.job([["0"] * 4])
    assert done.returncode == 75 and "lost lost lost lost" in done.stdout
    assert submitted.requeued() == 1


def test_what_an_earlier_start_left_does_not_count(submitted: Cluster) -> None:
    submitted.job([["75", "0", "0", "0"]])
    (submitted.checkout / "scripts" / "launch.py").write_text("raise SystemExit(0)")
    assert "lost lost lost lost" in submitted.job([["0"] * 4]).stdout


def test_the_jobs_shell_survives_the_signal_that_makes_its_tasks_save(submitted: Cluster) -> None:
    assert submitted.job([["shell 75", "75", "75", "75"]]).returncode == 75
    assert submitted.requeued() == 1


@pytest.mark.parametrize("status", [2, 71])
def test_a_bad_input_and_a_lack_of_memory_end_the_job_even_when_peers_abort(submitted: Cluster, status: int) -> None:
    done = submitted.job([["SIGABRT", "134", str(status), "134"]])
    assert done.returncode == status and f"134 134 {status} 134" in done.stdout
    assert submitted.requeued() == 0


def test_starts_without_progress_are_bounded(submitted: Cluster) -> None:
    plan = [["step 10 75"] * 4, *[["134"] * 4] * 2, ["step 20 75"] * 4, *[["134"] * 4] * 5]
    statuses: list[int] = []
    while not statuses or statuses[-1] == 75:
        done = submitted.job(plan)
        statuses.append(done.returncode)
    # The start that led to step 20 set the count back; then three more starts led to nothing.
    assert statuses == [75] * 6 + [1]
    assert "3 starts have not led past step 20" in done.stderr
    assert submitted.requeued() == 6


def test_a_stopped_job_is_not_queued_again(submitted: Cluster) -> None:
    submitted.answer(RUNNING.replace("Requeue=1", "Requeue=0"))
    done = submitted.job([["75"] * 4])
    assert done.returncode == 75 and "stopped" in done.stdout
    assert submitted.requeued() == 0


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED"])
def test_a_job_that_slurm_is_ending_is_left_to_it(submitted: Cluster, state: str) -> None:
    submitted.answer(RUNNING.replace("RUNNING", state))
    assert submitted.job([["75"] * 4]).returncode == 75
    assert submitted.requeued() == 0


def test_slurm_is_asked_again_when_it_does_not_answer(submitted: Cluster) -> None:
    submitted.answer("error", "error", RUNNING)
    (submitted.place / "scontrol-requeue").write_text("error\nqueued")
    assert submitted.job([["75"] * 4]).returncode == 75
    assert submitted.requeued() == 2
    assert submitted.calls("sleep") == [["sleep", "30"]] * 3
    submitted.answer("error")
    done = submitted.job([["75"] * 4] * 2)
    assert done.returncode == 1 and "4711" in done.stderr
