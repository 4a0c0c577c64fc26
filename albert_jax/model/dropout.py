# SPDX-License-Identifier: Apache-2.0
"""Dropout whose noise belongs to a row, so that it does not depend on how the batch is split over devices."""

import jax
import jax.numpy as jnp


def row_keys(rng: jax.Array, rows: int) -> jax.Array:
    """One key for each of `rows` rows; a [rows] array of keys is passed through."""
    if rng.ndim == 1 and jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return rng
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(rows))


def fold(keys: jax.Array | None, salt: int | jax.Array) -> jax.Array | None:
    """Derives fresh keys [B] for the layer or the place that `salt` numbers; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, salt)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Zeroes each entry of x [B, ...] with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
      x: float [B, ...].
      rate: probability of zeroing.
      keys: keys [B], or None to leave x alone.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
