# SPDX-License-Identifier: Apache-2.0
"""scripts/tpu_pod.sh, with a gcloud that records its arguments, answers by a script, and can be workers' ssh.

The script lies in a repository of its own, with a small program in the place of train.py, so that what is committed
here does not matter. `sleep` returns at once.
"""

import contextlib
import json
import os
import pathlib
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent
GCLOUD = (
    f"#!{sys.executable} -SE"
    + """
import json, os, pathlib, shutil, signal, subprocess, sys

place, arguments = pathlib.Path(__file__).parent.parent, sys.argv[1:]
with (place / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
words = [word for word in arguments if not word.startswith("-")]
verb = "checkpoints" if words[0] == "storage" else {
    "queued-resources describe": "queue", "tpu-vm describe": "node"}.get(" ".join(words[2:4]), words[3])
command = arguments[-1].removeprefix("--command=")
if verb == "ssh":
    verb = command.split(" on-worker ")[1].split()[0].strip(";")
path = place / "answers"
answers = json.loads(path.read_text())
answer = answers.get(verb, [""])[0]
if len(answers.get(verb, [])) > 1:
    answers[verb].pop(0)
    path.write_text(json.dumps(answers))
if answer != "real":
    status, out, err = answer if isinstance(answer, list) else (0, answer, "")
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(status)
worst = 0
for home in sorted(place.glob("worker-*")):
    if verb == "scp":
        shutil.copy(words[4], home / words[5].partition(":")[2])
        continue
    sent = " ".join(command.split(" "))  # as gcloud and ssh take it apart and put it together
    environment = os.environ | {"HOME": str(home)}
    shell = subprocess.Popen(["bash", "-c", sent], env=environment, cwd=home, start_new_session=True)
    worst = shell.wait() or worst
    try:
        os.killpg(shell.pid, signal.SIGHUP)  # the connection ends
    except ProcessLookupError:
        pass
sys.exit(worst)
"""
)
# With a file `until-ended`, it waits for the workers' jobs.
SLEEP = """#!/bin/bash
echo "$1" >>PLACE/sleeps
[ -e PLACE/until-ended ] || exit 0
for pid in $(cat PLACE/worker-*/albert_jax/job/pid); do timeout 60 tail --pid="$pid" -s 0.1 -f /dev/null; done
"""
# On this machine it notes in CHECKED what it is to check. What a start on a worker does is the next word of ~/plan: a
# status, SIGxxx, or `wait`, which saves on SIGTERM.
TRAIN = """
import json, os, pathlib, signal, sys

def saved(number, frame):
    print("saved", flush=True)
    os._exit(75)

if sys.argv[1].startswith("--check="):
    pathlib.Path(os.environ["CHECKED"]).write_text(json.dumps(sys.argv[1:]))
    sys.exit()
home = pathlib.Path.home()
signal.signal(signal.SIGTERM, saved)
with (home / "started").open("a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("SOME"), os.getpid()]) + "\\n")
words = (home / "plan").read_text().split()
word = words[len((home / "started").read_text().splitlines()) - 1]
print("said", word, flush=True)
if word == "wait":
    (home / "ready").write_text("ready")
    while True:
        signal.pause()
if word.startswith("SIG"):
    os.kill(os.getpid(), signal.Signals[word])
sys.exit(int(word))
"""
# Stands for pip, which brings uv, which makes an environment.
PYTHON3 = """#!/bin/bash
echo "python3 $*" >>"$HOME/installed"
mkdir -p uv/bin
cat >uv/bin/uv <<'END'
#!/bin/bash
echo "uv $*" >>"$HOME/installed"
mkdir -p venv/bin
ln -sf PYTHON venv/bin/python
END
chmod +x uv/bin/uv
"""
WHERE = ("--name=pod", "--zone=us-east5-b")
SLICE = (*WHERE, "--accelerator=v6e-16", "--spot")
FLAGS = ("--", "--config=configs/large.py", "--workdir=gs://bucket/run")
ABSENT = [1, "", "ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource 'projects/p/...' was not found\n"]
BROKEN = [1, "", "ERROR: (gcloud) there has been a problem\n"]


def says(*states: str) -> str:
    """What workers in these states print."""
    return "".join(f"albert_jax worker-{i} {state}\n" for i, state in enumerate(states))


def steps(*numbers: int) -> str:
    """What `gcloud storage ls` prints of a workdir with these checkpoints."""
    return "".join(f"gs://bucket/run/checkpoints/{number}/\n" for number in ("", *numbers)).replace("//\n", "/\n")


class Pod:
    """Runs scripts/tpu_pod.sh beside the false programs, and tells what they were asked for."""

    def __init__(self, place: pathlib.Path, repository: pathlib.Path):
        self.place, self.repository = place, repository
        (place / "bin").mkdir()
        self.program("gcloud", GCLOUD)
        self.program("sleep", SLEEP.replace("PLACE", str(place)))
        self.answer()

    def program(self, name: str, text: str) -> None:
        """Puts a program on the PATH."""
        path = self.place / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def answer(self, **answers: list[Any]) -> None:
        """Sets gcloud's answers, in turn, the last one for ever; what is not named succeeds and says nothing."""
        (self.place / "answers").write_text(json.dumps(answers))

    def workers(self, *plans: str) -> list[pathlib.Path]:
        """Makes workers' home directories; each plan says what the starts of train.py on it do."""
        homes = [self.place / f"worker-{i}" for i in range(len(plans))]
        for home, plan in zip(homes, plans, strict=True):
            home.mkdir()
            (home / "plan").write_text(plan)
            os.mkfifo(home / "ready")
        self.program("python3", PYTHON3.replace("PYTHON", sys.executable))
        return homes

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs it."""
        environment = os.environ | {"PATH": f"{self.place / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(self.place)}
        environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "CHECKED": str(self.place / "checked")}
        command = ["bash", str(self.repository / "scripts" / "tpu_pod.sh"), *arguments]
        return subprocess.run(command, env=environment, cwd=self.place, capture_output=True, text=True, timeout=120)

    def calls(self) -> list[list[str]]:
        """What gcloud was asked, all of it."""
        path = self.place / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def deeds(self) -> list[str]:
        """What gcloud was asked to do, in a word each, without what only looks."""
        words = []
        for call in self.calls():
            if "ssh" in call:
                words.append(call[-1].split(" on-worker ")[1].split()[0].strip(";"))
            elif "tpus" in call:
                words.append(call[3])
        return [word for word in words if word in ("create", "delete", "scp", "install", "start", "stop", "log")]

    def sleeps(self) -> list[int]:
        """All pauses, in seconds."""
        path = self.place / "sleeps"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A git repository with the script, what it needs on a worker, and a small train.py."""
    repository = tmp_path_factory.mktemp("a repository")
    (repository / "scripts").mkdir()
    for name in ("tpu_pod.sh", "launch.py"):
        shutil.copy(ROOT / "scripts" / name, repository / "scripts" / name)
    (repository / "train.py").write_text(TRAIN)
    (repository / "pyproject.toml").write_text("[project]\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(repository), *arguments], check=True)
    return repository


@pytest.fixture
def pod(tmp_path: pathlib.Path, repository: pathlib.Path) -> Iterator[Pod]:
    """The script with its false programs; what still runs on the workers at the end is ended."""
    pod = Pod(tmp_path, repository)
    yield pod
    for path in tmp_path.glob("worker-*/albert_jax/job/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_slice_is_asked_for_with_all_that_was_given(pod: Pod) -> None:
    pod.answer(queue=["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], node=["CREATING", "READY"])
    more = ("--project=p", "--service-account=a@b", "--create-flag=--labels=a=b,c=d", "--create-flag=--internal-ips")
    done = pod.run("create", *SLICE, *more)
    assert done.returncode == 0, done.stderr
    assert pod.calls()[0] == [
        *("compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"),
        *("--zone=us-east5-b", "--project=p", "--quiet"),
        *("--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot", "--service-account=a@b"),
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        *("--labels=a=b,c=d", "--internal-ips"),
    ]
    assert pod.sleeps() == [30] * 4


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_runtime_fits_the_accelerator(pod: Pod, accelerator: str, runtime: str) -> None:
    printed = pod.run("create", *WHERE, f"--accelerator={accelerator}", "--dry-run").stdout
    assert f"--runtime-version={runtime} " in printed and "--spot" not in printed
    printed = pod.run("create", *WHERE, f"--accelerator={accelerator}", "--runtime=mine", "--dry-run").stdout
    assert "--runtime-version=mine " in printed


@pytest.mark.parametrize("name", ["v5e-16", "v5litepod-16"])
def test_gcloud_is_given_googles_name_of_a_slice(pod: Pod, name: str) -> None:
    printed = pod.run("create", *WHERE, f"--accelerator={name}", "--dry-run").stdout
    assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite " in printed


@pytest.mark.parametrize(("path", "look"), [("gs://bucket/data", "config"), ("/data", "fields")])
def test_flags_are_checked_before_anything_is_created_or_launched(pod: Pod, path: str, look: str) -> None:
    flags = (*FLAGS, f"--config.data.path={path}")
    for arguments in (("watch", *SLICE), ("launch", *WHERE)):
        assert pod.run(*arguments, "--dry-run", *flags).returncode == 0
        checked = pod.place / "checked"
        assert json.loads(checked.read_text()) == [f"--check={look}", *flags[1:]]
        checked.unlink()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_train_py_refuses_is_not_launched(pod: Pod, tmp_path: pathlib.Path, dry: tuple[str, ...]) -> None:
    shutil.copytree(pod.repository, tmp_path / "repository")
    shutil.copy(ROOT / "train.py", tmp_path / "repository" / "train.py")
    pod.repository = tmp_path / "repository"
    flags = ("--", f"--config={ROOT}/configs/base.py", "--workdir=gs://b/w", "--config.data.pth=gs://b/data")
    done = pod.run("watch", *SLICE, *dry, *flags)
    assert (done.returncode, done.stdout, pod.calls()) == (2, "", [])
    assert done.stderr == "error: the config has no field 'config.data.pth'; the nearest is 'config.data.path'.\n"


ACTIONS: dict[str, tuple[str, ...]] = {
    "create": SLICE,
    "install": (*WHERE, "--connect-flag=--internal-ip"),
    "launch": (*WHERE, "--env=A=it's b", "--project=p", *FLAGS, "--config.data.path=gs://b/a  b"),
    "status": WHERE,
    "logs": (*WHERE, "--worker=3", "--", "-n", "500"),
    "stop": WHERE,
    "delete": WHERE,
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_dry_run_prints_the_commands_that_a_run_gives(pod: Pod, action: str) -> None:
    arguments = ACTIONS[action]
    printed = (
        pod.run(action, *arguments, "--dry-run")
        if "--" not in arguments
        else pod.run(action, *arguments[: arguments.index("--")], "--dry-run", *arguments[arguments.index("--") :])
    )
    assert printed.returncode == 0, printed.stderr
    assert pod.calls() == []
    pod.answer(queue=[ABSENT] if action == "delete" else ["ACTIVE"], node=["READY"], state=[says("none")])
    done = pod.run(action, *arguments)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in printed.stdout.splitlines()]
    wanted = [command[1:] for command in commands if command[0] == "gcloud"]
    called = pod.calls()
    if action == "delete":  # a real run also looks whether the slice has gone
        called = called[:1]
    assert called == wanted
    assert wanted


def test_a_dry_run_of_watch_prints_all_that_it_may_do(pod: Pod) -> None:
    printed = pod.run("watch", *SLICE, "--dry-run", *FLAGS)
    assert printed.returncode == 0, printed.stderr
    commands = [shlex.split(line)[1:] for line in printed.stdout.splitlines() if line.startswith("gcloud ")]
    pod.answer(
        queue=[ABSENT, "ACTIVE", "ACTIVE", "ACTIVE", ABSENT, "ACTIVE"],
        node=["READY", "READY", "PREEMPTED", "READY"],
        state=[says("none"), says("running"), says("exited 0")],
    )
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert sorted(map(str, commands)) == sorted({str(call) for call in pod.calls()})


def test_the_commit_is_cloned_where_a_repository_is_named(pod: Pod, repository: pathlib.Path) -> None:
    pod.run("install", *WHERE, "--repository=https://host/a repository.git")
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    (call,) = pod.calls()
    words = shlex.split(call[-1].removeprefix("--command="))
    assert words[3:9] == ["&&", "git", "clone", "--quiet", "https://host/a repository.git", "albert_jax/new"]
    assert words[words.index("checkout") + 2] == head.strip()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "''"),
        (("begin", *WHERE), "'begin'"),
        (("create", *SLICE, "--spot=1"), "'--spot=1'"),
        (("create", "--zone=z", "--accelerator=v6e-8"), "--name"),
        (("create", "--name=n", "--accelerator=v6e-8"), "--zone"),
        (("create", *WHERE), "--accelerator"),
        (("create", *WHERE, "--accelerator=v9-8"), "did you mean v4-8?"),
        (("create", *WHERE, "--accelerator=v5e:4x4"), "v5e:4x4"),
        (("create", *SLICE, "--patience=soon"), "'soon'"),
        (("watch", *SLICE, "--restarts=-1", *FLAGS), "'-1'"),
        (("launch", *WHERE), "train.py"),
        (("launch", *WHERE, "--", "--workdir=runs/x"), "'runs/x'"),
        (("watch", *SLICE, "--", "--config=c"), "--workdir=''"),
    ],
)
def test_bad_input_is_named(pod: Pod, arguments: tuple[str, ...], named: str) -> None:
    done = pod.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and named in done.stderr and len(done.stderr.splitlines()) == 1
    assert pod.calls() == []


def test_nothing_is_launched_beside_a_running_job(pod: Pod) -> None:
    pod.answer(state=[says("running", "exited 134")])
    done = pod.run("launch", *WHERE, *FLAGS)
    assert done.returncode == 2 and "partly" in done.stderr
    assert pod.deeds() == []


def test_what_fails_is_tried_again_with_growing_pauses(pod: Pod) -> None:
    pod.answer(start=[BROKEN, BROKEN, ""], state=[says("none")])
    assert pod.run("launch", *WHERE, *FLAGS).returncode == 0
    assert pod.sleeps() == [15, 30]
    pod.answer(start=[BROKEN], state=[says("none")])
    assert pod.run("launch", *WHERE, *FLAGS).returncode == 1
    assert pod.sleeps()[2:] == [15, 30, 60, 120]
    assert pod.deeds() == ["start"] * 8


def test_a_slice_that_never_comes_is_given_up(pod: Pod) -> None:
    pod.answer(queue=["WAITING_FOR_RESOURCES"])
    done = pod.run("create", *SLICE, "--patience=1")
    assert done.returncode == 1 and "1 hours" in done.stderr
    assert sum(pod.sleeps()) == 3600
    pod.answer(queue=["FAILED"])
    done = pod.run("create", *SLICE)
    assert done.returncode == 1 and "GONE" in done.stderr


def test_a_slice_that_does_not_go_is_told(pod: Pod) -> None:
    pod.answer(queue=["DELETING"])
    assert pod.run("delete", *WHERE).returncode == 1
    assert pod.deeds() == ["delete"] and "--force" in pod.calls()[0]  # its node too


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("gcloud") is None, reason="no gcloud here: its own opinion of the commands is not asked"
)
def test_gcloud_knows_all_commands_and_flags(pod: Pod, tmp_path: pathlib.Path) -> None:
    flags = ("--project=p", "--service-account=a@b", "--create-flag=--internal-ips", "--connect-flag=--internal-ip")
    printed = pod.run("watch", *SLICE, *flags, "--dry-run", *FLAGS).stdout
    # Without an account, gcloud gets no further than the reading of its command line.
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path / "nobody"), "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CLOUDSDK_", "GOOGLE_"))} | nobody
    for line in [line for line in printed.splitlines() if line.startswith("gcloud ")]:
        done = subprocess.run(shlex.split(line), env=environment, capture_output=True, text=True)
        assert "not currently have an active account" in done.stderr, line + "\n" + done.stderr


# --- watch ------------------------------------------------------------------------------------------------------------

START = ["scp", "install", "start"]


def test_watch_makes_everything_and_ends_with_the_run(pod: Pod) -> None:
    pod.answer(
        queue=[ABSENT, "WAITING_FOR_RESOURCES", "ACTIVE"],
        node=["READY"],
        state=[
            says("none", "none"),
            says("running", "running"),
            says("running", "exited 0"),
            says("exited 0", "exited 0"),
        ],
    )
    done = pod.run("watch", *SLICE, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert pod.deeds() == ["create", *START]


@pytest.mark.parametrize(
    ("queue", "node"),
    [
        (["ACTIVE"] * 3 + [ABSENT, "ACTIVE"], ["READY", "PREEMPTED", "READY"]),
        (["ACTIVE"] * 3 + [ABSENT, "ACTIVE"], ["READY", "TERMINATED", "READY"]),
        (["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", ABSENT, "ACTIVE"], ["READY"]),
        (["ACTIVE", "ACTIVE", "SUSPENDED", "DELETING", ABSENT, "ACTIVE"], ["READY"]),
        (["ACTIVE", "ACTIVE", "FAILED", ABSENT, "ACTIVE"], ["READY"]),
        (["ACTIVE", "ACTIVE", ABSENT, ABSENT, "ACTIVE"], ["READY"]),
    ],
)
def test_a_slice_that_is_taken_away_is_asked_for_again(pod: Pod, queue: list[Any], node: list[Any]) -> None:
    pod.answer(queue=queue, node=node, state=[says("running"), says("none"), says("running"), says("exited 0")])
    done = pod.run("watch", *SLICE, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert pod.deeds() == ["delete", "create", *START]


@pytest.mark.parametrize(
    "ends", [("exited 75", "exited 75"), ("exited 137", "exited 134"), ("exited 76", "exited lost")]
)
def test_a_run_that_was_interrupted_or_lost_a_peer_is_started_again(pod: Pod, ends: tuple[str, str]) -> None:
    pod.answer(queue=["ACTIVE"], node=["READY"], state=[says("running"), says(*ends), says("exited 0", "exited 0")])
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert pod.deeds() == ["start"]


@pytest.mark.parametrize("status", [2, 71])
def test_a_bad_input_and_a_lack_of_memory_end_watch_and_show_the_log(pod: Pod, status: int) -> None:
    ended = says("exited 134", f"exited {status}")
    pod.answer(queue=["ACTIVE"], node=["READY"], state=[ended], log=["error: no such recipe\n"])
    done = pod.run("watch", *SLICE, *FLAGS)
    assert done.returncode == 2
    assert "error: no such recipe" in done.stdout and "refuses its input" in done.stderr
    assert pod.deeds() == ["log"]


def test_a_stopped_run_is_not_started_again(pod: Pod) -> None:
    pod.answer(queue=["ACTIVE"], node=["READY"], state=[says("running", "running"), says("stopped 75", "stopped 75")])
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 75
    assert pod.deeds() == []


def test_starts_without_progress_are_bounded_and_ever_rarer(pod: Pod) -> None:
    checkpoints = [steps(20), steps(20), steps(20, 40), steps(20, 40)]
    pod.answer(queue=["ACTIVE"], node=["READY"], state=[says("exited 134")], checkpoints=checkpoints)
    done = pod.run("watch", *SLICE, "--restarts=7", *FLAGS)
    assert done.returncode == 1
    assert "7 starts have not led past step 40" in done.stderr
    assert pod.deeds() == ["start"] * 8  # one that led from 20 to 40, and seven
    assert [pause for pause in pod.sleeps() if pause != 30] == [120, 270, 480, 750, 900]


def test_a_slice_that_cannot_be_had_is_asked_for_again_later(pod: Pod) -> None:
    pod.answer(
        queue=[ABSENT, ABSENT, ABSENT, ABSENT, "ACTIVE"],
        create=[BROKEN] * 5 + [""],
        node=["READY"],
        state=[says("none"), says("exited 0")],
    )
    done = pod.run("watch", *SLICE, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert pod.deeds() == ["create"] * 5 + ["delete", "create", *START]


def test_a_slice_that_can_never_be_had_ends_watch(pod: Pod) -> None:
    pod.answer(queue=[ABSENT], create=[BROKEN])
    done = pod.run("watch", *SLICE, "--restarts=2", *FLAGS)
    assert done.returncode == 1 and "2 starts" in done.stderr
    assert pod.deeds().count("create") == 15


def test_a_slice_is_not_asked_for_twice_when_the_answer_was_lost(pod: Pod) -> None:
    pod.answer(queue=[ABSENT, "ACTIVE"], create=[BROKEN], node=["READY"], state=[says("none"), says("exited 0")])
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert pod.deeds() == ["create"] * 5 + START
    assert pod.run("create", *SLICE).returncode == 0


def test_workers_out_of_reach_are_waited_for_and_then_replaced(pod: Pod) -> None:
    seldom = [BROKEN] * 10 + [says("running")] + [BROKEN] * 10
    pod.answer(queue=["ACTIVE"], node=["READY"], state=[*seldom, says("exited 0")])
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert pod.deeds() == []
    pod.answer(
        queue=["ACTIVE"] * 12 + [ABSENT, "ACTIVE"],
        node=["READY"],
        state=[BROKEN] * 11 + [says("none"), says("exited 0")],
    )
    done = pod.run("watch", *SLICE, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert pod.deeds() == ["delete", "create", *START]


def test_workers_that_hang_after_a_peers_end_are_started_again(pod: Pod) -> None:
    pod.answer(queue=["ACTIVE"], node=["READY"], state=[says("exited 137", "running")] * 11 + [says("exited 0")])
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert pod.deeds() == ["start"]


def test_a_cloud_that_does_not_answer_changes_nothing(pod: Pod) -> None:
    pod.answer(queue=[BROKEN, BROKEN, "ACTIVE"], node=[BROKEN, "READY"], state=[says("running"), says("exited 0")])
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert pod.deeds() == []
    pod.answer(queue=[BROKEN])
    assert pod.run("watch", *SLICE, "--patience=0", *FLAGS).returncode == 1
    assert pod.deeds() == []


def test_a_failed_installation_is_tried_again(pod: Pod) -> None:
    pod.answer(
        queue=["ACTIVE"], node=["READY"], install=[BROKEN] * 5 + [""], state=[says("none")] * 2 + [says("exited 0")]
    )
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    assert pod.deeds() == ["scp", *["install"] * 5, *START]


# --- on workers -------------------------------------------------------------------------------------------------------

REAL: dict[str, list[Any]] = {"queue": ["ACTIVE"], "node": ["READY"]} | {
    name: ["real"] for name in ("scp", "install", "start", "state", "stop", "log")
}
HARD = ("--config.a=two  spaces", '--config.b=it\'s "$HOME" * `x` \\ & ; é', "--config.c=", "--config.d=a\nb")


def wait_for_ready(home: pathlib.Path) -> None:
    """Waits for a worker's train.py to be ready for signals."""
    descriptor = os.open(home / "ready", os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([descriptor], [], [], 60)[0], (home / "albert_jax/job/log").read_text()
    os.close(descriptor)


def started(home: pathlib.Path) -> list[Any]:
    """What each train.py of a worker was given: its arguments, the variable SOME, its process id."""
    return [json.loads(line) for line in (home / "started").read_text().splitlines()]


def test_a_run_on_two_workers_goes_on_after_an_abort(pod: Pod) -> None:
    homes = pod.workers("SIGABRT 75 0", "76 75 0")
    pod.answer(**REAL)
    (pod.place / "until-ended").touch()
    done = pod.run("watch", *SLICE, "--env=SOME=a b", *FLAGS, *HARD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pod.deeds() == [*START, "start", "start"]
    for home in homes:
        assert [run[:2] for run in started(home)] == [[[*FLAGS[1:], *HARD], "a b"]] * 3
        assert (home / "installed").read_text().splitlines() == [
            "python3 -m pip install --quiet --disable-pip-version-check --upgrade --target uv uv",
            "uv venv --quiet --clear --python 3.12 venv",
            "uv pip install --quiet --python venv/bin/python --editable ./code[tpu,gcs]",
        ]
    assert "failed with 134 76" in done.stdout
    log = pod.run("logs", *WHERE, "--", "-n", "1").stdout
    assert log.splitlines() == ["said 0", "said 0"]


def test_a_job_outlives_its_connection_and_is_stopped_and_saved(pod: Pod) -> None:
    homes = pod.workers("wait", "wait")
    pod.answer(**REAL)
    assert pod.run("install", *WHERE).returncode == 0
    assert pod.run("launch", *WHERE, *FLAGS).returncode == 0
    for home in homes:
        wait_for_ready(home)
    assert pod.run("status", *WHERE).stdout.count(" running\n") == 2
    refused = pod.run("launch", *WHERE, *FLAGS)
    assert refused.returncode == 2 and "running" in refused.stderr
    done = pod.run("stop", *WHERE)
    assert done.returncode == 0 and done.stdout.count(" stopped 75\n") == 2, done.stderr
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 75
    assert [len(started(home)) for home in homes] == [1, 1]
    assert pod.run("install", *WHERE).returncode == 0  # the same packages are not installed twice
    assert len((homes[0] / "installed").read_text().splitlines()) == 3


def test_a_start_ends_what_has_lost_its_peer(pod: Pod) -> None:
    (home,) = pod.workers("wait 0")
    pod.answer(**REAL)
    pod.run("install", *WHERE)
    pod.run("launch", *WHERE, *FLAGS)
    wait_for_ready(home)
    pod.answer(**REAL | {"state": [says("exited 137", "running")] * 11 + [says("exited 0")]})
    assert pod.run("watch", *SLICE, *FLAGS).returncode == 0
    first = started(home)[0]
    with pytest.raises(ProcessLookupError):
        os.kill(first[2], 0)


def test_a_reboot_is_noticed_even_if_the_process_number_is_taken(pod: Pod) -> None:
    (home,) = pod.workers("wait")
    pod.answer(**REAL)
    pod.run("install", *WHERE)
    pod.run("launch", *WHERE, *FLAGS)
    wait_for_ready(home)
    number = home / "albert_jax" / "job" / "pid"
    running, mine = number.read_text(), str(os.getpid())
    number.write_text(mine)
    assert " exited lost\n" in pod.run("status", *WHERE).stdout
    number.write_text(running)
    assert " running\n" in pod.run("status", *WHERE).stdout
