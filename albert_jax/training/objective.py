# SPDX-License-Identifier: Apache-2.0
"""The pretraining objective: masked words plus sentence order, as sums over targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from albert_jax.data.stream import Batch
from albert_jax.model import IGNORED_LABEL, FlaxAlbertForPreTrainingModule, Parameters, with_parameters


class Totals(NamedTuple):
    """Sums over the targets of some rows, float32 scalars: they add up over micro-batches, devices and batches."""

    mlm_loss: jax.Array
    mlm_correct: jax.Array
    mlm_count: jax.Array
    sop_loss: jax.Array
    sop_correct: jax.Array
    sop_count: jax.Array
    real_slots: jax.Array
    rows: jax.Array  # without the empty ones that fill a batch up


def zero_totals() -> Totals:
    """Totals of no rows."""
    return Totals(*(jnp.zeros((), jnp.float32) for _ in Totals._fields))


def count_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """How many masked words and how many sentence orders a batch asks for, float32."""
    return (
        jnp.sum(batch.mlm_labels != IGNORED_LABEL, dtype=jnp.float32),
        jnp.sum(batch.sop_labels != IGNORED_LABEL, dtype=jnp.float32),
    )


def _score(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Summed cross-entropy in nats, hits and targets of float32 logits [..., C] under int labels [...]."""
    real = labels != IGNORED_LABEL
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(real, labels, 0))
    right = real & (jnp.argmax(logits, axis=-1) == labels)
    return jnp.sum(jnp.where(real, losses, 0.0)), jnp.sum(right, dtype=jnp.float32), jnp.sum(real, dtype=jnp.float32)


def evaluate_rows(
    model: FlaxAlbertForPreTrainingModule, parameters: Parameters, batch: Batch, dropout_keys: jax.Array | None = None
) -> Totals:
    """Losses and hits over the rows of a batch.

    Args:
      model: the structure; its own values, if any, are not used.
      parameters: the values.
      batch: rows, see `Batch`.
      dropout_keys: one key per row, or None for evaluation.
    """
    logits = with_parameters(model, parameters).score_slots(
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        batch.example_ids,
        batch.mlm_positions,
        batch.cls_positions,
        dropout_keys,
    )
    real = batch.example_ids != 0
    counts = (jnp.sum(real, dtype=jnp.float32), jnp.sum(jnp.any(real, axis=1), dtype=jnp.float32))
    return Totals(*_score(logits.mlm, batch.mlm_labels), *_score(logits.sop, batch.sop_labels), *counts)


def mean_loss(totals: Totals, mlm_count: jax.Array, sop_count: jax.Array) -> jax.Array:
    """The loss to minimise: mean over masked words plus mean over sentence orders, weighted 1:1 as in the original.

    Args:
      totals: sums over some rows.
      mlm_count, sop_count: targets of the whole batch, so that parts of it add up to its mean; zero counts as one.
    """
    return totals.mlm_loss / jnp.maximum(mlm_count, 1.0) + totals.sop_loss / jnp.maximum(sop_count, 1.0)
