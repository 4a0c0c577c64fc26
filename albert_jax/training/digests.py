# SPDX-License-Identifier: Apache-2.0
"""A digest per array: Orbax has no checksum from end to end, so bytes that changed on a disk would be restored so."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """uint32: each element's place in row-major order modulo 2**32. No reshape, which would gather a sharded array."""
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for dimension in reversed(range(len(shape))):
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, dimension) * jnp.uint32(stride % 2**32)
        stride *= shape[dimension]
    return place


def _leaf_digest(x: jax.Array) -> jax.Array:
    """uint32 [2]: sums modulo 2**32 of the array's mixed bits and positions, so exact under any sharding."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = _positions(x.shape)

    def mixed(odd: int) -> jax.Array:  # the finaliser of MurmurHash3 on (value, position)
        h = bits * jnp.uint32(odd) ^ (place * jnp.uint32(0x9E3779B1) + jnp.uint32(odd))
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    return jnp.stack([mixed(0x27D4EB2F), mixed(0x165667B1)])


@functools.lru_cache
def _compiled(mesh: Mesh | None) -> Any:
    """Digests of a tree on a mesh; on each of its devices, so that every process can read them."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda tree: jax.tree.map(_leaf_digest, tree), out_shardings=everywhere)


def start_digests(tree: Any) -> Callable[[], dict[str, str]]:
    """Has the devices compute the digests of a tree's arrays, which may be donated or deleted afterwards.

    Args:
      tree: arrays of one mesh, sharded or not, or of one device. All processes of the mesh have to call this.

    Returns:
      What waits for them and gives path -> 16 hexadecimal digits; any thread may call it.
    """
    meshes = [x.sharding.mesh for x in jax.tree.leaves(tree) if isinstance(x.sharding, NamedSharding)]
    computed = _compiled(meshes[0] if meshes else None)(tree)

    def read() -> dict[str, str]:
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(computed))[0]
        return {jax.tree_util.keystr(path): "".join(f"{int(word):08x}" for word in leaf) for path, leaf in leaves}

    return read


def digests(tree: Any) -> dict[str, str]:
    """A digest of each array, see `start_digests`."""
    return start_digests(tree)()
