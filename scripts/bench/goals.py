# SPDX-License-Identifier: Apache-2.0
"""What every benchmark prints: the machine and versions first, one line a goal last."""

import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Sequence

# What speed depends on most: processors of one name differ in them.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def print_header(packages: Sequence[str] = PACKAGES) -> None:
    """Prints the processor, what it has for matrix products, the cores this process may use, and versions."""
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} -")
    print(f"machine: {_cpuinfo('model name')}, {_cores()} cores, {platform.system()} {platform.machine()}")
    features = [name for name in FEATURES if name in _cpuinfo("flags").split()]
    print(f"processor features for matrix products: {', '.join(features) or 'not known'}")
    print(f"versions: Python {platform.python_version()}, {', '.join(versions)}", flush=True)


def print_goal(name: str, figure: float, goal: float, unit: str = "", *, at_least: bool = True) -> bool:
    """Prints `goal NAME: FIGURE (GOAL) met` or `... not met`.

    Args:
      name: what was measured.
      figure: what came out.
      goal: what was wanted.
      unit: of both, '' for a ratio.
      at_least: whether more is better; otherwise the figure must not exceed the goal.

    Returns:
      Whether it was met.
    """
    met = figure >= goal if at_least else figure <= goal
    bound = "at least" if at_least else "at most"
    space = " " if unit else ""
    verdict = "met" if met else "not met"
    print(f"goal {name}: {_short(figure)}{space}{unit} ({bound} {_short(goal)}{space}{unit}) {verdict}", flush=True)
    return met


def _short(figure: float) -> str:
    """Three digits or all before the point, never an exponent where it would be harder to read."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def _cpuinfo(key: str) -> str:
    """What Linux tells of the first processor under a key; elsewhere its name, or nothing."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return (platform.processor() or "unknown processor") if key == "model name" else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
