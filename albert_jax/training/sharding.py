# SPDX-License-Identifier: Apache-2.0
"""The device mesh and where arrays live on it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from albert_jax.data.stream import Batch
from albert_jax.errors import UserError

DATA = "data"  # rows of the batch are split over this axis; parameters are on every device


def make_mesh(data: int) -> Mesh:
    """A mesh of `data` devices, or of all where it is -1.

    Raises:
      UserError: where there are fewer devices.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices):
        raise UserError(f"mesh.data={data} asks for {data} devices, but there are {len(devices)}; -1 takes all.")
    return Mesh(np.array(devices[:count]), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Splits a batch's rows over the devices."""
    return jax.device_put(batch, by_rows(mesh))
