# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint costs training: milliseconds that a save keeps the next step waiting, seconds until it is durable.

    python scripts/bench/checkpoint.py --work /tmp/bench
    python scripts/bench/checkpoint.py --work gs://bucket/bench --sizes base xxlarge --saves 3

A state of each published size, with LAMB's moments and random values, is saved as the training loop does it:
`Checkpoints.save` returns when the arrays are copied from the devices, and training goes on while they are written. The
stall is what it takes until then, and the time of the digests, which the device computes before its next step. (A CPU
computes them beside the next step, and its arrays need no copy: from a TPU or GPU the copy takes bytes over bandwidth.)
A state whose steps are done is saved, so waiting for them is not counted. The share of the training time follows from
the default interval, checkpoint.every, and from the seconds of a step, which --step-seconds states.
"""

import argparse
import resource
import statistics
import time
from typing import Any

import jax
from etils import epath
from goals import print_goal, print_header

from albert_jax.config import AlbertConfig
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.digests import digests
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import TrainState, abstract_state

PACKAGES = ("jax", "jaxlib", "orbax-checkpoint", "tensorstore", "numpy")
IDENTITY: dict[str, Any] = {
    "config": {},
    "data_fingerprint": "",
    "vocabulary_sha256": "",
    "plan": "",
    "rows_per_step": 0,
    "versions": {},
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="a folder for the checkpoints, also on gs://; left as it was")
    parser.add_argument("--sizes", nargs="+", default=["base", "xxlarge"], metavar="SIZE", help="published sizes")
    parser.add_argument("--saves", type=int, default=5, help="saves of each size, after one other")
    parser.add_argument("--step-seconds", type=float, default=0.25, help="of a training step, see above")
    return parser.parse_args()


def random_state(config: Any) -> tuple[TrainState, TrainState]:
    """A state of random values on all devices, and its shapes and shardings."""
    shapes = abstract_state(config, make_mesh(-1))
    leaves, structure = jax.tree.flatten(shapes)

    def make(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        return [
            jax.random.normal(k, x.shape, x.dtype) if x.dtype == "float32" else jax.numpy.ones(x.shape, x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]

    made = jax.jit(make, out_shardings=[x.sharding for x in leaves])(jax.random.key(0))
    return jax.block_until_ready(jax.tree.unflatten(structure, made)), shapes


def measure(size: str, options: argparse.Namespace) -> None:
    """Saves a state several times, restores it, and prints what that took."""
    config = pretraining(AlbertConfig.published(size))
    state, shapes = random_state(config)
    megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    folder = epath.Path(options.work) / f"checkpoint-{size}"
    stalls, durables = [], []
    checkpoints = Checkpoints(folder, 2, IDENTITY)
    try:
        for step in range(options.saves + 1):
            numbered = jax.block_until_ready(state._replace(step=state.step * 0 + step + 1))
            began = time.perf_counter()
            progress = {"step": step + 1, "position": 0, "interval": None}
            checkpoints.save(numbered, progress, block=False)
            stalls.append(time.perf_counter() - began)
            checkpoints.wait()
            durables.append(time.perf_counter() - began)
        digesting = []
        for _ in range(options.saves + 1):
            began = time.perf_counter()
            digests(state)
            digesting.append(time.perf_counter() - began)
        began = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(shapes))
        restoring = time.perf_counter() - began
        checkpoints.close()
    finally:
        folder.rmtree(missing_ok=True)
    # Without the first ones, which compile.
    copy, durable, digest = (statistics.median(seconds[1:]) for seconds in (stalls, durables, digesting))
    stall, every = copy + digest, config.checkpoint.every
    print(
        f"{size}: state {megabytes:,.0f} MB; stall {1000 * stall:,.0f} ms a save: {1000 * copy:,.0f} until save() "
        f"returns (largest {1000 * max(stalls[1:]):,.0f}, the first with compilation {1000 * stalls[0]:,.0f}), "
        f"{1000 * digest:,.0f} for the digests; medians of {options.saves}"
    )
    print(
        f"{size}: durable after {durable:.1f} s, {megabytes / durable:,.0f} MB/s; restored and compared in "
        f"{restoring:.1f} s; most memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    )
    shortest = 1000 * stall / (0.01 * every)
    print(
        f"{size}: a save every {every} steps stalls training for 1 % of the time where a step takes {shortest:.1f} ms"
    )
    share = 100 * stall / (every * options.step_seconds + stall)
    print_goal(f"{size}, stall at steps of {options.step_seconds} s", share, 1.0, "%", at_least=False)


def main() -> None:
    """Prints everything."""
    options = parse()
    print_header(PACKAGES)
    for size in options.sizes:
        measure(size, options)


if __name__ == "__main__":
    main()
