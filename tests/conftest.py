# SPDX-License-Identifier: Apache-2.0
"""Settings that must stand before JAX is imported."""

import os

# Eight forced host devices on the CPU, so that every sharding test runs anywhere; `jax.devices()[:1]` is one device.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# No test may depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"
