# SPDX-License-Identifier: Apache-2.0
"""The training step: a pure function of (state, batch), compiled with explicit shardings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from albert_jax.config import AlbertConfig
from albert_jax.data.stream import Batch
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, Parameters, parameters
from albert_jax.training.objective import Totals, count_targets, evaluate_rows, mean_loss, zero_totals
from albert_jax.training.optimizer import learning_rate_schedule, make_optimizer
from albert_jax.training.sharding import DATA, by_rows, replicated

_DROPOUT = 1  # salt of the dropout keys, apart from those of the initial weights
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Sums(NamedTuple):
    """What was measured since the last log line, summed over `steps` steps; float32 scalars."""

    loss: jax.Array
    mlm_loss: jax.Array
    mlm_accuracy: jax.Array
    sop_loss: jax.Array
    sop_accuracy: jax.Array
    grad_norm: jax.Array
    real_share: jax.Array
    steps: jax.Array


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint must hold to go on bit for bit.

    Attributes:
      params: nested dict of float32 arrays.
      opt_state: optax's.
      step: int32, optimizer steps done.
      sums: measurements of the log interval that is under way.
    """

    params: Parameters
    opt_state: Any
    step: jax.Array
    sums: Sums


def abstract_model(config: ml_collections.ConfigDict) -> FlaxAlbertForPreTrainingModule:
    """The structure of the config's model, without values.

    Raises:
      UserError: where `config.model` or `config.dtype` is not valid.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {config.dtype!r}.")
    architecture = AlbertConfig.from_dict(config.model.to_dict())
    return nnx.eval_shape(
        lambda: FlaxAlbertForPreTrainingModule(architecture, dtype=DTYPES[config.dtype], rngs=nnx.Rngs(0))
    )


def initial_parameters(config: ml_collections.ConfigDict) -> Parameters:
    """Fresh parameters, a function of `config.model` and `config.seed`."""
    architecture = AlbertConfig.from_dict(config.model.to_dict())
    return jax.jit(lambda: parameters(FlaxAlbertForPreTrainingModule(architecture, rngs=nnx.Rngs(config.seed))))()


def zero_sums() -> Sums:
    """Sums of no steps."""
    return Sums(*(jnp.zeros((), jnp.float32) for _ in Sums._fields))


def initial_state(config: ml_collections.ConfigDict, params: Parameters, mesh: Mesh) -> TrainState:
    """The state before the first step, on every device of the mesh."""

    def make(params: Parameters) -> TrainState:
        optimizer = make_optimizer(config.optimizer, config.steps)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), zero_sums())

    return jax.jit(make, out_shardings=replicated(mesh))(params)


def _row_keys(config: ml_collections.ConfigDict, step: jax.Array, batch: Batch) -> jax.Array | None:
    """Dropout keys that belong to (seed, step, row of the stream), or None where the model has no dropout."""
    if config.model.hidden_dropout_prob == 0 and config.model.attention_probs_dropout_prob == 0:
        return None
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _DROPOUT), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch.row_ids)


def batch_gradient(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> Callable[[Parameters, jax.Array, Batch], tuple[Parameters, Totals]]:
    """The gradient of the mean loss over a batch that is split over the mesh and into micro-batches.

    Each device sums over its micro-batches, then one reduction sums over the devices: targets are counted beforehand
    over the whole batch, so the sum is the gradient of the global mean, whatever the split. Written with `shard_map`
    because the partitioner, left to itself, reduces the tied table twice and reduces every micro-batch.

    Args:
      config: the run's.
      mesh: with the axis `data`.

    Returns:
      A function of (params, step, batch) that gives the gradient and the totals.
    """
    model, parts = abstract_model(config), config.batch.accumulation

    def local(params: Parameters, step: jax.Array, batch: Batch) -> tuple[Parameters, Totals]:
        mlm_count, sop_count = jax.lax.psum(count_targets(batch), DATA)
        params = jax.lax.pcast(params, DATA, to="varying")

        def loss(params: Parameters, rows: Batch) -> tuple[jax.Array, Totals]:
            totals = evaluate_rows(model, params, rows, _row_keys(config, step, rows))
            return mean_loss(totals, mlm_count, sop_count), totals

        def accumulate(sums: Any, rows: Batch) -> tuple[Any, None]:
            (_, totals), gradient = jax.value_and_grad(loss, has_aux=True)(params, rows)
            return jax.tree.map(jnp.add, sums, (gradient, totals)), None

        if parts == 1:
            (_, totals), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return jax.lax.psum((gradient, totals), DATA)
        micro = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, params), jax.lax.pcast(zero_totals(), DATA, to="varying")
        return jax.lax.psum(jax.lax.scan(accumulate, zeros, micro)[0], DATA)

    everywhere, rows = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(local, mesh=mesh, in_specs=(everywhere, everywhere, rows), out_specs=everywhere)


def make_train_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """Compiles one optimizer step; the state that is passed in is used up.

    Args:
      config: the run's.
      mesh: with the axis `data`.

    Returns:
      A jitted function of (state, batch), state on every device and rows split over the data axis, that gives the new
      state and the number of its step, an array that stays valid while later steps use the state up.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    gradient_of = batch_gradient(config, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        gradient, totals = gradient_of(state.params, state.step, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        mlm_count, sop_count = jnp.maximum(totals.mlm_count, 1), jnp.maximum(totals.sop_count, 1)
        measured = Sums(
            loss=mean_loss(totals, totals.mlm_count, totals.sop_count),
            mlm_loss=totals.mlm_loss / mlm_count,
            mlm_accuracy=totals.mlm_correct / mlm_count,
            sop_loss=totals.sop_loss / sop_count,
            sop_accuracy=totals.sop_correct / sop_count,
            grad_norm=optax.global_norm(gradient),
            real_share=totals.real_slots / batch.input_ids.size,
            steps=jnp.ones((), jnp.float32),
        )
        params, sums = optax.apply_updates(state.params, updates), jax.tree.map(jnp.add, state.sums, measured)
        return TrainState(params, opt_state, state.step + 1, sums), state.step + 1

    everywhere = replicated(mesh)
    return jax.jit(step, in_shardings=(everywhere, by_rows(mesh)), out_shardings=everywhere, donate_argnums=0)


def make_read_sums(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> Callable[[TrainState], tuple[dict[str, jax.Array], TrainState]]:
    """Compiles the end of a log interval: the means since the last one, and the state with its sums at zero.

    The means are arrays of their own, which stay valid while later steps use the state up.
    """
    schedule = learning_rate_schedule(config.optimizer, config.steps)

    def read(state: TrainState) -> tuple[dict[str, jax.Array], TrainState]:
        sums = state.sums._asdict()
        steps = sums.pop("steps")
        means = {name: value / jnp.maximum(steps, 1) for name, value in sums.items()}
        # The rate that the interval's last step used.
        return means | {"learning_rate": jnp.float32(schedule(state.step - 1))}, state._replace(sums=zero_sums())

    return jax.jit(read, out_shardings=replicated(mesh), donate_argnums=0)


def make_eval_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable[[Parameters, Batch], Totals]:
    """Compiles the evaluation of one batch; dropout is off."""
    model = abstract_model(config)

    def local(params: Parameters, batch: Batch) -> Totals:
        return jax.lax.psum(evaluate_rows(model, params, batch), DATA)

    everywhere, rows = PartitionSpec(), PartitionSpec(DATA)
    step = jax.shard_map(local, mesh=mesh, in_specs=(everywhere, rows), out_specs=everywhere)
    return jax.jit(step, in_shardings=(replicated(mesh), by_rows(mesh)), out_shardings=replicated(mesh))
