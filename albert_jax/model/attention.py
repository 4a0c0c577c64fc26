# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention, bidirectional, with padding masks and masks for rows that hold several examples."""

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.model.dense import Dense
from albert_jax.model.dropout import dropout, fold


def attention_bias(attention_mask: jax.Array | None, example_ids: jax.Array | None) -> jax.Array | None:
    """What is added to the attention scores: zero where a query may see a key, the lowest float32 where not.

    Args:
      attention_mask: [B, S], 1 at real slots and 0 at padding, as in transformers; hides keys only. Or None.
      example_ids: int [B, S], the number 1..P of the example that a slot belongs to and 0 at padding: slots see each
        other where the numbers are equal. Or None.

    Returns:
      float32 [B, 1, S, S] or [B, 1, 1, S], or None where everything is visible.
    """
    visible = None
    if attention_mask is not None:
        visible = attention_mask[:, None, None, :] != 0
    if example_ids is not None:
        same = (example_ids[:, :, None] == example_ids[:, None, :])[:, None]
        visible = same if visible is None else visible & same
    return None if visible is None else jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)


class AlbertAttention(nnx.Module):
    """Attention, its output projection, dropout, residual and LayerNorm (post-LN, as in the original)."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def dense() -> Dense:
            return Dense(config.hidden_size, config.hidden_size, config, dtype=dtype, rngs=rngs)

        self.config, self.dtype = config, dtype
        self.query, self.key, self.value, self.dense = dense(), dense(), dense(), dense()
        self.LayerNorm = nnx.LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, bias: jax.Array | None, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Attends over x.

        Args:
          x: float [B, S, H].
          bias: float32, broadcastable to [B, N, S, S], or None.
          keys: dropout keys [B], or None in evaluation.

        Returns:
          float [B, S, H], and the weights after softmax and dropout, float [B, N, S, S].
        """
        c = self.config
        heads, size = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        q, k, v = (dense(x).reshape(*x.shape[:2], heads, size) for dense in (self.query, self.key, self.value))
        # Scores and softmax stay in float32 whatever the compute dtype: S terms are summed in them.
        scores = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * size**-0.5
        weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1).astype(self.dtype)
        weights = dropout(weights, c.attention_probs_dropout_prob, fold(keys, 0))
        context = jnp.einsum("bnqk,bknd->bqnd", weights, v).reshape(x.shape)
        x = self.LayerNorm(x + dropout(self.dense(context), c.hidden_dropout_prob, fold(keys, 1)))
        return x, weights
