# SPDX-License-Identifier: Apache-2.0
"""Arrays laid out on meshes of the machine's devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def mesh_of(*shape: int) -> Mesh:
    """A mesh with axes a, b, ... of the first devices."""
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), tuple("abc"[: len(shape)]))


def placed(values: Any, mesh: Mesh, *axes: Any) -> jax.Array:
    """An array on a mesh, its dimensions split over these axes."""
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(*axes)))
