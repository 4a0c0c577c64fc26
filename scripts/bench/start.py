# SPDX-License-Identifier: Apache-2.0
"""Seconds from the start of the process to the first finished step of train.py, without and with compiled programs.

    python scripts/bench/start.py --work DIR --rounds 3

Each round starts a new run twice for each model: first with an empty compile cache (cold), then with what that start
has left (warm), by JAX's own rule for what is worth keeping. The models are a tiny one and ALBERT-base, 12 layers and
rows of 512 slots, at 2 rows a step, because what is measured is the start. Data, vocabulary and packing plans are made
before, once, in DIR, from the documentation that Python carries.
"""

import argparse
import json
import os
import pathlib
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

from goals import print_header

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCABULARY = 8000
_COMMON = ("--config.batch.size=2", "--config.batch.unit=rows", "--config.dtype=float32")
MODELS = {
    "tiny": ("--config=configs/quickstart.py", *_COMMON),
    "base": ("--config=configs/base.py", *_COMMON, f"--config.model.vocab_size={VOCABULARY}"),
}
_STARTED = "ALBERT_JAX_BENCH_STARTED"


class Start(NamedTuple):
    """Seconds after the start of the process.

    Attributes:
      ready: data are open and the first parameters made.
      compiled: the step is compiled, or was read from the cache.
      stepped: the first step has finished.
    """

    ready: float
    compiled: float
    stepped: float


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, metavar="DIR", help="for data, runs and caches")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is started")
    return parser.parse_args()


# --- the started process ----------------------------------------------------------------------------------------------


def run_until_first_step(arguments: list[str]) -> None:
    """Is train.py up to its first step, then prints a `Start` as JSON and ends the process."""
    began, marks = float(os.environ[_STARTED]), []
    from albert_jax.training import loop

    prepare, take_step = loop.Run._prepare, loop.Run._take_step

    def timed_prepare(self: Any, leg: Any) -> None:
        marks.append(time.time() - began)
        prepare(self, leg)
        marks.append(time.time() - began)

    def timed_step(self: Any, *rest: Any) -> Any:
        import jax

        take_step(self, *rest)
        jax.block_until_ready(self.state)
        print(json.dumps([*marks, time.time() - began]), flush=True)
        os._exit(0)

    loop.Run._prepare = timed_prepare  # type: ignore[method-assign]
    loop.Run._take_step = timed_step  # type: ignore[method-assign, assignment]
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")


# --- the benchmark ----------------------------------------------------------------------------------------------------


def start(name: str, work: pathlib.Path) -> Start:
    """Starts a new run of a model, whose compiled programs are in `work/compiled`."""
    shutil.rmtree(work / "run", ignore_errors=True)
    flags = [*MODELS[name], f"--workdir={work / 'run'}", f"--config.data.path={work / 'data'}"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        "PYTHONPATH": str(ROOT),
        _STARTED: repr(time.time()),
    }
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), "child", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
        sys.exit(f"error: the start of the {name} model ended with status {done.returncode}; its output is above.")
    return Start(*json.loads(done.stdout.splitlines()[-1]))


def make_data(work: pathlib.Path) -> None:
    """Makes vocabulary and data set, unless they are there."""
    source, vocabulary = ("--source", "python-docs"), work / "vocabulary"
    steps = {
        work / "vocabulary": ["vocab", *source, "--size", str(VOCABULARY), "--out", str(vocabulary)],
        work / "data": ["build", *source, "--vocab", str(vocabulary / "spiece.model"), "--out", str(work / "data")],
    }
    for made, arguments in steps.items():
        if not made.exists():
            command = [sys.executable, "-m", "pretrain_data", *arguments]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Runs everything."""
    arguments = parse()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(f"command: python scripts/bench/start.py --work DIR --rounds {arguments.rounds}")
    print_header()
    make_data(work)
    for name in MODELS:
        start(name, work)  # not counted: it makes the packing plan and brings files into memory
    results: dict[tuple[str, str], list[Start]] = {(name, kind): [] for name in MODELS for kind in ("cold", "warm")}
    for number in range(1, arguments.rounds + 1):
        for name in MODELS:
            shutil.rmtree(work / "compiled", ignore_errors=True)
            for kind in ("cold", "warm"):
                results[name, kind].append(start(name, work))
                told = "  ".join(f"{key} {value:.2f}" for key, value in results[name, kind][-1]._asdict().items())
                print(f"round {number}, {name}, {kind}: {told} s", flush=True)
    for name in MODELS:
        cold, warm = ([each.stepped for each in results[name, kind]] for kind in ("cold", "warm"))
        ratios = ", ".join(f"{c / w:.2f}" for c, w in zip(cold, warm, strict=True))
        print(
            f"{name}, first step after, median: cold {statistics.median(cold):.2f} s, warm "
            f"{statistics.median(warm):.2f} s; cold over warm, round by round: {ratios}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        run_until_first_step(sys.argv[2:])
    else:
        main()
