# SPDX-License-Identifier: Apache-2.0
"""Time of one masked-LM inference beside transformers' torch class, call by call in turns.

    python scripts/bench/inference.py                      # ALBERT-base, 8 rows of 128, float32

Contenders: our FlaxAlbertForMaskedLM; transformers' AlbertForMaskedLM with eager attention, with SDPA and under
torch.compile. Each lives in a process of its own, has the same random weights and the same rows, and is asked for one
forward pass at a time, scores of all slots included, while the others wait. Before the timing, the scores are compared.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from goals import print_goal, print_header
from matrix import print_rates

PEERS = ("torch eager", "torch sdpa", "torch compiled")
_PROBE = 16  # scores of that many words are compared


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="published size")
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--sequence", type=int, default=128, help="slots in a row")
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each contender, after two others")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    return parser.parse_args()


def rows(options: argparse.Namespace) -> np.ndarray:
    """Random ids, int64 [batch, sequence]."""
    return np.random.default_rng(1).integers(5, 30000, (options.batch, options.sequence))


def ours(options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """A forward pass of our class, parameters and rows on the device."""
    import jax
    import jax.numpy as jnp

    from albert_jax import FlaxAlbertForMaskedLM

    model = FlaxAlbertForMaskedLM.from_pretrained(options.weights)
    ids = jnp.asarray(rows(options), jnp.int32)
    forward = jax.jit(lambda params, ids: model(ids, params=params).logits)
    return lambda: jax.block_until_ready(forward(model.params, ids))


def torchs(options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """A forward pass of transformers' class."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    attention = "eager" if options.worker == "torch eager" else "sdpa"
    model: Any = transformers.AlbertForMaskedLM.from_pretrained(options.weights, attn_implementation=attention).eval()
    if options.worker == "torch compiled":
        model = torch.compile(model)
    ids = torch.tensor(rows(options))

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return model(ids).logits.numpy()

    return forward


def work(options: argparse.Namespace) -> None:
    """Answers each line of standard input with the seconds of a call."""
    forward = ours(options) if options.worker == "ours" else torchs(options)
    scores = [np.asarray(forward()), np.asarray(forward())][-1]  # compiled and warm
    print(json.dumps(scores[0, 0, :_PROBE].tolist()), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        forward()
        print(time.perf_counter() - start, flush=True)


def save_random_weights(options: argparse.Namespace, directory: str) -> None:
    """Weights of the published size from a fresh initialisation, in Hugging Face's format."""
    from albert_jax import AlbertConfig, FlaxAlbertForMaskedLM

    FlaxAlbertForMaskedLM(AlbertConfig.published(options.size)).save_pretrained(directory)


def main() -> None:
    """Starts the contenders, asks them in turns, prints medians and ratios."""
    options = parse()
    if options.worker:
        work(options)
        return
    print_header()
    print_rates()
    shape = f"{options.batch} x {options.sequence}"
    print(f"ALBERT-{options.size}, masked LM, {shape}, float32, {options.rounds} calls each")
    with tempfile.TemporaryDirectory() as directory:
        save_random_weights(options, directory)
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--weights", directory]
        command += ["--batch", str(options.batch), "--sequence", str(options.sequence)]
        workers = {
            name: subprocess.Popen(
                [*command, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name in ("ours", *PEERS)
        }
        scores = {name: json.loads(answer(name, worker)) for name, worker in workers.items()}
        furthest = max(float(np.abs(np.subtract(scores["ours"], values)).max()) for values in scores.values())
        print(f"largest difference of a score: {furthest:.1e}")
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(options.rounds):
            for name, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                times[name].append(float(answer(name, worker)))
        for worker in workers.values():
            worker.communicate()
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'contender':<16} {'median ms':>10} {'least':>8} {'most':>8} {'it / ours':>10}")
    for name, values in times.items():
        spread = f"{min(values) * 1e3:>8.1f} {max(values) * 1e3:>8.1f}"
        print(f"{name:<16} {medians[name] * 1e3:>10.1f} {spread} {medians[name] / medians['ours']:>10.3f}")
    print_goal("speed_over_best_of_torch", min(medians[name] for name in PEERS) / medians["ours"], 1.0)


def answer(name: str, worker: subprocess.Popen[str]) -> str:
    """The next line of a contender, whose failure ends the benchmark."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"error: the contender {name!r} ended with status {worker.wait()} instead of answering.")
    return line


if __name__ == "__main__":
    main()
