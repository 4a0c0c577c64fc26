# SPDX-License-Identifier: Apache-2.0
"""The heads: masked words, through the tied embedding table, and linear classifiers."""

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.model.dense import Dense
from albert_jax.model.dropout import dropout
from albert_jax.model.encoder import activation
from albert_jax.model.layer_norm import LayerNorm


class AlbertMLMHead(nnx.Module):
    """Dense H to E, activation, LayerNorm, then scores against the input embedding table plus a bias per word."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.dense = Dense(config.hidden_size, config.embedding_size, config, dtype=dtype, rngs=rngs)
        self.LayerNorm = LayerNorm(config.embedding_size, config, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """Scores every word.

        Args:
          x: hidden states, float [..., H].
          table: word embeddings, float32 [V, E].

        Returns:
          float32 logits [..., V].
        """
        x = self.LayerNorm(activation(self.config.hidden_act)(self.dense(x)))
        logits = jnp.einsum("...e,ve->...v", x, table.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits + self.bias[...]


def classifier_dropout(x: jax.Array, config: AlbertConfig, keys: jax.Array | None) -> jax.Array:
    """Dropout before a classifier, on float [B, ..., H]; `keys` [B] switch it on."""
    rate = config.classifier_dropout_prob
    return dropout(x, config.hidden_dropout_prob if rate is None else rate, keys)


class AlbertSOPHead(nnx.Module):
    """Linear classifier of sentence order on the pooled output."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.classifier = Dense(config.hidden_size, 2, config, dtype=dtype, rngs=rngs)

    def __call__(self, pooled: jax.Array, keys: jax.Array | None) -> jax.Array:
        """float32 logits [B, ..., 2] of float [B, ..., H]; transformers drops out here in training, Google does not."""
        return self.classifier(classifier_dropout(pooled, self.config, keys)).astype(jnp.float32)
