# SPDX-License-Identifier: Apache-2.0
"""The losses that transformers' torch classes compute from labels, term for term."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from albert_jax.config import AlbertConfig

IGNORED_LABEL = -100  # transformers' and torch's label of a position that carries no loss


def mean_cross_entropy(logits: jax.Array, labels: jax.Array, ignored: int = IGNORED_LABEL) -> jax.Array:
    """Mean cross-entropy in nats over the labels that are not `ignored`; NaN where there is none, as in torch.

    Args:
      logits: float [..., C].
      labels: int [...].
      ignored: label of a position without loss.
    """
    real = labels != ignored
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(real, labels, 0))
    return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)


def classification_kind(dtype: Any, config: AlbertConfig) -> str:
    """Which of `PROBLEM_TYPES` the sequence classifier's loss is, for labels of a dtype.

    It is `config.problem_type`. Where that is None, as in transformers: one label is regression, integer labels are one
    class of several, float labels are several classes at once.
    """
    if config.problem_type is not None:
        return config.problem_type
    whole = jnp.issubdtype(dtype, jnp.integer)
    several = "single_label_classification" if whole else "multi_label_classification"
    return "regression" if config.num_labels == 1 else several


def classification_loss(logits: jax.Array, labels: jax.Array, config: AlbertConfig) -> jax.Array:
    """Loss of the sequence classifier, see `classification_kind`.

    Args:
      logits: float32 [B, C].
      labels: regression: float [B] or [B, C]; one class: int [B], -100 ignored; several: float [B, C] of 0 and 1.
      config: of the model.

    Returns:
      float32 scalar: mean squared error, cross-entropy, or mean binary cross-entropy.
    """
    kind = classification_kind(labels.dtype, config)
    if kind == "single_label_classification":
        return mean_cross_entropy(logits, labels)
    labels = labels.astype(jnp.float32).reshape(logits.shape)
    if kind == "regression":
        return jnp.mean(jnp.square(logits - labels))
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))


def span_loss(
    start_logits: jax.Array, end_logits: jax.Array, start_positions: jax.Array, end_positions: jax.Array
) -> jax.Array:
    """Mean of the cross-entropies of a span's first and last slot.

    Args:
      start_logits, end_logits: float32 [B, S].
      start_positions, end_positions: int [B]; one beyond the row carries no loss, as in torch.
    """
    slots = start_logits.shape[1]
    pairs = ((start_logits, start_positions), (end_logits, end_positions))
    first, last = (mean_cross_entropy(logits, jnp.clip(at, 0, slots), ignored=slots) for logits, at in pairs)
    return (first + last) / 2
