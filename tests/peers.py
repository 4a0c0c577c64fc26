# SPDX-License-Identifier: Apache-2.0
"""Environments with what cannot live beside transformers 5: transformers 4, Flax classes, TensorFlow, Beam; npm's."""

import functools
import os
import pathlib
import shutil
import subprocess

import pytest


def transformers4(*modules: str) -> str:
    """The interpreter of an environment with transformers 4 and with `modules`, or a skip that says how to have one."""
    beside = pathlib.Path(__file__).parents[1] / ".venv-transformers4" / "bin" / "python"
    python = os.environ.get("ALBERT_JAX_TRANSFORMERS4_PYTHON", str(beside) if beside.exists() else "")
    wanted = ("transformers", *modules)
    if not python or not _has(python, wanted):
        pytest.skip(
            f"no environment with {', '.join(wanted)}: scripts/test.sh makes one, and ALBERT_JAX_TRANSFORMERS4_PYTHON "
            "names another python that has transformers 4.57.6 and the rest"
        )
    return python


def beam_python() -> str:
    """The interpreter of an environment with this project and Apache Beam, or a skip that says how to have one."""
    beside = pathlib.Path(__file__).parents[1] / ".venv-beam" / "bin" / "python"
    python = os.environ.get("ALBERT_JAX_BEAM_PYTHON", str(beside) if beside.exists() else "")
    if not python or not _has(python, ("apache_beam",)):
        pytest.skip(
            "no environment with Apache Beam, so builds by Beam are not tried: scripts/test.sh makes one, and "
            "ALBERT_JAX_BEAM_PYTHON names another python that has the extra `beam`"
        )
    return python


def node_packages() -> tuple[str, str]:
    """Node.js and the directory that transformers' JavaScript packages lie in, or a skip that says how to have them."""
    node, beside = shutil.which("node"), pathlib.Path(__file__).parents[1] / ".venv-node"
    packages = pathlib.Path(os.environ.get("ALBERT_JAX_NODE_PACKAGES", beside))
    if not node or not (packages / "node_modules" / "@huggingface" / "tokenizers").is_dir():
        pytest.skip(
            "no Node.js or no @huggingface/tokenizers, so JavaScript's tokenizers are not compared with ours: "
            "scripts/test.sh installs it where npm is, and ALBERT_JAX_NODE_PACKAGES names another directory that has it"
        )
    return node, str(packages)


@functools.cache
def _has(python: str, modules: tuple[str, ...]) -> bool:
    """Whether all modules are installed; they are not imported, which would take seconds."""
    code = f"import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in {modules!r}))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0
