# SPDX-License-Identifier: Apache-2.0
"""Between what limits the numbers of a config must lie."""

import math

import ml_collections
from flax import traverse_util

from albert_jax.errors import UserError
from albert_jax.training.guard import check_guard

_LEAST = {
    "steps": 1,
    "data.prefetch": 1,
    "log.every": 1,
    "eval.every": 1,
    "eval.rows": 0,
    "batch.rows_per_device": 0,
    "batch.warmup_steps": 0,
    "watchdog.seconds": 0,
    "profile.at": 0,
    "profile.steps": 1,
    "checkpoint.every": 1,
    "checkpoint.minutes": 0,
    "checkpoint.keep_period": 0,
    "optimizer.weight_decay": 0,
}
_POSITIVE = ("optimizer.learning_rate", "optimizer.decay_power", "optimizer.eps", "optimizer.clip_norm")


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers that are out of range and that nothing else would notice.

    Raises:
      UserError: naming the first one.
    """
    values = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, least in _LEAST.items():
        if not values[name] >= least:
            raise UserError(f"{name} must be at least {least}, not {values[name]}.")
    for name in _POSITIVE:
        if not 0 < values[name] < math.inf:
            raise UserError(f"{name} must be positive, not {values[name]}.")
    for name in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= values[name] < 1:
            raise UserError(f"{name} must lie in [0, 1), not {values[name]}.")
    check_guard(config.guard)
