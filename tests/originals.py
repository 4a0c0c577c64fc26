# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with the original ALBERT's variables, by TensorFlow itself; a plugin for the tests that read them."""

import functools
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest

from tests.peers import transformers4

PEER = pathlib.Path(__file__).parent / "tensorflow_checkpoints.py"


@functools.cache
def run_tensorflow(*arguments: object) -> None:
    """Runs tensorflow_checkpoints.py, or skips."""
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    modules = ("tensorflow", "torch") if arguments[0] == "transformers" else ("tensorflow",)
    command = [transformers4(*modules), str(PEER), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One checkpoint of every kind, each with its arrays in KIND.npz."""
    directory = tmp_path_factory.mktemp("originals")
    run_tensorflow("write", directory)
    return directory


@pytest.fixture(scope="session")
def tensorflow() -> Callable[..., None]:
    """Runs tensorflow_checkpoints.py with other arguments."""
    return run_tensorflow
