# SPDX-License-Identifier: Apache-2.0
"""The linear layer of every block: a matmul in the compute dtype, its bias and the bias's gradient in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig


class Dense(nnx.Module):
    """x @ kernel + bias.

    `nnx.Linear` casts the bias to the compute dtype, so its gradient, a sum over all slots of a batch, is summed in
    bfloat16, where a running sum stops growing at 256 times its terms. Here the bias is added in float32.

    Args:
      inputs, outputs: sizes.
      config: its `initializer_range` is the standard deviation of the truncated normal that the kernel starts from.
      dtype: of the matmul and of the result; the parameters are float32.
    """

    def __init__(self, inputs: int, outputs: int, config: AlbertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [..., inputs] to float [..., outputs]."""
        product = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return (product.astype(jnp.float32) + self.bias[...]).astype(self.dtype)
