# SPDX-License-Identifier: Apache-2.0
"""LayerNorm in float32, its result in the compute dtype."""

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis.

    `nnx.LayerNorm` casts scale and bias to the dtype it is given: in bfloat16 a scale of 1.0035 would be 1. Here it is
    given float32, and its result alone is cast.

    Args:
      width: size of the last axis.
      config: its `layer_norm_eps` is epsilon.
      dtype: of the result; the parameters are float32.
      rngs: as everywhere.
    """

    def __init__(self, width: int, config: AlbertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(width, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)
        self.result_dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises float [..., width] of any dtype."""
        return super().__call__(x).astype(self.result_dtype)
