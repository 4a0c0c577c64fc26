# SPDX-License-Identifier: Apache-2.0
"""The guard: leaves out updates whose loss is not finite or whose gradient is far out of line, inside the step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from albert_jax.errors import UserError

_DECAY = 0.99  # of the running mean of log gradient norms: it looks back over about 100 steps
_LEARNING = 100  # accepted steps before a norm can be called an outlier


class Guard(NamedTuple):
    """What the guard remembers; part of the state and so of every checkpoint.

    Attributes:
      log_norm: float32, running mean of the logarithm of accepted gradient norms, not yet corrected for its start.
      accepted: int32, steps that updated the parameters.
      skipped: int32, steps that did not.
      in_a_row: int32, of these the last ones without a break.
    """

    log_norm: jax.Array
    accepted: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array


def new_guard() -> Guard:
    """Before the first step."""
    return Guard(jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))


def check_guard(guard: ml_collections.ConfigDict) -> None:
    """Refuses settings that make no sense.

    Raises:
      UserError: naming the field.
    """
    if guard.norm_factor != 0 and not guard.norm_factor > 1:
        raise UserError(f"guard.norm_factor must be more than 1, or 0 to allow any norm, not {guard.norm_factor}.")
    if guard.patience < 0:
        raise UserError(f"guard.patience must be at least 1, or 0 never to roll back, not {guard.patience}.")


def judge(
    guard: Guard, settings: ml_collections.ConfigDict, loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, Guard]:
    """Decides whether a step may update the parameters.

    Args:
      guard: so far.
      settings: `config.guard`.
      loss: float32, of the whole batch.
      norm: float32, of the whole batch's gradient before clipping.

    Returns:
      bool, and the guard after the step.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if settings.norm_factor:
        typical = jnp.exp(guard.log_norm / (1 - _DECAY ** jnp.maximum(guard.accepted, 1)))
        good &= (guard.accepted < _LEARNING) | (norm <= settings.norm_factor * typical)
    moved = _DECAY * guard.log_norm + (1 - _DECAY) * jnp.log(jnp.maximum(norm, 1e-30))
    after = Guard(
        log_norm=jnp.where(good, moved, guard.log_norm),
        accepted=guard.accepted + good,
        skipped=guard.skipped + ~good,
        in_a_row=jnp.where(good, 0, guard.in_a_row + 1),
    )
    return good, after
