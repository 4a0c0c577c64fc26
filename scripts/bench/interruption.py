# SPDX-License-Identifier: Apache-2.0
"""Seconds from SIGTERM to a durable checkpoint, with steps of some seconds, in one process or several.

    python scripts/bench/interruption.py --work DIR --rounds 3 --processes 2

Trains ALBERT-base on rows of 128 slots, as many as make a step of about three seconds on the devices here, and sends
SIGTERM to one of the processes at a random moment of a step. What may pass is the rest of the step under way and the
save; beside the step, spot machines leave 30 seconds for everything. The devices are those that JAX finds, so
JAX_PLATFORMS and PYTHONPATH choose others.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from goals import print_goal, print_header
from start import ROOT, VOCABULARY, make_data

WANTED = 3.0  # seconds a step
OWN = 10.0  # seconds beside the step under way, of which the save is a part
_MODEL = (
    *("--config=configs/base.py", f"--config.model.vocab_size={VOCABULARY}", "--config.dtype=float32"),
    *("--config.data.sequence_length=128", "--config.data.examples_per_row=2", "--config.masking.slots=20"),
    *("--config.batch.unit=rows", "--config.log.every=1", "--config.checkpoint.minutes=0"),
)


class Stopped(NamedTuple):
    """Seconds of one interruption.

    Attributes:
      step: that a step takes, the median of the run.
      durable: from the signal to the line that says that the step is saved.
      gone: from the signal to the end of the last process.
    """

    step: float
    durable: float
    gone: float


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, metavar="DIR", help="for data and runs")
    parser.add_argument("--rounds", type=int, default=3, help="how often a run is stopped")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    return parser.parse_args()


def start(work: pathlib.Path, rows: int, processes: int) -> list[subprocess.Popen[str]]:
    """Starts a new run; only the first process prints."""
    shutil.rmtree(work / "run", ignore_errors=True)
    command = [sys.executable, "train.py", *_MODEL, f"--config.batch.size={rows}", f"--workdir={work / 'run'}"]
    command.append(f"--config.data.path={work / 'data'}")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        together = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={processes}"]
    each = [[]] if processes == 1 else [[*together, f"--process={i}"] for i in range(processes)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled")}
    return [
        subprocess.Popen(
            [*command, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for more in each
    ]


def lines_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """What a process prints up to a line that matches; ends the program where it ends without one."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    sys.stderr.writelines(lines[-20:])
    sys.exit(f"error: the run ended without printing {pattern!r}; its last lines are above.")


def step_seconds(work: pathlib.Path) -> float:
    """The median of the steps after the first, by the run's own record."""
    records = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([r["timing"]["seconds"] for r in records if r["kind"] == "train"][1:])


def stop(work: pathlib.Path, rows: int, processes: int, moments: random.Random) -> Stopped:
    """Starts a run, stops it in a step after some, and measures how long that takes."""
    run = start(work, rows, processes)
    for _ in range(4):
        lines_until(run[0], r"^ *\d+/\d+ ")
    time.sleep(moments.uniform(0, step_seconds(work)))  # into the next step
    began = time.perf_counter()
    moments.choice(run).send_signal(signal.SIGTERM)
    lines_until(run[0], "is saved in")
    durable = time.perf_counter() - began
    for process in run:
        process.communicate()
    gone = time.perf_counter() - began
    if any(process.returncode != 75 for process in run):
        sys.exit(f"error: the processes ended with {[process.returncode for process in run]} and not with 75.")
    return Stopped(step_seconds(work), durable, gone)


def main() -> None:
    """Runs everything."""
    options = parse()
    work, moments = options.work.resolve(), random.Random(0)
    work.mkdir(parents=True, exist_ok=True)
    print(
        f"command: python scripts/bench/interruption.py --work DIR --rounds {options.rounds} "
        f"--processes {options.processes}, JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
    )
    print_header()
    make_data(work)
    rows = 4 * options.processes
    rows = max(rows, round(rows * WANTED / stop(work, rows, options.processes, moments).step))  # not counted
    rows += -rows % options.processes
    found = [stop(work, rows, options.processes, moments) for _ in range(options.rounds)]
    for each in found:
        print("  ".join(f"{name} {seconds:.2f} s" for name, seconds in each._asdict().items()), flush=True)
    print_goal("signal to durable, beside a step", max(f.durable - f.step for f in found), OWN, "s", at_least=False)
    print_goal("signal to the end of the last process", max(f.gone for f in found), 30.0, "s", at_least=False)


if __name__ == "__main__":
    main()
