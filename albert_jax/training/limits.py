# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a config by itself, before anything is opened: numbers, choices, and fields that contradict."""

import math
from typing import Any

import ml_collections
from flax import traverse_util
from jax.sharding import Mesh

from albert_jax.data.parity import check_google
from albert_jax.data.stream import SENTENCE_ORDERS
from albert_jax.errors import UserError
from albert_jax.model.attention import ATTENTIONS
from albert_jax.training.data import plan_settings
from albert_jax.training.guard import check_guard
from albert_jax.training.phases import Phase, read_phases
from albert_jax.training.sharding import read_rules
from albert_jax.training.step import make_train_step

_LEAST = {
    "steps": 1,
    "data.prefetch": 1,
    "log.every": 1,
    "eval.every": 0,
    "eval.rows": 0,
    "batch.size": 1,
    "batch.rows_per_device": 0,
    "batch.warmup_steps": 0,
    "watchdog.seconds": 0,
    "profile.at": 0,
    "profile.steps": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 2,  # a damaged checkpoint needs one before it
    "checkpoint.minutes": 0,
    "checkpoint.keep_period": 0,
    "optimizer.weight_decay": 0,
    "optimizer.warmup_steps": 0,
    "masking.count": 0,
    "masking.max_ngram": 1,
    "data.examples_per_row": 1,
    "model.type_vocab_size": 2,  # examples have two segments
}
_POSITIVE = ("optimizer.learning_rate", "optimizer.decay_power", "optimizer.eps", "optimizer.clip_norm")
_CHOICES = {
    "data.recipe": ("clean", "google", "baked"),
    "data.sentence_order": SENTENCE_ORDERS,
    "masking.corrupt_by": ("token", "span"),
    "batch.unit": ("examples", "rows"),
    "init_positions": ("", "repeat", "interpolate"),
    "init_vocabulary": ("", "by_piece"),
}


def check_fields(config: ml_collections.ConfigDict, mesh: Mesh) -> list[Phase]:
    """Refuses what no data set could make right; gives the phases of the run.

    Args:
      config: the run's.
      mesh: the devices; whether the attention that the config names can run there is not looked at.

    Raises:
      UserError: naming the first field, and the values that it may have.
    """
    _check_values(traverse_util.flatten_dict(config.to_dict(), sep="."))
    check_guard(config.guard)
    for name in ("init_positions", "init_vocabulary"):
        if config[name] and not config.init_from:
            raise UserError(
                f"{name} says how to start from other weights; pass --config.init_from too, or leave it away."
            )
    read_rules(config.mesh.rules)
    tried = config.copy_and_resolve_references()
    if config.attention in ATTENTIONS:
        tried.attention = "xla"
    make_train_step(tried, mesh)
    if config.data.recipe != "baked":  # whose files say it all
        _check_data(config)
    return read_phases(config)


def _check_data(config: ml_collections.ConfigDict) -> None:
    """Refuses data that the config cannot describe."""
    plan_settings(config)
    if config.data.sequence_length > config.model.max_position_embeddings:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} exceeds model.max_position_embeddings "
            f"{config.model.max_position_embeddings}; pass "
            f"--config.model.max_position_embeddings={config.data.sequence_length}, or a smaller sequence_length."
        )
    if config.data.recipe == "google":
        check_google(config.data.sentence_order, config.masking.corrupt_by, None)


def _check_values(values: dict[str, Any]) -> None:
    """Refuses numbers that are out of range, and words that mean nothing.

    Args:
      values: full name -> value.
    """
    for name, least in _LEAST.items():
        if not values[name] >= least:
            alone = f"; a number beyond the run's {values['steps']} steps leaves it to the last one"
            why = alone if name in ("log.every", "checkpoint.every") and values[name] == 0 else ""
            raise UserError(f"{name} must be at least {least}, not {values[name]}{why}.")
    for name in _POSITIVE:
        if not 0 < values[name] < math.inf:
            raise UserError(f"{name} must be positive, not {values[name]}.")
    if values["optimizer.weight_decay"] == math.inf:
        raise UserError("optimizer.weight_decay must be finite, not inf.")
    for name in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= values[name] < 1:
            raise UserError(f"{name} must lie in [0, 1), not {values[name]}.")
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise UserError(f"{name} must be one of {', '.join(map(repr, choices))}, not {values[name]!r}.")
