# SPDX-License-Identifier: Apache-2.0
"""Tiny training runs for tests: a data set of real sentences, and `train.py` in processes of its own.

A test module that says `pytest_plugins = ["tests.runs"]` has the fixtures. As a program, this file is the other side of
`Runs.start(hold=...)` and of `Runs.train`. (PYTEST_DONT_REWRITE: it is imported before pytest registers it.)
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import pydoc_data.topics
import resource
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 12
VOCABULARY = 500
# Dropout, micro-batches and intervals of which none divides another, so that an interruption falls inside all of them.
TINY: dict[str, Any] = {
    "model.vocab_size": VOCABULARY,
    "model.embedding_size": 16,
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.max_position_embeddings": 48,
    "model.hidden_dropout_prob": 0.1,
    "model.attention_probs_dropout_prob": 0.1,
    "data.sequence_length": 48,
    "data.examples_per_row": 3,
    "masking.slots": 10,
    "batch.size": 8,
    "batch.unit": "rows",
    "batch.rows_per_device": 4,
    "optimizer.warmup_steps": 2,
    "steps": STEPS,
    "log.every": 3,
    "eval.every": 5,
    "eval.rows": 10,
    "checkpoint.every": 4,
    "checkpoint.keep": 2,
}


_FAST_TO_COMPILE = "--xla_backend_optimization_level=0"
CPU = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": _FAST_TO_COMPILE}  # one device
ACCELERATOR = {
    "JAX_PLATFORMS": "standin",
    "STANDIN_DEVICES": "1",
    "PYTHONPATH": os.pathsep.join(
        [str(ROOT / "tests" / "stand_ins" / "accelerator"), *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
    "XLA_FLAGS": _FAST_TO_COMPILE,
}


class Finished(NamedTuple):
    """A process that has ended."""

    status: int
    out: str
    err: str


# --- the data set -----------------------------------------------------------------------------------------------------


def write_text(path: pathlib.Path, documents: slice, words: int = 7) -> pathlib.Path:
    """Writes some of the documentation's topics as text: `words` words make a sentence, one a line."""
    texts = []
    for _, topic in sorted(pydoc_data.topics.topics.items())[documents]:
        tokens = topic[:6000].split()
        texts.append("\n".join(" ".join(tokens[i : i + words]) + "." for i in range(0, len(tokens), words)))
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def make_vocabulary(source: pathlib.Path, out: pathlib.Path, size: int = VOCABULARY) -> pathlib.Path:
    """Trains a vocabulary on a text; gives its directory."""
    _pretrain_data("vocab", "--source", source, "--lines", "sentence", "--size", size, "--out", out)
    return out


def make_data(source: pathlib.Path, vocabulary: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Builds a data set of a text; gives its directory."""
    fraction = ("--validation-fraction", 0.2)
    _pretrain_data("build", "--source", source, "--lines", "sentence", "--vocab", vocabulary, "--out", out, *fraction)
    return out


def _pretrain_data(*arguments: object) -> None:
    command = [sys.executable, "-m", "pretrain_data", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


# --- processes --------------------------------------------------------------------------------------------------------


class Runs:
    """Starts `train.py` with the tiny model; compiled programs are shared by all processes of a session.

    Args:
      directory: for the cache.
      data: the data set that runs use unless told otherwise; None where they are always told.
      platform: variables that say what they run on.
    """

    def __init__(self, directory: pathlib.Path, data: pathlib.Path | None, platform: dict[str, str] = CPU):
        self.data = data
        self.environment = {
            **platform,
            "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        self._server: subprocess.Popen[str] | None = None
        self._directory, self._requests = directory, 0

    def arguments(self, workdir: pathlib.Path, fields: dict[str, Any] | None = None) -> list[str]:
        """Flags of the tiny run, some fields changed."""
        values = TINY | {"data.path": self.data} | (fields or {})
        flags = [f"--config.{name}={value}" for name, value in values.items()]
        return ["--config=configs/quickstart.py", f"--workdir={workdir}", *flags]

    def together(self, arguments: list[str], processes: int) -> list[subprocess.Popen[str]]:
        """Starts the processes of one run, which find each other by a free port of this machine."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
        return [self.start([*arguments, *flags, f"--process={i}"]) for i in range(processes)]

    def start(self, arguments: list[str], hold: str = "") -> subprocess.Popen[str]:
        """Starts a fresh Python process.

        Args:
          arguments: of train.py.
          hold: places where the process says "held PLACE" and waits for a line of input, separated by commas:
            `prepare:0` is before the step is compiled, `step:7` is before the eighth step, `save:8` is while the save
            of step 8 is under way, and `commit:8` is when all its files are written and the directory is about to get
            its name.
        """
        program = ["train.py"] if not hold else ["tests/runs.py", "hold", hold]
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=ROOT,
            env=os.environ | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> Finished:
        """Waits for a started process."""
        out, err = process.communicate()
        return Finished(process.returncode, out, err)

    def train(self, arguments: list[str], **circumstances: Any) -> Finished:
        """Runs train.py, see `call`."""
        return self.call("train.py", arguments, **circumstances)

    def call(
        self,
        program: str,
        arguments: list[str],
        *,
        devices: int = 1,
        largest_file: int | None = None,
        more_memory: int | None = None,
        poison: tuple[int, int] | None = None,
    ) -> Finished:
        """Runs a program in a process forked from one that has imported everything, which saves seconds.

        Args:
          program: a file of the repository.
          arguments: of the program.
          devices: how many there are.
          largest_file: bytes that the process may write into a file.
          more_memory: bytes of address space that it may take when it is about to train.
          poison: first row of the stream that is damaged, and the first after it that is not; see `poisoned`.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "tests/runs.py", "serve"],
                cwd=ROOT,
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self._requests += 1
        out, err = (self._directory / f"{self._requests}.{name}" for name in ("out", "err"))
        assert self._server.stdin is not None and self._server.stdout is not None
        request = [program, arguments, str(out), str(err), devices, largest_file, more_memory, poison]
        print(json.dumps(request), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        return Finished(status, out.read_text(), err.read_text())

    def close(self) -> None:
        """Ends the process that `call` forks from."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()


def progress(step: int) -> dict[str, Any]:
    """What the host knows of a state after a step, as `Checkpoints.save` takes it."""
    return {"step": step, "position": 8 * step, "interval": None}


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Reads a process's output up to the line that holds `text`; gives all that was read."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"the process ended without saying {text!r}:\n{read}\n{process.communicate()[1]}")


def release(process: subprocess.Popen[str]) -> None:
    """Lets a held process go on."""
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


def records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What a run recorded, without what the clock had a part in and without the marks of resumption."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clocked = ("start", "resume", "progress")
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines if line["kind"] not in clocked]


def poisoned(begin: int, end: int, slots: int | None = None) -> Callable[[Any, Any], Any]:
    """`Leg.batch` where rows `begin` to `end` of the stream hold ids that the vocabulary does not have.

    So might a damaged file. Loss and gradient are not finite then. With `slots`, only rows of that length.
    """
    from albert_jax.training.legs import Leg

    make = Leg.batch

    def batch(self: Leg, draw: Any) -> Any:
        made = make(self, draw)
        if slots not in (None, made.input_ids.shape[1]):
            return made
        ids = np.where((made.row_ids >= begin) & (made.row_ids < end), VOCABULARY + 7, 0)[:, None] + made.input_ids
        return made._replace(input_ids=ids.astype(np.int32))

    return batch


def arrays(workdir: pathlib.Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by Orbax alone, on whatever devices it was saved."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("params", "rest"):
            directory = workdir.absolute() / "checkpoints" / str(step) / item
            described = checkpointer.metadata(directory).item_metadata.tree
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), described)
            tree[item] = checkpointer.restore(directory, target)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The text of the data set."""
    return write_text(tmp_path_factory.mktemp("text") / "topics.txt", slice(0, 60))


@pytest.fixture(scope="session")
def vocabulary(text: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The directory of the vocabulary."""
    return make_vocabulary(text, tmp_path_factory.mktemp("vocabulary") / "v")


@pytest.fixture(scope="session")
def data(text: pathlib.Path, vocabulary: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The data set."""
    return make_data(text, vocabulary, tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="session")
def runs(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Starts training processes."""
    started = Runs(tmp_path_factory.mktemp("runs"), data)
    yield started
    started.close()


@pytest.fixture(scope="session")
def accelerator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Starts processes on the stand-in for an accelerator, with one device unless told otherwise."""
    if importlib.util.find_spec("lammps_jax_pjrt_cpu") is None:
        pytest.skip("lammps-jax-pjrt-cpu is not installed: nothing is tried on a device that is no CPU")
    started = Runs(tmp_path_factory.mktemp("accelerator"), None, ACCELERATOR)
    yield started
    started.close()


@pytest.fixture(scope="session")
def straight(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of the tiny run, trained without interruption by a plain `python train.py`; not to be changed."""
    workdir = tmp_path_factory.mktemp("straight") / "w"
    finished = runs.finish(runs.start(runs.arguments(workdir)))
    assert finished.status == 0, finished.err
    return workdir


# --- the other side ---------------------------------------------------------------------------------------------------


def _run(program: str, arguments: list[str]) -> None:
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def _train(arguments: list[str]) -> None:
    _run("train.py", arguments)


def _hold(places: list[str]) -> None:
    """Makes the coming run wait for a line of input at each of the places."""
    import orbax.checkpoint as ocp

    from albert_jax.training import loop

    def reached(kind: str, number: int | str) -> None:
        if f"{kind}:{number}" in places:
            print(f"held {kind}:{number}", flush=True)
            sys.stdin.readline()

    prepare, take_step, save = loop.Run._prepare, loop.Run._take_step, ocp.AsyncCheckpointer.save

    def held_prepare(self: Any, leg: Any) -> None:
        reached("prepare", self.step)
        prepare(self, leg)

    def held_take_step(self: Any, *args: Any) -> Any:
        reached("step", self.step)
        return take_step(self, *args)

    def held_save(self: Any, directory: Any, *args: Any, **kwargs: Any) -> None:
        save(self, directory, *args, **kwargs)
        reached("save", pathlib.Path(directory).name)

    def held_rename(source: Any, *args: Any, **kwargs: Any) -> Any:
        reached("commit", pathlib.Path(source).name.removesuffix(".orbax-checkpoint-tmp"))
        return rename(source, *args, **kwargs)

    rename, os.rename = os.rename, held_rename  # type: ignore[assignment]
    loop.Run._prepare = held_prepare  # type: ignore[method-assign]
    loop.Run._take_step, ocp.AsyncCheckpointer.save = held_take_step, held_save  # type: ignore[method-assign,assignment]


def _limit_memory(more: int) -> None:
    """Makes the coming run end at the limit of its address space: from the first step on, it may take so much more."""
    from albert_jax.training import loop

    take_step = loop.Run._take_step

    def limited(self: Any, *args: Any) -> Any:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            limit = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return take_step(self, *args)

    loop.Run._take_step = limited  # type: ignore[method-assign,assignment]


def _serve() -> None:
    """Forks a process for each request; JAX is imported here but not started, so that it may be."""
    import albert_jax.training.loop  # noqa: F401
    from albert_jax.training.legs import Leg

    for line in sys.stdin:
        program, arguments, out, err, devices, largest_file, more_memory, poison = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                for path, descriptor in ((out, 1), (err, 2)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                if devices > 1:
                    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
                    os.environ["STANDIN_DEVICES"] = str(devices)
                if largest_file is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
                if more_memory is not None:
                    _limit_memory(more_memory)
                if poison is not None:
                    Leg.batch = poisoned(*poison)  # type: ignore[method-assign,assignment]
                status = exit_status(functools.partial(_run, program, arguments))
            finally:
                with contextlib.suppress(OSError):
                    sys.stdout.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def exit_status(program: Callable[[], object]) -> int:
    """The exit status of a program that is called, by Python's rules."""
    import traceback

    try:
        program()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "serve":
        _serve()
    else:
        _hold(sys.argv[2].split(","))
        _train(sys.argv[3:])
