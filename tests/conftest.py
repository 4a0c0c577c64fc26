# SPDX-License-Identifier: Apache-2.0
"""Settings that must stand before JAX is imported."""

import atexit
import os
import shutil
import tempfile

# Eight forced host devices on the CPU, so that every sharding test runs anywhere; `jax.devices()[:1]` is one device.
os.environ["JAX_PLATFORMS"] = "cpu"
# Without the optimizations of LLVM, programs compile in two thirds of the time; what XLA does to them stays.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
# What one test has compiled, another need not; the processes of pytest-xdist inherit the directory from the first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="albert_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
# What is written must be for the group to read where the umask says so, and for nobody else (tests/test_resume.py).
os.umask(0o027)
# No test may depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_GCE_CHECK"] = "true"
