# SPDX-License-Identifier: Apache-2.0
"""A digest per array: Orbax has no checksum from end to end, so bytes that changed on a disk would be restored so.

The bits of each element, as a uint32, are xored with a key, which is (its place in row-major order + 1) x 0x9E3779B1,
and mixed by the finaliser of MurmurHash3. The digest is two sums over all elements, of the mixed numbers and of the
mixed numbers times their keys; everything is modulo 2**32.

Mixing with the place is one to one, so one changed element always changes the first sum. The second one weighs each
change with its place: where the changes of several elements cancel in the first, they do not in the second.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding


def _keys(shape: tuple[int, ...]) -> jax.Array:
    """uint32: each element's key. No reshape, which would gather a sharded array."""
    place, stride = jnp.ones(shape, jnp.uint32), 1
    for dimension in reversed(range(len(shape))):
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, dimension) * jnp.uint32(stride % 2**32)
        stride *= shape[dimension]
    return place * jnp.uint32(0x9E3779B1)


def _leaf_digest(x: jax.Array) -> jax.Array:
    """uint32 [2]: both sums, which are exact under any sharding."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    keys = _keys(x.shape)
    h = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32) ^ keys
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h ^= h >> 16

    def add(a: Any, b: Any) -> Any:
        return a[0] + b[0], a[1] + b[1]

    # Both sums in one reduction: of two, XLA would read the array twice and on a CPU store what it mixed.
    return jnp.stack(jax.lax.reduce((h, h * keys), (jnp.uint32(0), jnp.uint32(0)), add, tuple(range(x.ndim))))


@functools.lru_cache
def _compiled(structure: Any, arrays: tuple[tuple[tuple[int, ...], Any, Sharding], ...]) -> Any:
    """What computes the digests of a tree of such arrays; on each device, so that every process can read them."""
    meshes = [sharding.mesh for _, _, sharding in arrays if isinstance(sharding, NamedSharding)]
    everywhere = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    described = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype, sharding in arrays]

    def compute_digests(tree: Any) -> Any:
        return jax.tree.map(_leaf_digest, tree)

    lowered = jax.jit(compute_digests, out_shardings=everywhere).lower(jax.tree.unflatten(structure, described))
    return lowered.compile()


def compile_digests(tree: Any) -> Any:
    """The compiled program that `start_digests` runs on such a tree; kept, so compiled once.

    Args:
      tree: arrays of one mesh, sharded or not, or of one device; or `jax.ShapeDtypeStruct`s with a sharding.
    """
    leaves, structure = jax.tree.flatten(tree)
    return _compiled(structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves))


def start_digests(tree: Any) -> Callable[[], dict[str, str]]:
    """Has the devices compute the digests of a tree's arrays, which may be donated or deleted afterwards.

    Args:
      tree: arrays of one mesh, sharded or not, or of one device. All processes of the mesh have to call this.

    Returns:
      What waits for them and gives path -> 16 hexadecimal digits; any thread may call it.
    """
    computed = compile_digests(tree)(tree)

    def read() -> dict[str, str]:
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(computed))[0]
        return {jax.tree_util.keystr(path): "".join(f"{int(word):08x}" for word in leaf) for path, leaf in leaves}

    return read


def digests(tree: Any) -> dict[str, str]:
    """A digest of each array, see `start_digests`."""
    return start_digests(tree)()
