# SPDX-License-Identifier: Apache-2.0
"""The machine's own matrix product rate by XLA and by torch, to hold the speed of a model against.

    python scripts/bench/matrix.py

Each program multiplies two square matrices in a process of its own, in float32 and in bfloat16. A rate counts two
operations a multiply-add; of several products the fastest counts, because it is a limit that is looked for.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from goals import print_header

PROGRAMS = ("xla", "torch")
DTYPES = ("float32", "bfloat16")
_SIDE, _PRODUCTS = 2048, 12


def _xla(dtype: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((2, _SIDE, _SIDE), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, b))


def _torch(dtype: str) -> Callable[[], Any]:
    import torch

    a, b = torch.ones(2, _SIDE, _SIDE, dtype=getattr(torch, dtype))
    return lambda: a @ b


def measure(program: str, dtype: str) -> float:
    """Operations a second of one program in this process."""
    product = {"xla": _xla, "torch": _torch}[program](dtype)
    times = []
    for _ in range(_PRODUCTS):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / min(times)


def print_rates() -> dict[str, dict[str, float]]:
    """Prints a line for each program and returns operations a second by program and dtype."""
    found: dict[str, dict[str, float]] = {}
    for program in PROGRAMS:
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--program", program]
        found[program] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        rates = ", ".join(f"{dtype} {rate / 1e9:,.0f}" for dtype, rate in found[program].items())
        print(f"matrix product by {program}, {_SIDE} x {_SIDE}, GFLOP/s: {rates}", flush=True)
    return found


def main() -> None:
    """Prints the rates of both programs, or measures one and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=PROGRAMS, help="measure it in this process and print JSON")
    options = parser.parse_args()
    if options.program:
        print(json.dumps({dtype: measure(options.program, dtype) for dtype in DTYPES}))
        return
    print_header()
    print_rates()


if __name__ == "__main__":
    main()
