# SPDX-License-Identifier: Apache-2.0
"""A run goes on on other devices than it was saved on, with the same stream of examples; and what its loop forbids.

From one process to two and back: tests/test_processes.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from albert_jax.training.interval import Interval
from albert_jax.training.step import Outcome
from tests.in_process import run, tiny
from tests.runs import arrays, records

pytest_plugins = ["tests.runs"]
NOISE = "key']['bias"  # softmax does not see the keys' bias: its gradient is rounding


def test_a_run_saved_on_8_devices_goes_on_with_4_of_another_mesh_and_then_with_1(data, straight, tmp_path):
    """Three meshes, three ways to lay out parameters and moments, other micro-batches; one stream."""
    eight = tiny(data, **{"mesh.data": 8, "batch.rows_per_device": 1, "mesh.shard_optimizer": True})
    four = tiny(data, **{"mesh.data": 1, "mesh.fsdp": 4, "batch.rows_per_device": 1})
    assert not run(eight, tmp_path / "w", stop_after=2)
    assert not run(four, tmp_path / "w", stop_after=6)
    assert run(tiny(data, **{"batch.rows_per_device": 3}), tmp_path / "w")
    found = arrays(tmp_path / "w")
    for name, value in arrays(straight).items():
        if NOISE not in name:
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    same = [[(line["step"], line.get("position")) for line in records(w)] for w in (tmp_path / "w", straight)]
    assert same[0] == same[1]


def test_the_loop_takes_nothing_to_the_devices_but_what_it_says(data, tmp_path, monkeypatch):
    add = Interval.add

    def careless(self: Interval, outcome: Outcome, **measured: Any) -> None:
        jnp.sin(np.ones(3))
        add(self, outcome, **measured)

    monkeypatch.setattr(Interval, "add", careless)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tiny(data), tmp_path / "w")


def test_compiled_programs_are_kept_unless_the_user_says_where(monkeypatch, tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        train._keep_compiled_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "albert_jax" / "compiled")
        jax.config.update("jax_compilation_cache_dir", before)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
        train._keep_compiled_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == before
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
