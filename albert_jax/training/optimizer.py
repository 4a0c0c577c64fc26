# SPDX-License-Identifier: Apache-2.0
"""LAMB and AdamW with ALBERT's exclusions, and the learning-rate schedule, from optax's parts."""

from typing import Any

import jax
import ml_collections
import optax

from albert_jax.errors import UserError
from albert_jax.model import Parameters


def learning_rate_schedule(optimizer: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up from zero to the peak, then polynomial decay to zero at `steps`.

    The original's decay counts from step 0, so that its rate falls by 2.5 % where the warm-up ends; here the curves
    meet.

    Args:
      optimizer: `config.optimizer`: learning_rate, warmup_steps, decay_power.
      steps: steps of the whole run.

    Raises:
      UserError: where the warm-up is not shorter than the run.
    """
    warmup = optimizer.warmup_steps
    if not 0 <= warmup < steps:
        raise UserError(f"optimizer.warmup_steps {warmup} must be less than the run's {steps} steps.")
    decay = optax.polynomial_schedule(optimizer.learning_rate, 0.0, optimizer.decay_power, steps - warmup)
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, optimizer.learning_rate, warmup), decay], [warmup])


def decayed(parameters: Parameters) -> Any:
    """Tree of bools: True where weight decay and LAMB's adaptation apply, False at biases and LayerNorm parameters.

    These are the original's exclusions ('LayerNorm', 'layer_norm', 'bias'): by default it leaves out of the adaptation
    whatever it leaves out of the decay.
    """

    def applies(path: tuple[Any, ...], _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[-1] != "bias" and not any("layernorm" in name.lower().replace("_", "") for name in names)

    return jax.tree_util.tree_map_with_path(applies, parameters)


def make_optimizer(optimizer: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The optimizer that a config names, without its learning rate: parameters move by -rate times what it gives.

    'lamb' is algorithm 2 of You et al. 2019 (arXiv 1904.00962) with bias correction and the identity for phi: each
    matrix moves by learning_rate * |w| / |u| * u, with u the Adam direction plus weight_decay * w; excluded parameters
    move by plain Adam. 'adamw' is the same without the ratio. Gradients are clipped before, by the global norm of the
    whole batch.

    The rate stands apart because it follows the run's steps, and the optimizer counts only those that it took.

    Args:
      optimizer: `config.optimizer`.

    Raises:
      UserError: for another name.
    """
    if optimizer.name not in ("lamb", "adamw"):
        raise UserError(f"optimizer.name must be 'lamb' or 'adamw', not {optimizer.name!r}.")
    parts = [
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),
        optax.add_decayed_weights(optimizer.weight_decay, decayed),
    ]
    if optimizer.name == "lamb":
        parts.append(optax.masked(optax.scale_by_trust_ratio(), decayed))
    return optax.chain(*parts)
