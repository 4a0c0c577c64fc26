# SPDX-License-Identifier: Apache-2.0
"""Digests find every damage that is tried here, and cost one pass over the arrays, wherever they lie."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from albert_jax.training.digests import compile_digests, digests, start_digests
from albert_jax.training.program import read_program
from tests.meshes import mesh_of, placed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_a_digest_changes_with_any_element_any_swap_and_any_bit(dtype):
    values = np.arange(2, 8).astype(dtype).reshape(2, 3)
    seen = {digests({"x": jnp.asarray(values)})["['x']"]}
    count = 1
    for place in range(values.size):
        for bit in range(8 * values.itemsize):
            raw = bytearray(values.tobytes())
            raw[place * values.itemsize + bit // 8] ^= 1 << bit % 8
            seen.add(digests({"x": jnp.asarray(np.frombuffer(bytes(raw), values.dtype).reshape(2, 3))})["['x']"])
            count += 1
        for other in range(place):
            swapped = values.copy()
            swapped.flat[place], swapped.flat[other] = values.flat[other], values.flat[place]
            seen.add(digests({"x": jnp.asarray(swapped)})["['x']"])
            count += 1
    assert len(seen) == count


def defined(values: np.ndarray) -> str:
    """The digest by its definition, in Python's integers."""
    sums, unsigned = [0, 0], values.ravel().view(f"u{values.itemsize}")
    for place, bits in enumerate(unsigned.tolist()):
        key = (place + 1) * 0x9E3779B1 % 2**32
        h = bits ^ key
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        h ^= h >> 16
        sums = [sums[0] + h, sums[1] + h * key]
    return "".join(f"{word % 2**32:08x}" for word in sums)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 6), (2, 3, 4)])
def test_a_digest_is_the_one_that_is_defined(dtype, shape):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    assert digests({"x": jnp.asarray(values)}) == {"['x']": defined(values)}


def damaged_blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """An array with blocks of each size zeroed, swapped, written twice, and with all data shifted or cut off."""
    for size in (2**k for k in range(1, values.size.bit_length() - 1)):
        for at in range(0, values.size, size):
            block = slice(at, at + size)
            flat = values.flatten()
            flat[block] = 0
            yield flat
            for other in range(0, at, size):
                flat, there = values.flatten(), slice(other, other + size)
                flat[block], flat[there] = values.flat[there], values.flat[block]
                yield flat
                flat = values.flatten()
                flat[block] = flat[there]
                yield flat
    for by in range(1, values.size):
        yield np.roll(values.flatten(), by)
        yield np.concatenate([values.flatten()[by:], np.zeros(by, values.dtype)])


@pytest.mark.parametrize("value", [1.0, None])  # of all elements; None: random
def test_a_digest_changes_with_zeroed_swapped_repeated_and_shifted_blocks(value):
    values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    values = values if value is None else np.full_like(values, value)
    contents = {flat.tobytes() for flat in damaged_blocks(values)} | {values.tobytes()}
    arrays = (np.frombuffer(content, np.float32).reshape(8, 8) for content in contents)
    assert len({digests({"x": jnp.asarray(array)})["['x']"] for array in arrays}) == len(contents)


def test_no_two_changes_of_signs_cancel_each_other():
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    seen = set()
    for a in range(values.size):
        for b in range(a):
            signs = np.ones(values.size, np.float32)
            signs[[a, b]] = -1
            seen.add(digests({"x": jnp.asarray(values * signs)})["['x']"])
    assert len(seen) == 64 * 63 // 2 and digests({"x": jnp.asarray(values)})["['x']"] not in seen


def test_a_digest_is_the_same_under_any_sharding():
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    eight, cube = mesh_of(8), mesh_of(2, 2, 2)
    ways = [
        jax.device_put(values, jax.devices()[0]),
        placed(values, eight),
        placed(values, eight, "a"),
        placed(values, eight, None, "a"),
        placed(values, cube, "c", ("b", "a")),
    ]
    assert len({digests({"x": x})["['x']"] for x in ways}) == 1


def test_digests_exchange_a_few_numbers_and_no_sharded_array():
    mesh = mesh_of(2, 4)
    tree = {"x": placed(np.ones((64, 96), np.float32), mesh, "a", "b"), "y": placed(np.ones(8, np.float32), mesh, "b")}
    text = compile_digests(tree).as_text()
    exchanged = [collective.bytes for collective, _ in read_program(text).collectives]
    assert exchanged and max(exchanged) <= 2 * 2 * 4 * mesh.size  # for each array two sums of each device


def test_digests_store_nothing_on_the_way():
    array = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0]))
    assert compile_digests([array]).memory_analysis().temp_size_in_bytes < 1000


def test_digests_are_those_of_the_moment_though_the_arrays_are_donated_before_they_are_read():
    state = {"x": placed(np.arange(1 << 20, dtype=np.float32), mesh_of(2), "a")}
    expected = digests(state)
    read = start_digests(state)
    changed = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(state)
    assert state["x"].is_deleted() and read() == expected != digests(changed)


def test_each_array_has_a_digest_of_its_own():
    tree = {"a": jnp.ones(3), "b": {"c": jnp.ones(3), "d": jnp.zeros((2, 0))}, "e": jnp.int32(4)}
    assert digests(tree).keys() == {"['a']", "['b']['c']", "['b']['d']", "['e']"}
