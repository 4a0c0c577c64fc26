# SPDX-License-Identifier: Apache-2.0
"""Tokens/s of our training step beside other programs', in turns within one run.

    python scripts/bench/train_step.py                             # beside transformers' torch class
    python scripts/bench/train_step.py --peer 'python my_step.py'  # and beside another one
    python scripts/bench/train_step.py --ours --dtype bfloat16     # our side alone, one JSON line

A peer is a command that trains ALBERT-base on rows of the same shape and prints, as its last line, a JSON object with
`tokens_per_s_median`; `"dtype": "bfloat16"` puts it beside our bfloat16. Tokens/s counts all positions of a step:
forward, backward and optimizer. Every contender runs in a process of its own, once a round. Beside them stands the
machine's own matrix product rate: where one program's is far above the other's, that is what the ratio shows.
"""

import argparse
import json
import pathlib
import resource
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

from goals import print_goal, print_header
from matrix import DTYPES, print_rates

# What torch_step.py is given, for each way to run transformers' torch class.
TORCH = {"torch eager": [], "torch compiled": ["--compile", "inductor"]}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="COMMAND", help="another contender; repeatable")
    parser.add_argument("--rounds", type=int, default=2, help="how often each contender runs")
    parser.add_argument("--optimizer", choices=("adamw", "lamb"), default="adamw", help="ours; the peers choose theirs")
    parser.add_argument("--ours", action="store_true", help="measure our step in this process and print JSON")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="with --ours: compute dtype")
    parser.add_argument("--batch", type=int, default=8, help="rows; --peer must be told of another value itself")
    parser.add_argument("--sequence", type=int, default=128, help="slots in a row")
    parser.add_argument("--masks", type=int, default=20, help="masked slots in a row")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after two others")
    return parser.parse_args()


def random_batch(options: argparse.Namespace, vocab_size: int) -> Any:
    """Rows of one example each, all slots real, as `albert_jax.data.stream.Batch` of numpy arrays."""
    import numpy as np

    from albert_jax.data.stream import Batch

    rows, slots, masks = options.batch, options.sequence, options.masks
    random = np.random.default_rng(1)
    ids = random.integers(5, vocab_size, (rows, slots), dtype=np.int32)
    ids[:, 0] = 2
    positions = np.stack([1 + random.permutation(slots - 1)[:masks] for _ in range(rows)]).astype(np.int32)
    positions.sort(axis=1)
    labels = np.take_along_axis(ids, positions, axis=1)
    np.put_along_axis(ids, positions, 4, axis=1)
    return Batch(
        input_ids=ids,
        token_type_ids=np.tile((np.arange(slots) >= slots // 2).astype(np.int32), (rows, 1)),
        position_ids=np.tile(np.arange(slots, dtype=np.int32), (rows, 1)),
        example_ids=np.ones((rows, slots), np.int32),
        mlm_positions=positions,
        mlm_labels=labels,
        cls_positions=np.zeros((rows, 1), np.int32),
        sop_labels=random.integers(0, 2, (rows, 1), dtype=np.int32),
        row_ids=np.arange(rows, dtype=np.int32),
    )


def measure_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Times `make_train_step` on one batch; ALBERT-base without dropout, as transformers' defaults have it."""
    import jax

    from albert_jax.config import AlbertConfig
    from albert_jax.training.recipe import pretraining
    from albert_jax.training.sharding import make_mesh, place_batch
    from albert_jax.training.step import MEASURES, initial_parameters, initial_state, make_train_step, place_parts

    config = pretraining(AlbertConfig.published("base"))
    config.dtype = options.dtype
    config.data.sequence_length, config.data.examples_per_row = options.sequence, 1
    config.masking.slots = options.masks
    config.batch.size, config.batch.unit = options.batch, "rows"
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = options.optimizer, 1e-4, 0
    mesh = make_mesh(1)
    batch, parts = place_batch(random_batch(options, config.model.vocab_size), mesh), place_parts(1, mesh)
    state = initial_state(config, initial_parameters(config), mesh)
    step = make_train_step(config, mesh)
    times, losses = [], []
    for _ in range(2 + options.steps):
        start = time.perf_counter()
        state, outcome = jax.block_until_ready(step(state, batch, parts))
        times.append(time.perf_counter() - start)
        losses.append(float(outcome.means[MEASURES.index("loss")]))
    median = statistics.median(times[2:])
    return {
        "peer": "albert_jax",
        "dtype": options.dtype,
        "opt": options.optimizer,
        "batch": options.batch,
        "seq": options.sequence,
        "mlm": options.masks,
        "step_s_median": round(median, 4),
        "step_s_min": round(min(times[2:]), 4),
        "step_s_max": round(max(times[2:]), 4),
        "tokens_per_s_median": round(options.batch * options.sequence / median, 1),
        "first_step_s": round(times[0], 2),
        "loss_mean": round(statistics.fmean(losses), 4),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def run_once(command: list[str]) -> dict[str, Any]:
    """Runs a contender and returns the JSON object of its last line; its failure ends the benchmark."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = result.stdout.strip().splitlines()
    try:
        if result.returncode == 0:
            return dict(json.loads(lines[-1]))
    except (ValueError, IndexError):
        pass
    sys.stderr.write(result.stdout[-2000:] + result.stderr[-2000:])
    sys.exit(f"error: {shlex.join(command)} ended with status {result.returncode} and without a line of JSON.")


def contenders(options: argparse.Namespace) -> dict[str, list[str]]:
    """The commands of both our dtypes, of torch's and of the other peers."""
    here, shape = pathlib.Path(__file__).resolve(), []
    for name in ("batch", "sequence", "masks", "steps"):
        shape += [f"--{name}", str(getattr(options, name))]
    commands = {}
    for dtype in DTYPES:
        own = [sys.executable, str(here), "--ours", "--optimizer", options.optimizer]
        commands[f"ours {dtype}"] = [*own, *shape, "--dtype", dtype]
        for name, given in TORCH.items():
            torch = [sys.executable, str(here.with_name("torch_step.py")), *given]
            commands[f"{name} {dtype}"] = [*torch, *shape, "--dtype", dtype]
    for number, peer in enumerate(options.peer, 1):
        print(f"peer {number}: {peer}")
        commands[f"peer {number}"] = shlex.split(peer)
    return commands


def compare(options: argparse.Namespace) -> None:
    """Runs all contenders in turns and prints medians, ratios and goals.

    GFLOP/s are the matrix products that a token needs with scores of the masked slots alone, for every contender.
    """
    from albert_jax.config import AlbertConfig

    commands = contenders(options)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(options.rounds):
        for name, command in commands.items():
            result = run_once(command)
            results[name].append(result)
            print(f"round {turn + 1}  {name:<24} {result['tokens_per_s_median']:>10,.1f} tokens/s", flush=True)
    medians = {name: statistics.median(r["tokens_per_s_median"] for r in runs) for name, runs in results.items()}
    model = AlbertConfig.published("base")
    flops = model.train_flops_per_row(options.sequence, options.masks) / options.sequence
    print(f"\n{'contender':<24} {'tokens/s':>10} {'GFLOP/s':>8} {'ours / it':>10}")
    goals = [("ours_bfloat16_over_ours_float32", medians["ours bfloat16"] / medians["ours float32"])]
    for name, median in medians.items():
        ratio = medians[f"ours {results[name][0]['dtype']}"] / median
        print(f"{name:<24} {median:>10,.1f} {median * flops / 1e9:>8,.0f} {ratio:>10.3f}")
        if not name.startswith("ours"):
            goals.append((f"ours_over_{name.replace(' ', '_')}", ratio))
    for name, ratio in goals:
        print_goal(name, ratio, 1.0)


def main() -> None:
    """Measures our side alone, or all contenders in turns."""
    options = parse()
    if options.ours:
        print(json.dumps(measure_ours(options)))
        return
    print_header()
    print_rates()
    print(f"ALBERT-base, {options.batch} x {options.sequence}, {options.masks} masks, ours with {options.optimizer}")
    compare(options)


if __name__ == "__main__":
    main()
