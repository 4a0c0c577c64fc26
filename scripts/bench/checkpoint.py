# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint costs training: seconds that a save keeps the next step waiting, and until it is durable.

    python scripts/bench/checkpoint.py --work /tmp/bench
    python scripts/bench/checkpoint.py --work gs://bucket/bench --sizes base xxlarge --saves 3

A state of each published size, with LAMB's moments and random values, is saved as the training loop does it, and in
turns with that by Orbax alone: the difference is what digests, retention and the rest of our own take.
`Checkpoints.save` returns when the arrays are copied from the devices, and training goes on while they are written. The
stall is what it takes until then, and the time of the digests, which the device computes before its next step. (A CPU
computes them beside the next step, and its arrays need no copy: from a TPU or GPU the copy takes bytes over bandwidth.)
A state whose steps are done is saved, so waiting for them is not counted. The share of the training time follows from
the default interval, checkpoint.minutes. All seconds are medians, without the first of each.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from goals import print_goal, print_header

from albert_jax.config import AlbertConfig
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.compatibility import FORMAT
from albert_jax.training.digests import digests
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import TrainState, abstract_state

PACKAGES = ("jax", "jaxlib", "orbax-checkpoint", "tensorstore", "numpy")
IDENTITY: dict[str, Any] = {
    "format": FORMAT,
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


def alone(folder: epath.Path, state: TrainState) -> Callable[[], None]:
    """Saves a state by Orbax with the settings of a run, and nothing else; gives what waits until it is durable."""
    orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
    orbax.save(folder, args=ocp.args.PyTreeSave(state), force=True)
    return orbax.close


def restored_alone(folder: epath.Path, shapes: TrainState) -> TrainState:
    """Restores what `alone` saved."""
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(shapes))


def processor_seconds() -> float:
    """Of all threads so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """Seconds of what was done several times, by name."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Notes a time that was measured."""
        self._taken.setdefault(name, []).append(seconds)

    def time(self, name: str, work: Callable[[], Any]) -> None:
        """Does something and notes how long it took."""
        began = time.perf_counter()
        work()
        self.add(name, time.perf_counter() - began)

    def median(self, name: str) -> float:
        """Without the first time."""
        return statistics.median(self._taken[name][1:])


def run(folder: epath.Path, state: TrainState, shapes: TrainState, saves: int) -> Clock:
    """Saves and restores a state several times, and says how long that took."""
    clock, checkpoints = Clock(), Checkpoints(folder, 2, IDENTITY)
    clock.time("compile", lambda: checkpoints.prepare(shapes))
    for step in range(1, saves + 2):
        progress = {"step": step, "position": 0, "interval": None}
        began, used = time.perf_counter(), processor_seconds()
        checkpoints.save(state, progress, block=False)
        clock.add("copy", time.perf_counter() - began)
        checkpoints.wait()
        clock.add("durable", time.perf_counter() - began)
        clock.add("processor", processor_seconds() - used)
        clock.time("alone", lambda: alone(folder / "alone", state)())
        clock.time("digests", lambda: digests(state))
        clock.time("restored alone", lambda: jax.block_until_ready(restored_alone(folder / "alone", shapes)))
        clock.time("restored", lambda: jax.block_until_ready(checkpoints.restore(shapes)))
    checkpoints.close()
    return clock


def measure(size: str, options: argparse.Namespace) -> None:
    """Saves and restores a state several times, and prints what that took."""
    config = pretraining(AlbertConfig.published(size))
    state, shapes = random_state(config)
    megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    folder = epath.Path(options.work) / f"checkpoint-{size}"
    try:
        clock = run(folder, state, shapes, options.saves)
    finally:
        folder.rmtree(missing_ok=True)
    copy, digest, durable, restored = map(clock.median, ("copy", "digests", "durable", "restored"))
    alone, restored_alone = clock.median("alone"), clock.median("restored alone")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{size}: state {megabytes:,.0f} MB; a save keeps training waiting {copy + digest:.2f} s: {copy:.2f} until "
        f"save() returns, {digest:.2f} for the digests, which is {megabytes / 1000 / digest:.1f} GB/s"
    )
    print(
        f"{size}: durable after {durable:.1f} s, {megabytes / durable:,.0f} MB/s, by Orbax alone {alone:.1f} s; "
        f"{clock.median('processor'):.1f} s of processor time"
    )
    print(
        f"{size}: restored and compared in {restored:.1f} s, by Orbax alone {restored_alone:.1f} s; most memory "
        f"{most:.1f} GB"
    )
    minutes = config.checkpoint.minutes
    share = 100 * (copy + digest) / (60 * minutes)
    print_goal(f"{size}, time in saves, one in {minutes:.0f} minutes", share, 1.0, "%", at_least=False)
    print_goal(f"{size}, save beside Orbax's own", durable - alone, 1.0, "s", at_least=False)
    print_goal(f"{size}, restore beside Orbax's own", restored - restored_alone, 1.0, "s", at_least=False)


def main() -> None:
    """Prints everything."""
    options = parse()
    print_header(PACKAGES)
    for size in options.sizes:
        measure(size, options)


if __name__ == "__main__":
    main()
